"""Recognises keys, tokens and passwords: they are refused in settings and removed from all output.

A secret is recognised by its form, or as the value of an environment variable whose name says that it is secret. The
second way finds secrets without a typical form.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

MASK = "[redacted]"

# forty hexadecimal digits after a slash are a folder of Hugging Face's cache, not a key
_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a URL with a user name or password", re.compile(r"(?<=://)[^\s/?#'\"@]+(?=@)")),
    (
        "a signed URL",
        re.compile(
            r"(?<=\?)[^\s'\"<>]*(?:X-Amz-|AWSAccessKeyId|Signature|[?&](?:sig|token|access_token|api_key)=)[^\s'\"<>]*",
            re.IGNORECASE,
        ),
    ),
    ("an access key of AWS", re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}(?![A-Za-z0-9])")),
    ("a session token of AWS", re.compile(r"(?:IQoJ|FwoG|FQoG)[A-Za-z0-9/+=]{40,}")),
    ("a token of Hugging Face", re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}")),
    ("a key of Weights & Biases", re.compile(r"(?<![A-Za-z0-9/_-])(?:[0-9a-f]{40}(?![A-Za-z0-9/])|wandb_v1_\w{20,})")),
    (
        "a token",
        re.compile(
            r"(?<![A-Za-z0-9])(?:gh[pousr]_\w{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}|sk-[\w-]{20,}|xox[abp]-[\w-]{10,})"
        ),
    ),
    ("a signed token", re.compile(r"(?<![A-Za-z0-9])eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}")),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)")),
    (
        "a named secret",
        re.compile(
            r"(?i)(?P<name>(?<![a-z])[a-z_-]*(?:"
            r"(?:secret|password|passwd|api_?key|access_?key)[a-z_-]*['\"]?\s*[=:]\s*['\"]?"
            r"|token(?:=|:(?=\S)|['\"]\s*:\s*)['\"]?))"
            r"[^\s'\",;&\[{(<]{6,}"
        ),
    ),
)
_SECRET_KEY = re.compile(r"(?<![A-Za-z0-9/+])[A-Za-z0-9+][A-Za-z0-9/+]{39}(?![A-Za-z0-9/+])")
_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|PRIVATE_?KEY", re.IGNORECASE)
_PLACE_VARIABLE = re.compile(r"_(?:FILE|PATH|DIR|URI|URL|ENDPOINT|PARALLELISM)$", re.IGNORECASE)
_SHORTEST_VALUE = 8


def _is_secret_key(text: str) -> bool:
    """Whether forty characters look random, like the secret half of an AWS key pair, and not like a path."""
    counts = [sum(map(kind, text)) for kind in (str.isupper, str.islower, str.isdigit)]
    return counts[0] >= 6 and counts[1] >= 6 and counts[2] >= 1 and text.count("/") <= 4


def secret_kind(text: str) -> str:
    """Return the kind of secret in a text; empty if none is recognised."""
    for kind, pattern in _KINDS:
        if pattern.search(text):
            return kind
    if any(_is_secret_key(match[0]) for match in _SECRET_KEY.finditer(text)):
        return "a secret key"
    return ""


def environment_secrets(environment: Mapping[str, str]) -> list[str]:
    """Return the values of variables whose names mark them as secret, longest first."""
    values = {
        value
        for name, value in environment.items()
        if _SECRET_VARIABLE.search(name) and not _PLACE_VARIABLE.search(name) and len(value) >= _SHORTEST_VALUE
    }
    return sorted(values, key=len, reverse=True)


def redact(text: str, *, environment: Mapping[str, str] | None = None) -> str:
    """Return a text with every recognised secret replaced by `MASK`.

    Args:
        text: Text to be printed or stored.
        environment: Variables whose secret values are replaced too; None = this process's environment.
    """
    for value in environment_secrets(os.environ if environment is None else environment):
        text = text.replace(value, MASK)
    for _, pattern in _KINDS:
        text = pattern.sub(lambda match: match.groupdict().get("name", "") + MASK, text)
    return _SECRET_KEY.sub(lambda match: MASK if _is_secret_key(match[0]) else match[0], text)
