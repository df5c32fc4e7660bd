"""Local copies of remote shards, shared by the processes of a machine and bounded in size.

A copy is kept under the hash of its location and content. It is downloaded under a temporary name, checked against
its sha256 and put in place by a rename. Locks are ``flock`` locks, which end with their process however it ends: one
on a number that the copy's name falls on, held while it is downloaded; one on the copy itself, shared by its readers,
so that what is read is not removed; one on the folder, while room is made. So a kill at any point leaves nothing that
counts and nobody waiting. The folder must be on a local disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from synfundus.errors import StorageError
from synfundus.storage import filesystem
from synfundus.storage.s3 import store_settings

_DOWNLOAD_LOCKS = 4096
_POLL_S = 0.05
_LOOK_EVERY_S = 1.0
_MOST_ROUNDS = 8
_COPY, _RECORD, _PART = ".copy", ".json", ".part"


class CacheFull(StorageError):
    """There is no room for a copy: it is larger than the cache, or what is there is being read. Read the store."""


@dataclass(frozen=True)
class _Entry:
    """A copy's name and what must be in it."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        return hashlib.sha256(f"{self.sha256}\n{self.url}".encode()).hexdigest()


class CachedFile:
    """A copy that stays while this is open.

    Attributes:
        path: Where it lies; for memory maps and ``pread``. Do not write to it.
        stream: Open for reading.
    """

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path = path
        self.stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the copy go; it may be removed from now on."""
        self.stream.close()  # which gives up the shared lock


class ObjectCache:
    """Copies of remote files in a local folder.

    Args:
        folder: Made if it is not there, for this user alone.
        max_bytes: Most bytes of copies; those used longest ago are removed for new ones.

    Raises:
        StorageError: The folder cannot be made, or others may write to it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder.absolute()
        self._max_bytes = max_bytes
        self._proved: dict[str, tuple[int, int, int]] = {}
        with self._disk_errors():
            for part in (self._folder, self._objects, self._locks):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
            facts = self._folder.stat()
        if facts.st_uid != os.geteuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StorageError(
                "the cache folder belongs to somebody else, or others may write to it",
                where=str(self._folder),
                hint="take a folder of your own: chmod 700",
            )

    @property
    def _objects(self) -> Path:
        return self._folder / "objects"

    @property
    def _locks(self) -> Path:
        return self._folder / "locks"

    def open(self, url: str, *, sha256: str, size: int | None = None) -> CachedFile:
        """Return an open copy of a file; downloaded if it is not there, proved once in each process.

        Args:
            url: The file.
            sha256: The hash it must have.
            size: Its bytes, if known.

        Raises:
            CorruptShard: The file in the store does not have this hash.
            CacheFull: There is no room for it.
            StorageError: The disk or the store refused.
        """
        entry = _Entry(url, sha256)
        with self._disk_errors():
            for _ in range(_MOST_ROUNDS):
                found = self._open_proved(entry) or self._fill(entry, size)
                if found is not None:
                    return found
        raise CacheFull("copies are removed before they are read", where=str(self._folder), hint="take a larger cache")

    def discard(self, url: str, *, sha256: str) -> None:
        """Remove a copy whose bytes proved wrong after all; the next `open` downloads it again."""
        entry = _Entry(url, sha256)
        self._proved.pop(entry.name, None)
        with self._disk_errors():
            self._path(entry, _COPY).unlink(missing_ok=True)
            self._path(entry, _RECORD).unlink(missing_ok=True)

    def _path(self, entry: _Entry, suffix: str) -> Path:
        return self._objects / f"{entry.name}{suffix}"

    def _open_proved(self, entry: _Entry) -> CachedFile | None:
        """Open a copy that is whole and right; one that is not is removed."""
        path = self._path(entry, _COPY)
        try:
            found = open_shared(path)
        except FileNotFoundError:
            return None
        try:
            descriptor = found.stream.fileno()
            facts = os.fstat(descriptor)
            if facts.st_nlink and self._is_right(entry, found.stream, facts):
                os.utime(descriptor, ns=(time.time_ns(), facts.st_mtime_ns))  # last use; the system may not keep it
                found.stream.seek(0)
                return found
            with suppress(FileNotFoundError):
                if path.stat().st_ino == facts.st_ino:
                    path.unlink()
        except BaseException:
            found.close()
            raise
        found.close()
        return None

    def _is_right(self, entry: _Entry, stream: IO[bytes], facts: os.stat_result) -> bool:
        if self._proved.get(entry.name) == _mark(facts):
            return True
        if _read_record(self._path(entry, _RECORD)) != _record(facts):
            return False
        if hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:  # type: ignore[arg-type]
            return False
        self._proved[entry.name] = _mark(facts)
        return True

    def _fill(self, entry: _Entry, size: int | None) -> CachedFile | None:
        """Download a copy and return it open; None if another process did so meanwhile."""
        with self._download_lock(entry):
            if self._path(entry, _COPY).exists():
                return None
            return self._download(entry, filesystem.file_size(entry.url) if size is None else size)

    @contextmanager
    def _download_lock(self, entry: _Entry) -> Iterator[None]:
        """Wait for the turn to download; go ahead without it when whoever has it brings no bytes for a deadline.

        Two downloads of one copy are a waste and no harm: the rename makes either of them whole.
        """
        number = int(entry.name[:8], 16) % _DOWNLOAD_LOCKS
        patience_s = store_settings.current().deadline_s
        with _open_private(self._locks / f"{number:03x}") as lock:
            before, since, looked = -1, time.monotonic(), 0.0
            while not _try_lock(lock):
                time.sleep(_POLL_S)
                now = time.monotonic()
                if now - looked < _LOOK_EVERY_S:
                    continue
                looked, progress = now, self._bytes_so_far(entry)
                if progress != before:
                    before, since = progress, now
                elif now - since > patience_s:
                    break
            yield

    def _bytes_so_far(self, entry: _Entry) -> int:
        return sum(facts.st_size for path, facts in self._files(_PART) if path.name.startswith(entry.name))

    def _download(self, entry: _Entry, size: int) -> CachedFile:
        part, stream = self._reserve(entry, size)
        try:
            with stream:
                filesystem.fetch(entry.url, stream, sha256=entry.sha256)
                stream.flush()
                facts = os.fstat(stream.fileno())
                # the record first: a copy without one does not count
                _write_record(self._path(entry, _RECORD), facts)
                fcntl.flock(stream, fcntl.LOCK_SH)  # readers need not wait for this process to go on
                part.replace(self._path(entry, _COPY))
                self._proved[entry.name] = _mark(facts)
                return open_shared(self._path(entry, _COPY))
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, entry: _Entry, size: int) -> tuple[Path, IO[bytes]]:
        """Make room and take it: the name of a part says how large it will be, its lock that its writer lives."""
        part = self._objects / f"{entry.name}.{size}.{secrets.token_hex(4)}{_PART}"
        with _open_private(self._folder / "room.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._remove_what_kills_left()
            self._make_room(size)
            stream = _open_private(part)
            fcntl.flock(stream, fcntl.LOCK_EX)
        return part, stream

    def _make_room(self, size: int) -> None:
        if size > self._max_bytes:  # before anything is removed in vain
            raise CacheFull(
                f"{size} bytes are more than the cache may hold ({self._max_bytes})",
                where=str(self._folder),
                hint="raise storage.cache_max_bytes",
            )
        copies = sorted(self._files(_COPY), key=lambda item: item[1].st_atime_ns)
        used = sum(facts.st_size for _, facts in copies)
        used += sum(int(path.name.split(".")[1]) for path, _ in self._files(_PART))
        for path, facts in copies:
            if used + size <= self._max_bytes and size <= self._free_bytes():
                return
            if _remove_if_idle(path):
                path.with_suffix(_RECORD).unlink(missing_ok=True)
                used -= facts.st_size
        if used + size > self._max_bytes or size > self._free_bytes():
            raise CacheFull(
                f"no room for {size} bytes: {used} of {self._max_bytes} are in use, the disk has {self._free_bytes()}",
                where=str(self._folder),
                hint="raise storage.cache_max_bytes, or take a larger disk",
            )

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._folder).free

    def _remove_what_kills_left(self) -> None:
        """Remove parts without a living writer, and records whose copy did not follow."""
        for path, _ in self._files(_PART):
            _remove_if_idle(path)
        under_way = {path.name.split(".")[0] for path, _ in self._files(_PART)}
        for path, _ in self._files(_RECORD):
            if path.stem not in under_way and not path.with_suffix(_COPY).exists():
                path.unlink(missing_ok=True)

    def _files(self, suffix: str) -> list[tuple[Path, os.stat_result]]:
        found = []
        with os.scandir(self._objects) as entries:
            for item in entries:
                if item.name.endswith(suffix):
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
    """Return the cache that the settings ask for, or None.

    Raises:
        StorageError: Its folder cannot be used.
    """
    settings = store_settings.current()
    return None if settings.cache_dir is None else ObjectCache(Path(settings.cache_dir), settings.cache_max_bytes)


def _open_private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")


def open_shared(path: Path) -> CachedFile:
    """Open a file under a shared lock; it may have been removed before the lock was there."""
    stream = path.open("rb")
    fcntl.flock(stream, fcntl.LOCK_SH)
    return CachedFile(path, stream)


def _try_lock(stream: IO[bytes]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_if_idle(path: Path) -> bool:
    """Remove a file nobody holds a lock on; returns whether it is gone."""
    try:
        with path.open("rb") as stream:
            if not _try_lock(stream):
                return False
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    return True


def _mark(facts: os.stat_result) -> tuple[int, int, int]:
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _record(facts: os.stat_result) -> dict[str, int]:
    return {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns}


def _read_record(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _write_record(path: Path, facts: os.stat_result) -> None:
    with _open_private(path) as stream:
        stream.truncate()
        stream.write(json.dumps(_record(facts)).encode())
