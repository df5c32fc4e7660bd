"""Byte ranges of a shard, from a file or an object store, checked by the caller.

A local file is read with ``pread``: no shared position, no mapped pages, which would kill the process if the file were
truncated, and no copy between the file and the caller's buffer.

A set can have more shards than a process may have open files. The least recently read files are then closed, and
reopened on the next read; their indices stay in memory. A file is never closed during a read.
"""

from __future__ import annotations

import atexit
import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Protocol

from synfundus.errors import CorruptShard, StorageError
from synfundus.storage import filesystem


class ByteSource(Protocol):
    """Source of the bytes of a shard."""

    @property
    def is_local(self) -> bool:
        """Whether reads use a local file instead of requests to a store."""

    def read(self, start: int, size: int, check: Callable[[bytes], str]) -> bytes:
        """Return a range for which ``check`` returns no problem (an empty string).

        Raises:
            CorruptShard: The bytes do not pass the check after repeated reads.
        """

    def read_into(self, start: int, buffers: Sequence[memoryview], check: Callable[[], str]) -> None:
        """Fill buffers with the bytes from an offset; ``check`` then returns a problem or an empty string.

        Raises:
            CorruptShard: The bytes do not pass the check after repeated reads.
        """

    def close(self) -> None:
        """Close open files."""


def open_byte_source(url: str) -> ByteSource:
    """Return the source of a location."""
    return LocalBytes(filesystem.local_path(url), url) if filesystem.is_local(url) else RemoteBytes(url)


class LocalBytes:
    """Bytes of a file.

    Args:
        path: The file.
        url: Its location, for messages.
        stream: The file, if it is already open.
        open_stream: Reopens it; None opens the path.
    """

    is_local = True

    def __init__(
        self,
        path: Path,
        url: str,
        *,
        stream: IO[bytes] | None = None,
        open_stream: Callable[[], IO[bytes]] | None = None,
    ) -> None:
        self._url = url
        self._file = OpenFile(open_stream or (lambda: path.open("rb", buffering=0)), stream)

    def _attempts(self, attempt: Callable[[int], str]) -> None:
        """Try twice, the second time with the file reopened: a handle can go stale on a shared file system."""
        for last in (False, True):
            opened = False
            try:
                handle = self._file.acquire()
                opened = True
                try:
                    problem = attempt(handle.descriptor)
                finally:
                    self._file.release(handle)
            except OSError as error:
                if last:
                    action = "read" if opened else "open"
                    raise StorageError(f"cannot {action}: {error.strerror or error}", where=self._url) from error
            else:
                if not problem:
                    return
                if last:
                    raise CorruptShard(problem, where=self._url, reason="checksum")
            self._file.close()

    def read(self, start: int, size: int, check: Callable[[bytes], str]) -> bytes:
        """Return a range that passes the check."""
        data = b""

        def attempt(descriptor: int) -> str:
            nonlocal data
            data = os.pread(descriptor, size, start)
            return check(data)

        self._attempts(attempt)
        return data

    def read_into(self, start: int, buffers: Sequence[memoryview], check: Callable[[], str]) -> None:
        """Fill buffers with bytes that pass the check."""
        size = sum(map(len, buffers))

        def attempt(descriptor: int) -> str:
            found = os.preadv(descriptor, buffers, start)
            return check() if found == size else f"{found} of {size} bytes are there"

        self._attempts(attempt)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RemoteBytes:
    """Bytes of an object, one request per range."""

    is_local = False

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self, start: int, size: int, check: Callable[[bytes], str]) -> bytes:
        """Return a range that passes the check."""
        return filesystem.read_checked(self._url, start, size, check)

    def read_into(self, start: int, buffers: Sequence[memoryview], check: Callable[[], str]) -> None:
        """Fill buffers with bytes that pass the check."""

        def unpack(data: bytes) -> str:
            at = 0
            for buffer in buffers:
                buffer[:] = data[at : at + len(buffer)]
                at += len(buffer)
            return check()

        self.read(start, sum(map(len, buffers)), unpack)

    def close(self) -> None:
        """Nothing to close."""


_MAX_OPEN = 4096
"""As many descriptors again are left for sockets, pipes and libraries."""


class Handle:
    """An open stream, its number of readers, and whether it is closed after the last one."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.descriptor = stream.fileno()
        self.readers = 0
        self.is_retired = False


class _Pool:
    """The open files of this process, in order of use once the pool is half full."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # garbage collection of a reader can close its files at any point
        self.open: OrderedDict[OpenFile, Handle] = OrderedDict()
        self._capacity = 0

    @property
    def is_half_full(self) -> bool:
        """Whether files may soon have to be closed, so that the order of use matters."""
        return 2 * len(self.open) > self._capacity

    def retire(self, file: OpenFile) -> None:
        """Close a file, after its last reader if it has any; the caller holds the lock."""
        handle = self.open.pop(file, None)
        if handle is not None:
            handle.is_retired = True
            if not handle.readers:
                handle.stream.close()

    def close_idle(self, limit: int | None = None) -> None:
        """Close the least recently used files without readers until ``limit`` are left; the caller holds the lock."""
        self._capacity = self._capacity or _pool_capacity()
        limit = self._capacity if limit is None else limit
        if len(self.open) <= limit:
            return
        for file, handle in list(self.open.items()):
            if not handle.readers:
                self.retire(file)
                if len(self.open) <= limit:
                    return


_pool = _Pool()


def _reset_pool() -> None:
    """Start without the parent's files: one of its threads may have held the lock."""
    global _pool
    _pool = _Pool()


os.register_at_fork(after_in_child=_reset_pool)


@atexit.register
def _close_all() -> None:
    with _pool.lock:
        for file in list(_pool.open):
            _pool.retire(file)


class OpenFile:
    """A file that is opened on demand.

    Args:
        open_stream: Opens it; may be called by several threads.
        stream: The file, if it is already open.
    """

    def __init__(self, open_stream: Callable[[], IO[bytes]], stream: IO[bytes] | None = None) -> None:
        self._open_stream = open_stream
        if stream is not None:
            self._keep(stream)

    def acquire(self) -> Handle:
        """Return the open file; it stays open until every `acquire` has been matched by a `release`.

        Raises:
            OSError: It cannot be opened.
        """
        pool = _pool
        with pool.lock:
            handle = pool.open.get(self)
            if handle is not None:
                handle.readers += 1
                if pool.is_half_full:
                    pool.open.move_to_end(self)
                return handle
        return self._keep(self._opened(), readers=1)

    @staticmethod
    def release(handle: Handle) -> None:
        """End a read started with `acquire`."""
        with _pool.lock:
            handle.readers -= 1
            if handle.is_retired and not handle.readers:
                handle.stream.close()

    def _opened(self) -> IO[bytes]:
        try:
            return self._open_stream()
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE}:
                raise
        with _pool.lock:  # other code of this process holds more than was left for it
            _pool.close_idle(len(_pool.open) // 2)
        return self._open_stream()

    def _keep(self, stream: IO[bytes], *, readers: int = 0) -> Handle:
        with _pool.lock:
            handle = _pool.open.get(self)
            if handle is None:
                handle = _pool.open[self] = Handle(stream)
            else:  # another thread was faster
                stream.close()
            handle.readers += readers
            _pool.close_idle()
            return handle

    def close(self) -> None:
        """Close the file after its last reader; the next read reopens it."""
        with _pool.lock:
            _pool.retire(self)


def _pool_capacity() -> int:
    """Raise the limit of open files as far as allowed and useful; return how many are for shards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _MAX_OPEN
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        except (OSError, ValueError):  # a container may forbid it
            pass
    if soft == resource.RLIM_INFINITY:
        return _MAX_OPEN
    return max(8, min(_MAX_OPEN, soft // 2))
