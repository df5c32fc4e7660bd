"""Files on a disk or in an object store.

The rest of the package reads and writes through this module. Locations are plain paths, ``file://`` or
``s3://`` URLs. Endpoint, region, profile and credentials of a store come from the environment, a profile or a role;
never from the config or a URL.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from synfundus.errors import CorruptShard, StorageError
from synfundus.storage.locations import ALLOWED_PROTOCOLS, is_local, join, local_path, protocol_of
from synfundus.storage.s3 import object_store, object_upload, store_connection
from synfundus.storage.s3.store_connection import StoreSettings
from synfundus.storage.s3.store_faults import BeyondEnd
from synfundus.storage.safe_files import fsync_dir, is_hidden, read_until_valid, walk_files, write_in_place

__all__ = [
    "ALLOWED_PROTOCOLS", "StoreSettings", "atomic_write", "configure", "download_folder", "exists", "fetch",
    "file_size", "forget_connections", "fsync_dir", "is_dir", "is_local", "join", "list_files", "list_names",
    "local_path", "make_dir", "open_read", "protocol_of", "read_bytes", "read_checked", "read_range", "remove",
    "space_advice", "upload_folder", "write_bytes",
]  # fmt: skip

_SPOOL_IN_MEMORY_BYTES = 64 * 2**20
_TRANSFERS_AT_ONCE = 8
_FREE = "bytes are free"


def configure(settings: StoreSettings | None) -> None:
    """Set deadlines, timeouts and the cache for this process and its children; None resets them."""
    store_connection.configure(settings)
    forget_connections()


def forget_connections() -> None:
    """Close the connections of this process to stores; the next call reads the environment again."""
    store_connection.forget()
    object_store.forget_download_client()
    _filesystem.cache_clear()


@lru_cache(maxsize=8)
def _filesystem(protocol: str) -> Any:  # noqa: ANN401 - fsspec is untyped
    import fsspec

    store_connection.silence_loggers()  # a file name may contain a patient's name
    return fsspec.filesystem(protocol)


def _resolve(url: str) -> tuple[Any, str]:
    """Return (fsspec file system, path) for a location that is not on S3."""
    if protocol_of(url) == "file":
        return _filesystem("file"), str(local_path(url).absolute())
    return _filesystem("memory"), url


def _on_s3(url: str) -> bool:
    return protocol_of(url) == "s3"


@contextmanager
def storage_errors(action: str, url: str) -> Iterator[None]:
    """Convert errors of the operating system and the store into a StorageError with the location."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"cannot {action}: not found", where=url) from error
    except PermissionError as error:
        raise StorageError(
            f"cannot {action}: permission denied", where=url, hint="check the permissions or credentials"
        ) from error
    except OSError as error:
        detail = f"{error.strerror or type(error).__name__}{_free_space(error, url)}"
        raise StorageError(f"cannot {action}: {detail}", where=url, hint=space_advice(detail)) from error


def _free_space(error: OSError, url: str) -> str:
    """Return how much space is free if a full disk or quota was the reason."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not is_local(url):
        return ""
    folder = local_path(url).absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return f", {shutil.disk_usage(folder).free:,} {_FREE}"


def space_advice(message: str) -> str:
    """Return what to do about an error of `storage_errors` while writing: not every one is for lack of space."""
    if os.strerror(errno.EROFS) in message:
        return "give a folder that can be written to"
    return "free some space" if _FREE in message else "check the disk or the store"


def exists(url: str) -> bool:
    """Whether a file or folder exists."""
    if not _on_s3(url):
        filesystem, path = _resolve(url)
        with storage_errors("access", url):
            return bool(filesystem.exists(path))
    if object_store.split(url)[1]:
        try:
            object_store.stat(url)
        except FileNotFoundError:
            pass
        else:
            return True
    return is_dir(url)


def is_dir(url: str) -> bool:
    """Whether the location is a folder; in an object store, whether it contains any objects."""
    if _on_s3(url):
        return any(True for _ in object_store.list_objects(url, recursive=True, limit=1))
    filesystem, path = _resolve(url)
    with storage_errors("access", url):
        return bool(filesystem.isdir(path))


def file_size(url: str) -> int:
    """Return the size of a file in bytes."""
    with storage_errors("access", url):
        if _on_s3(url):
            return object_store.stat(url).size
        filesystem, path = _resolve(url)
        return int(filesystem.size(path))


def list_names(url: str) -> list[str]:
    """Return the sorted names in a folder; empty if it does not exist."""
    if _on_s3(url):
        return sorted({name.rstrip("/") for name, _ in object_store.list_objects(url, recursive=False)})
    filesystem, path = _resolve(url)
    with storage_errors("list", url):
        try:
            entries = filesystem.ls(path, detail=False)
        except FileNotFoundError:
            return []
    return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries)


def list_files(url: str, *, everything: bool = False) -> dict[str, int]:
    """Return the size of every file below a folder by relative name, sorted; empty if the folder does not exist.

    Hidden files and folders (names that start with a dot) are left out.

    Args:
        url: The folder.
        everything: Return those too, and links to nothing, as `safe_files.walk_files` does.

    Raises:
        StorageError: A folder cannot be read.
    """
    if _on_s3(url):
        found: Iterable[tuple[str, int]] = object_store.list_objects(url, recursive=True)
    elif is_local(url):
        found = walk_files(local_path(url), everything=everything)
    else:
        filesystem, path = _resolve(url)
        root = filesystem._strip_protocol(path)
        entries = filesystem.find(path, detail=True) if filesystem.isdir(path) else {}
        found = ((name.removeprefix(f"{root}/"), int(entry["size"])) for name, entry in entries.items())
    with storage_errors("list", url):
        return {name: size for name, size in sorted(found) if everything or not is_hidden(name)}


def make_dir(url: str) -> None:
    """Create a folder and its parents (no-op in an object store)."""
    if _on_s3(url):
        return
    filesystem, path = _resolve(url)
    with storage_errors("create folder", url):
        filesystem.makedirs(path, exist_ok=True)


def read_bytes(url: str) -> bytes:
    """Read a whole file; an object of a store is checked as in `fetch`."""
    if _on_s3(url):
        content = io.BytesIO()
        fetch(url, content)
        return content.getvalue()
    filesystem, path = _resolve(url)
    with storage_errors("read", url):
        return bytes(filesystem.cat_file(path))


def read_range(url: str, start: int, size: int) -> bytes:
    """Read ``size`` bytes from offset ``start``; fewer are returned only at the end of the file.

    Only the length is checked; `read_checked` also checks the content.
    """
    with storage_errors("read", url):
        if not _on_s3(url):
            filesystem, path = _resolve(url)
            return bytes(filesystem.cat_file(path, start=start, end=start + size))
        try:
            return object_store.read_range(url, start, size)[0] if size else b""
        except BeyondEnd:
            return b""


def read_checked(url: str, start: int, size: int, check: Callable[[bytes], str]) -> bytes:
    """Read a range until it passes the caller's check.

    Args:
        url: The file.
        start: First byte.
        size: Number of bytes.
        check: Returns a problem with the bytes or an empty string, e.g. after comparing a checksum. Not called if
            the length differs.

    Raises:
        CorruptShard: The bytes do not pass the check, see `read_until_valid`.
        StorageError: The disk or the store failed, or gave no valid answer within the deadline.
    """
    with store_connection.shared_deadline():
        return read_until_valid(lambda: _read_version(url, start, size), size, check, where=url)


def _read_version(url: str, start: int, size: int) -> tuple[bytes, str]:
    """Return (bytes, description of the version of the object; empty for a local file)."""
    if not _on_s3(url):
        return read_range(url, start, size), ""
    with storage_errors("read", url):
        try:
            data, info = object_store.read_range(url, start, size)
        except BeyondEnd:
            return b"", object_store.stat(url).describe()
    return data, info.describe()


def fetch(url: str, sink: IO[bytes], *, sha256: str = "") -> str:
    """Copy a whole file to the start of a stream and check it; return its sha256.

    Args:
        url: The file.
        sink: Open for writing and seeking; its content is replaced.
        sha256: Expected hash. Without one, an object of a store must match the hash recorded when it was written (its
            sha256, or the MD5 in its entity tag), else two reads must agree.

    Raises:
        CorruptShard: The content does not match; the message has both hashes.
        StorageError: The disk or the store failed, or gave no valid answer within the deadline.
    """
    with storage_errors("read", url):
        if _on_s3(url):
            return object_store.fetch(url, sink, sha256=sha256)
        with open_read(url) as source:
            sink.seek(0)
            sink.truncate()
            shutil.copyfileobj(source, sink, 2**20)
            source.seek(0)
            found = hashlib.file_digest(source, "sha256").hexdigest()  # type: ignore[arg-type]
    if sha256 and found != sha256:
        raise CorruptShard(f"sha256 {found} instead of {sha256}", where=url, reason="checksum")
    return found


def open_read(url: str, *, sha256: str = "") -> IO[bytes]:
    """Open a file for reading; the caller closes it.

    An object of a store is first copied and checked as in `fetch` (against ``sha256``, if given), and read from the
    copy: in memory up to 64 MiB, above that in an unnamed temporary file. A local file is not checked.
    """
    if not _on_s3(url):
        filesystem, path = _resolve(url)
        with storage_errors("open", url):
            stream: IO[bytes] = filesystem.open(path, "rb")
        return stream
    copy = _spool()
    try:
        fetch(url, copy, sha256=sha256)
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return copy


def _spool() -> IO[bytes]:
    """Return a temporary stream that leaves no file behind, even after a kill."""
    return tempfile.SpooledTemporaryFile(max_size=_SPOOL_IN_MEMORY_BYTES)


@contextmanager
def atomic_write(url: str) -> Iterator[IO[bytes]]:
    """Write a file that exists completely or not at all.

    Local: temporary name in the same folder, fsync, rename, fsync of the folder. Object store: the content is
    buffered (in memory up to 64 MiB, then in an unnamed file in ``TMPDIR``), sent with its hashes when it is
    complete, and verified afterwards.

    Raises:
        StorageError: The disk or the store failed; nothing is left under the final name.
    """
    with storage_errors("write", url):
        if is_local(url):
            with write_in_place(local_path(url).absolute()) as stream:
                yield stream
            return
        with _spool() as stream:
            yield stream
            if _on_s3(url):
                object_upload.put(url, stream)
                return
            filesystem, path = _resolve(url)
            stream.seek(0)
            filesystem.pipe_file(path, stream.read())


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_write(url) as stream:
        stream.write(data)


def remove(url: str, *, recursive: bool = False) -> None:
    """Remove a file or, with ``recursive``, a folder; not an error if it does not exist."""
    if _on_s3(url):
        if not object_store.split(url)[1]:
            raise StorageError("refusing to remove a whole bucket", where=url)
        below = [name for name, _ in object_store.list_objects(url, recursive=True)] if recursive else []
        object_store.delete([url, *(join(url, name) for name in below)])
        return
    filesystem, path = _resolve(url)
    with storage_errors("remove", url):
        try:
            filesystem.rm(path, recursive=recursive)
        except FileNotFoundError:
            return


def download_folder(url: str, local: Path) -> dict[str, str]:
    """Copy a folder without hidden files to a local folder; return the sha256 of each file by relative name.

    Each file is checked as in `fetch` and written atomically.

    Args:
        url: The folder.
        local: Destination; created if it is missing.

    Raises:
        StorageError: A name that would leave the folder, or the disk or the store failed.
        CorruptShard: A file does not match its hash.
    """

    def copy(name: str) -> str:
        if any(part in {"", ".", ".."} for part in name.split("/")) or not name.isprintable():
            raise StorageError(f"refusing to copy the name {name!r}", where=url)
        with atomic_write(str(local / name)) as stream:
            return fetch(join(url, name), stream)

    return _copy_files(list(list_files(url)), (), copy, where=url)


def upload_folder(local: Path, url: str, *, last: Sequence[str] = ()) -> dict[str, str]:
    """Copy a local folder without hidden files to a folder; return the sha256 of each file by relative name.

    Args:
        local: The folder.
        url: Destination.
        last: Names to copy after all others, in this order, e.g. the manifest that marks the folder as complete.

    Raises:
        StorageError: The disk or the store failed, or the store has other bytes than were sent.
    """

    def copy(name: str) -> str:
        with open_read(str(local / name)) as source:
            if _on_s3(url):
                with storage_errors("write", join(url, name)):
                    return object_upload.put(join(url, name), source)
            with atomic_write(join(url, name)) as stream:
                return fetch(str(local / name), stream)

    return _copy_files(list(list_files(str(local))), last, copy, where=str(local))


def _copy_files(names: list[str], last: Sequence[str], copy: Callable[[str], str], *, where: str) -> dict[str, str]:
    missing = [name for name in last if name not in names]
    if missing:
        raise StorageError(f"not in the folder: {', '.join(missing)}", where=where)
    first = [name for name in names if name not in last]
    with ThreadPoolExecutor(_TRANSFERS_AT_ONCE) as pool:
        copied = dict(zip(first, pool.map(copy, first), strict=True))  # an error cancels what has not started
    return {**copied, **{name: copy(name) for name in last}}
