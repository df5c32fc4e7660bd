"""What a location is: a plain path, ``file://`` or ``s3://``, and nothing that could run code or hold a secret."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from synfundus.errors import ConfigError, StorageError

ALLOWED_PROTOCOLS: tuple[str, ...] = ("file", "s3")
"""Everything else, ``pipe:`` first of all, is refused. Our tests add ``memory``, which is gone with the process."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HALF_A_URL = re.compile(r"(file|s3):/?(?!/)", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Blanks of other scripts are no control characters: macOS and East Asian names have them."""
_SIGNED = re.compile(r"[?&](X-Amz-|AWSAccessKeyId=|Signature=)", re.IGNORECASE)


def protocol_of(url: str) -> str:
    """Return the protocol of a location; a plain path is ``file``.

    Raises:
        StorageError: A protocol that is not on the allow-list, credentials in a URL, a bucket or key that is none.
    """
    scheme = _SCHEME.match(url) if "://" in url or url.startswith("pipe:") else None
    protocol = scheme[1] if scheme else "file"
    if protocol not in ALLOWED_PROTOCOLS:
        raise StorageError(
            f"protocol {protocol!r} is not allowed",
            where=_without_secrets(url),
            hint=f"use one of {', '.join(ALLOWED_PROTOCOLS)}, or a path",
        )
    if protocol == "s3":
        _check_s3_url(url)
    elif protocol == "file" and (_HALF_A_URL.match(url) or (scheme and not url.startswith("file:///"))):
        raise StorageError(
            "neither a path nor a URL",
            where=_without_secrets(url),
            hint="write /path, file:///path or s3://bucket/path",
        )
    return protocol


def _without_secrets(url: str) -> str:
    """Return what of a refused URL can be shown."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}..." if separator and ("@" in rest or "?" in rest) else url


@lru_cache(maxsize=4096)
def _check_s3_url(url: str) -> None:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if "@" in bucket or ":" in bucket or _SIGNED.search(url):
        raise StorageError(
            "credentials must not stand in a location",
            where="s3://...",
            hint="give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a profile",
        )
    if not _BUCKET.fullmatch(bucket):
        raise StorageError(f"{bucket!r} is not the name of a bucket", where=url, hint="write s3://bucket/path")
    segments = key.rstrip("/").split("/") if key else []
    if any(segment in {"", ".", ".."} for segment in segments) or _CONTROL.search(key):
        raise StorageError("a path in a bucket must not hold empty parts, '.', '..' or control characters", where=url)


def is_local(url: str) -> bool:
    """Whether a location is on a mounted file system."""
    return protocol_of(url) == "file"


def local_path(url: str) -> Path:
    """Return the path of a local location.

    Raises:
        StorageError: It is not local, or names the home of somebody who has none.
    """
    if not is_local(url):
        raise StorageError("needs a local path", where=url)
    path = Path(url.removeprefix("file://"))
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise StorageError(
            "there is no such home folder", where=url, hint=f"if it is the name of a file, write ./{path}"
        ) from error


def absolute(url: str) -> str:
    """Return a location that means the same in every working folder."""
    return str(local_path(url).absolute()) if is_local(url) else url


def join(url: str, *parts: str) -> str:
    """Append path components to a location."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)]) or "/"


def parse_weighted(text: str) -> tuple[str, float]:
    """Split ``URL:WEIGHT``; without a weight it is 1. A folder whose name ends so, ``latents:2024``, is a folder.

    Raises:
        ConfigError: A weight that is not positive, or a text that means two folders.
    """
    url, separator, tail = text.rpartition(":")
    try:
        weight = float(tail)
    except ValueError:
        return text, 1.0
    if not separator or not url:
        return text, 1.0
    if _is_there(text):
        if _is_there(url):
            raise ConfigError(
                f"{text} is a folder, and {url} with a weight is another",
                where="train.latents",
                hint=f"write {text}:1 for the first; for the second rename the first",
            )
        return text, 1.0
    if not 0 < weight < float("inf"):
        raise ConfigError(f"the weight {tail} of {url} is not a positive number", where="train.latents")
    return url, weight


def _is_there(location: str) -> bool:
    """Whether a local file or folder of this name can be seen."""
    try:
        return Path(location.removeprefix("file://")).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # a name that is too long, a folder that is closed, no such home
        return False
