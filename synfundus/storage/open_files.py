"""A bounded pool of open shard files per process.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

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

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """Provide a descriptor that is valid within the block; `acquire` and `release` are faster."""
        handle = self.acquire()
        try:
            yield handle.descriptor
        finally:
            self.release(handle)

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
