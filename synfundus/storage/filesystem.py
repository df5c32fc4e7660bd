"""Files on a disk or in an object store, behind one small facade.

The only module that imports fsspec. Locations are plain paths, ``file://`` or ``s3://`` URLs. Credentials come
from the environment, a profile or a role; never from the config.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec

from synfundus.errors import StorageError

ALLOWED_PROTOCOLS = ("file", "s3", "memory")
"""Everything else, ``pipe:`` first of all, is refused."""


def protocol_of(url: str) -> str:
    """Return the protocol of a location; a plain path is ``file``.

    Raises:
        StorageError: A protocol that is not on the allow-list.
    """
    scheme = urlsplit(url).scheme if "://" in url or url.startswith("pipe:") else ""
    protocol = scheme or "file"
    if protocol not in ALLOWED_PROTOCOLS:
        raise StorageError(
            f"protocol {protocol!r} is not allowed",
            where=url,
            hint=f"use one of {', '.join(ALLOWED_PROTOCOLS)}, or a path",
        )
    return protocol


def is_local(url: str) -> bool:
    """Whether a location is on a mounted file system."""
    return protocol_of(url) == "file"


def local_path(url: str) -> Path:
    """Return the path of a local location."""
    if not is_local(url):
        raise StorageError("needs a local path", where=url)
    return Path(url.removeprefix("file://")).expanduser()


def join(url: str, *parts: str) -> str:
    """Append path components to a location."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)]) or "/"


@lru_cache(maxsize=8)
def _filesystem(protocol: str, pid: int) -> Any:  # noqa: ANN401 - fsspec is untyped
    """One filesystem object per protocol and process: an s3fs instance must not cross a fork."""
    return fsspec.filesystem(protocol)


def _resolve(url: str) -> tuple[Any, str]:
    protocol = protocol_of(url)
    if protocol == "file":
        return _filesystem("file", os.getpid()), str(local_path(url).absolute())
    return _filesystem(protocol, os.getpid()), url


@contextmanager
def _storage_errors(action: str, url: str) -> Iterator[None]:
    """Turn what the operating system and the store raise into a StorageError that names the location."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"cannot {action}: not found", where=url) from error
    except PermissionError as error:
        raise StorageError(
            f"cannot {action}: permission denied", where=url, hint="check the rights or credentials"
        ) from error
    except OSError as error:
        detail = error.strerror or type(error).__name__
        raise StorageError(f"cannot {action}: {detail}", where=url) from error


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = _resolve(url)
    with _storage_errors("look at", url):
        return bool(filesystem.exists(path))


def is_dir(url: str) -> bool:
    """Whether the location is a folder."""
    filesystem, path = _resolve(url)
    with _storage_errors("look at", url):
        return bool(filesystem.isdir(path))


def file_size(url: str) -> int:
    """Return the size of a file in bytes."""
    filesystem, path = _resolve(url)
    with _storage_errors("look at", url):
        return int(filesystem.size(path))


def list_names(url: str) -> list[str]:
    """Return the sorted names in a folder; empty if it is not there."""
    filesystem, path = _resolve(url)
    with _storage_errors("list", url):
        try:
            entries = filesystem.ls(path, detail=False)
        except FileNotFoundError:
            return []
    return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries)


def make_dir(url: str) -> None:
    """Create a folder and its parents (nothing to do on an object store)."""
    filesystem, path = _resolve(url)
    with _storage_errors("create folder", url):
        filesystem.makedirs(path, exist_ok=True)


def read_bytes(url: str) -> bytes:
    """Read a whole file."""
    filesystem, path = _resolve(url)
    with _storage_errors("read", url):
        return bytes(filesystem.cat_file(path))


def read_range(url: str, start: int, size: int) -> bytes:
    """Read ``size`` bytes from offset ``start``; fewer come back only at the end of the file."""
    filesystem, path = _resolve(url)
    with _storage_errors("read", url):
        return bytes(filesystem.cat_file(path, start=start, end=start + size))


def open_read(url: str) -> IO[bytes]:
    """Open a file for reading; the caller closes it."""
    filesystem, path = _resolve(url)
    with _storage_errors("open", url):
        stream: IO[bytes] = filesystem.open(path, "rb")
    return stream


def fsync_dir(folder: Path) -> None:
    """Make renames in a local folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(url: str) -> Iterator[IO[bytes]]:
    """Write a file that is there completely or not at all.

    Local: temporary name in the same folder, fsync, rename, fsync of the folder. Object store: one put, which
    the store itself makes atomic.

    Raises:
        StorageError: The disk or the store refused; nothing is left under the final name.
    """
    if not is_local(url):
        filesystem, path = _resolve(url)
        with _storage_errors("write", url), filesystem.open(path, "wb") as stream:
            yield stream
        return
    target = local_path(url).absolute()
    with _storage_errors("write", url):
        target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with _storage_errors("write", url), open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        with _storage_errors("write", url):
            temporary.replace(target)
            fsync_dir(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_write(url) as stream:
        stream.write(data)


def remove(url: str, *, recursive: bool = False) -> None:
    """Remove a file or, with ``recursive``, a folder; not an error if it is gone."""
    filesystem, path = _resolve(url)
    with _storage_errors("remove", url):
        try:
            filesystem.rm(path, recursive=recursive)
        except FileNotFoundError:
            return
