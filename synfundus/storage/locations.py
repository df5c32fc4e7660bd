"""Locations: a plain path, ``file://`` or ``s3://``; anything that could run code or contain a secret is refused."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path

from synfundus.errors import ConfigError, StorageError

ALLOWED_PROTOCOLS: tuple[str, ...] = ("file", "s3")
"""All others, e.g. ``pipe:``, are refused. Tests add ``memory``."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_MALFORMED_URL = re.compile(r"(file|s3):/?(?!/)", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Spaces of other scripts are allowed: macOS and East Asian names contain them."""
_SIGNED = re.compile(r"[?&](X-Amz-|AWSAccessKeyId=|Signature=)", re.IGNORECASE)


def protocol_of(url: str) -> str:
    """Return the protocol of a location; a plain path is ``file``.

    Raises:
        StorageError: A protocol that is not allowed, credentials in a URL, an invalid bucket or key.
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
    elif protocol == "file" and (_MALFORMED_URL.match(url) or (scheme and not url.startswith("file:///"))):
        raise StorageError(
            "neither a path nor a URL",
            where=_without_secrets(url),
            hint="write /path, file:///path or s3://bucket/path",
        )
    return protocol


def _without_secrets(url: str) -> str:
    """Return the part of a refused URL that is safe to print."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}..." if separator and ("@" in rest or "?" in rest) else url


@lru_cache(maxsize=4096)
def _check_s3_url(url: str) -> None:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if "@" in bucket or ":" in bucket or _SIGNED.search(url):
        raise StorageError(
            "a location must not contain credentials",
            where="s3://...",
            hint="give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a profile",
        )
    if not _BUCKET.fullmatch(bucket):
        raise StorageError(f"{bucket!r} is not a valid bucket name", where=url, hint="write s3://bucket/path")
    segments = key.rstrip("/").split("/") if key else []
    if any(segment in {"", ".", ".."} for segment in segments) or _CONTROL.search(key):
        raise StorageError(
            "a path in a bucket must not contain empty parts, '.', '..' or control characters", where=url
        )


def is_local(url: str) -> bool:
    """Whether a location is on a mounted file system."""
    return protocol_of(url) == "file"


def local_path(url: str) -> Path:
    """Return the path of a local location.

    Raises:
        StorageError: It is not local, or ``~name`` is not a user with a home folder.
    """
    if not is_local(url):
        raise StorageError("needs a local path", where=url)
    text = url.removeprefix("file://")
    path = Path(text)
    try:
        return path.expanduser() if text.startswith("~") else path  # ./~name is a file of this folder
    except RuntimeError as error:
        raise StorageError("no such home folder", where=url, hint=f"if it is a file name, write ./{path}") from error


def absolute_location(url: str) -> str:
    """Return a location that does not depend on the working folder; links stay."""
    return str(local_path(url).absolute()) if is_local(url) else url


def resolved(url: str) -> str:
    """Return a location in the one way it can be compared: links are followed."""
    return os.path.realpath(local_path(url)) if is_local(url) else url.rstrip("/")


def join(url: str, *parts: str) -> str:
    """Append path components to a location."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)]) or "/"


def parse_weighted(text: str) -> tuple[str, float]:
    """Split ``URL:WEIGHT``; the default weight is 1. An existing folder ``latents:2024`` is taken as a folder.

    Raises:
        ConfigError: A weight that is not positive, or a text that matches two folders.
    """
    url, separator, tail = text.rpartition(":")
    try:
        weight = float(tail)
    except ValueError:
        return text, 1.0
    if not separator or not url:
        return text, 1.0
    if _exists_locally(text):
        if _exists_locally(url):
            raise ConfigError(
                f"{text} is a folder, and {url} with a weight is another",
                where="train.latents",
                hint=f"write {text}:1 for the first; for the second rename the first",
            )
        return text, 1.0
    if not 0 < weight < float("inf"):
        raise ConfigError(f"the weight {tail} of {url} is not a positive number", where="train.latents")
    return url, weight


def _exists_locally(location: str) -> bool:
    """Whether a local file or folder of this name exists and is accessible."""
    try:
        return local_path(location).exists()
    except (OSError, ValueError, StorageError):  # a name that is too long, no permission, no such home
        return False
