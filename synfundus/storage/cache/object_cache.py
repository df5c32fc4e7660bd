"""Local copies of remote shards, shared by the processes of a machine and bounded in size.

A copy is named by the hash of its location and content. It is downloaded under a temporary name, checked against its
sha256 and renamed. All locks are ``flock`` locks, which are released when their process ends: a download lock, chosen
by the name of the copy; a lock on the copy, shared by its readers, so that it is not removed while it is read; a lock
on the folder while space is freed. A kill at any point leaves no invalid copy and no process waiting. The folder must
be on a local disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from synfundus.errors import StorageError
from synfundus.storage import filesystem
from synfundus.storage.local_folder import holds_ours
from synfundus.storage.s3 import store_connection

_DOWNLOAD_LOCKS = 4096
_POLL_S = 0.05
_PROGRESS_CHECK_S = 1.0
_MAX_ROUNDS = 8
_COPY, _RECORD, _PART = ".copy", ".json", ".part"
_FOLDER = r"(objects|locks)(/.*)?|room\.lock"
_OURS = re.compile(r"[0-9a-f]{64}\.")
_TOO_SMALL = "raise storage.cache_max_bytes"
_DISK_FULL = "free some space, or put storage.cache_dir on a larger disk"


class CacheFull(StorageError):
    """No space for a copy: it is larger than the cache, or the others are being read. Read from the store instead."""


@dataclass(frozen=True)
class _Entry:
    """The location and content hash of a copy, and its name."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        return hashlib.sha256(f"{self.sha256}\n{self.url}".encode()).hexdigest()


class ObjectCache:
    """Copies of remote files in a local folder.

    Args:
        folder: Created if it is missing, for this user only.
        max_bytes: Maximum size of all copies; the least recently used are removed for new ones.

    Raises:
        ConfigError: It holds something else.
        StorageError: The folder cannot be created, or others may write to it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder.absolute()
        self._objects, self._locks = self._folder / "objects", self._folder / "locks"
        self._max_bytes = max_bytes
        self._verified: dict[str, tuple[int, int, int]] = {}
        holds_ours(str(self._folder), proof=["locks"], beside=_FOLDER, flag="--cache-dir")
        with self._disk_errors():
            for part in (self._folder, self._objects, self._locks):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self._folder.stat()
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StorageError(
                "the cache folder belongs to another user, or others may write to it",
                where=str(self._folder),
                hint="use your own folder, with chmod 700",
            )

    def open(self, url: str, *, sha256: str, size: int | None = None) -> IO[bytes]:
        """Return a copy of a file, open for reading; downloaded if missing, verified once per process.

        It is not removed while it is open.

        Args:
            url: The file.
            sha256: Its expected hash.
            size: Its size in bytes, if known.

        Raises:
            CorruptShard: The file in the store does not have this hash.
            CacheFull: There is no space for it.
            StorageError: The disk or the store failed.
        """
        entry = _Entry(url, sha256)
        with self._disk_errors():
            for _ in range(_MAX_ROUNDS):
                found = self._open_verified(entry) or self._fill(entry, size)
                if found is not None:
                    return found
        raise CacheFull("copies are removed before they are read", where=str(self._folder), hint=_TOO_SMALL)

    def discard(self, url: str, *, sha256: str) -> None:
        """Remove a copy that turned out to be damaged; the next `open` downloads it again."""
        entry = _Entry(url, sha256)
        self._verified.pop(entry.name, None)
        with self._disk_errors():
            self._path(entry, _COPY).unlink(missing_ok=True)
            self._path(entry, _RECORD).unlink(missing_ok=True)

    def _path(self, entry: _Entry, suffix: str) -> Path:
        return self._objects / f"{entry.name}{suffix}"

    def _open_verified(self, entry: _Entry) -> IO[bytes] | None:
        """Open a copy if it is valid; remove it if it is not."""
        path = self._path(entry, _COPY)
        try:
            found = open_shared(path)
        except FileNotFoundError:
            return None
        try:
            descriptor = found.fileno()
            status = os.fstat(descriptor)
            if status.st_nlink and self._is_valid(entry, found, status):
                os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))  # last use; not all mounts record it
                found.seek(0)
                return found
            with suppress(FileNotFoundError):
                if path.stat().st_ino == status.st_ino:
                    path.unlink()
        except BaseException:
            found.close()
            raise
        found.close()
        return None

    def _is_valid(self, entry: _Entry, stream: IO[bytes], status: os.stat_result) -> bool:
        if self._verified.get(entry.name) == _identity(status):
            return True
        if _read_record(self._path(entry, _RECORD)) != _record(status):
            return False
        if hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:  # type: ignore[arg-type]
            return False
        self._verified[entry.name] = _identity(status)
        return True

    def _fill(self, entry: _Entry, size: int | None) -> IO[bytes] | None:
        """Download a copy and return it open; None if another process did so in the meantime."""
        with self._download_lock(entry):
            if self._path(entry, _COPY).exists():
                return None
            return self._download(entry, filesystem.file_size(entry.url) if size is None else size)

    @contextmanager
    def _download_lock(self, entry: _Entry) -> Iterator[None]:
        """Hold the download lock; continue without it if its holder downloads nothing within the deadline.

        Two downloads of one copy are wasteful but safe: each is complete when it is renamed.
        """
        number = int(entry.name[:8], 16) % _DOWNLOAD_LOCKS
        deadline_s = store_connection.current_settings().deadline_s
        with _open_private(self._locks / f"{number:03x}") as lock:
            before, since, checked = -1, time.monotonic(), 0.0
            while not _try_lock(lock):
                time.sleep(_POLL_S)
                now = time.monotonic()
                if now - checked < _PROGRESS_CHECK_S:
                    continue
                checked, progress = now, self._bytes_so_far(entry)
                if progress != before:
                    before, since = progress, now
                elif now - since > deadline_s:
                    break
            yield

    def _bytes_so_far(self, entry: _Entry) -> int:
        return sum(status.st_size for path, status in self._files(_PART) if path.name.startswith(entry.name))

    def _download(self, entry: _Entry, size: int) -> IO[bytes]:
        part, stream = self._reserve(entry, size)
        try:
            with stream:
                filesystem.fetch(entry.url, stream, sha256=entry.sha256)
                stream.flush()
                status = os.fstat(stream.fileno())
                # the record first: a copy without one is not valid
                _write_record(self._path(entry, _RECORD), status)
                fcntl.flock(stream, fcntl.LOCK_SH)  # so that readers need not wait for this process
                part.replace(self._path(entry, _COPY))
                self._verified[entry.name] = _identity(status)
                return open_shared(self._path(entry, _COPY))
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, entry: _Entry, size: int) -> tuple[Path, IO[bytes]]:
        """Free and reserve space; the name of a part contains its final size, its lock marks its writer as alive."""
        part = self._objects / f"{entry.name}.{size}.{secrets.token_hex(4)}{_PART}"
        with _open_private(self._folder / "room.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._remove_leftovers()
            self._free_space(size)
            stream = _open_private(part)
            fcntl.flock(stream, fcntl.LOCK_EX)
        return part, stream

    def _free_space(self, size: int) -> None:
        if size > self._max_bytes:  # before anything is removed for nothing
            raise CacheFull(
                f"{size} bytes do not fit into the cache ({self._max_bytes} bytes)",
                where=str(self._folder),
                hint=_TOO_SMALL,
            )
        copies = sorted(self._files(_COPY), key=lambda item: item[1].st_atime_ns)
        used = sum(status.st_size for _, status in copies)
        used += sum(int(path.name.split(".")[1]) for path, _ in self._files(_PART))
        for path, status in copies:
            if used + size <= self._max_bytes and size <= self._free_bytes():
                return
            if _remove_if_idle(path):
                path.with_suffix(_RECORD).unlink(missing_ok=True)
                used -= status.st_size
        if used + size > self._max_bytes or size > self._free_bytes():
            raise CacheFull(
                f"no space for {size} bytes: {used} of {self._max_bytes} are in use, the disk has {self._free_bytes()}",
                where=str(self._folder),
                hint=_TOO_SMALL if used + size > self._max_bytes else _DISK_FULL,
            )

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._folder).free

    def _remove_leftovers(self) -> None:
        """Remove parts whose writer was killed, and records without a copy."""
        for path, _ in self._files(_PART):
            _remove_if_idle(path)
        in_progress = {path.name.split(".")[0] for path, _ in self._files(_PART)}
        for path, _ in self._files(_RECORD):
            if path.stem not in in_progress and not path.with_suffix(_COPY).exists():
                path.unlink(missing_ok=True)

    def _files(self, suffix: str) -> list[tuple[Path, os.stat_result]]:
        found = []
        with os.scandir(self._objects) as entries:
            for item in entries:
                if item.name.endswith(suffix) and _OURS.match(item.name):
                    with suppress(FileNotFoundError):
                        found.append((Path(item.path), item.stat()))
        return found

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"the cache cannot be used: {error.strerror or type(error).__name__}",
                where=str(self._folder),
                hint="check the disk, or run without storage.cache_dir",
            ) from error


def configured_cache() -> ObjectCache | None:
    """Return the configured cache, or None.

    Raises:
        StorageError: Its folder cannot be used.
    """
    settings = store_connection.current_settings()
    return None if settings.cache_dir is None else ObjectCache(Path(settings.cache_dir), settings.cache_max_bytes)


def _open_private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")


def open_shared(path: Path) -> IO[bytes]:
    """Open a file with a shared lock until it is closed; it may have been removed before the lock was acquired."""
    stream = path.open("rb")
    fcntl.flock(stream, fcntl.LOCK_SH)
    return stream


def _try_lock(stream: IO[bytes]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_if_idle(path: Path) -> bool:
    """Remove a file unless it is locked; return whether it is gone."""
    try:
        with path.open("rb") as stream:
            if not _try_lock(stream):
                return False
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    return True


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _record(status: os.stat_result) -> dict[str, int]:
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _read_record(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _write_record(path: Path, status: os.stat_result) -> None:
    with _open_private(path) as stream:
        stream.truncate()
        stream.write(json.dumps(_record(status)).encode())
