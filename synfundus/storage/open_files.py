"""The descriptors a process keeps open for its shards: as many as the system allows, and no more.

A set can have more shards than a process may have files. Those read longest ago are closed then, and opened again when
they are read; their indices stay. A file is never closed while somebody reads from it.
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

_MOST_OPEN = 4096
"""Shards; as many descriptors again are left for sockets, pipes and libraries."""


class Handle:
    """An open stream, how many read from it, and whether it is to be closed after the last of them."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.descriptor = stream.fileno()
        self.readers = 0
        self.is_retired = False


class _Pool:
    """The open files of this process, those used last at the end once there are many."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a reader that the garbage collector ends closes its files wherever we are
        self.open: OrderedDict[OpenFile, Handle] = OrderedDict()
        self._most = 0

    @property
    def is_half_full(self) -> bool:
        """Whether one may have to go soon, and the order of use is worth keeping."""
        return 2 * len(self.open) > self._most

    def retire(self, file: OpenFile) -> None:
        """Close a file, after its readers if it has any; the lock is held."""
        handle = self.open.pop(file, None)
        if handle is not None:
            handle.is_retired = True
            if not handle.readers:
                handle.stream.close()

    def make_room(self, most: int | None = None) -> None:
        """Close those used longest ago that nobody reads from, until so many are left; the lock is held."""
        self._most = self._most or _most_open()
        most = self._most if most is None else most
        if len(self.open) <= most:
            return
        for file, handle in list(self.open.items()):
            if not handle.readers:
                self.retire(file)
                if len(self.open) <= most:
                    return


_pool = _Pool()


def _start_without_files() -> None:
    """Leave the parent's files to the parent: another thread of it may have held the lock."""
    global _pool
    _pool = _Pool()


os.register_at_fork(after_in_child=_start_without_files)


@atexit.register
def _close_all() -> None:
    with _pool.lock:
        for file in list(_pool.open):
            _pool.retire(file)


class OpenFile:
    """A file that is opened when it is read.

    Args:
        open_stream: Opens it; may be called by several threads.
        stream: The file, where it is open already.
    """

    def __init__(self, open_stream: Callable[[], IO[bytes]], stream: IO[bytes] | None = None) -> None:
        self._open_stream = open_stream
        if stream is not None:
            self._keep(stream)

    def acquire(self) -> Handle:
        """Return the open file; it stays open until it is released, once for each time it was acquired.

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
        """Say that one who read is done."""
        with _pool.lock:
            handle.readers -= 1
            if handle.is_retired and not handle.readers:
                handle.stream.close()

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """Give a descriptor that stays valid within the block; `acquire` and `release` are faster."""
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
        with _pool.lock:  # others of this process hold more than was left for them
            _pool.make_room(len(_pool.open) // 2)
        return self._open_stream()

    def _keep(self, stream: IO[bytes], *, readers: int = 0) -> Handle:
        with _pool.lock:
            handle = _pool.open.get(self)
            if handle is None:
                handle = _pool.open[self] = Handle(stream)
            else:  # another thread was faster
                stream.close()
            handle.readers += readers
            _pool.make_room()
            return handle

    def close(self) -> None:
        """Close it, after those who are reading; reading opens it again."""
        with _pool.lock:
            _pool.retire(self)


def _most_open() -> int:
    """Raise this process's limit of open files as far as is allowed and useful; return how many are for shards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _MOST_OPEN
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        except (OSError, ValueError):  # a container may forbid it
            pass
    if soft == resource.RLIM_INFINITY:
        return _MOST_OPEN
    return max(8, min(_MOST_OPEN, soft // 2))
