"""Shards of an object store through the local cache: from the copy when it is there or soon will be, else the store.

The first read of a shard asks for its copy in the background. A request for one sample costs the store and us about as
much as a megabyte of a copy, so a read waits while all copies that were asked for are seconds away. A set too large
for that, or a slow line, shows within two seconds; then samples are requested one by one until the copies are there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress

from synfundus.errors import CorruptShard, StorageError, SynfundusError
from synfundus.processes.daemon_threads import DaemonThreads
from synfundus.storage.byte_source import LocalBytes, RemoteBytes
from synfundus.storage.cache.object_cache import CachedFile, ObjectCache, open_shared

_DOWNLOADS = 2
_SOON_S = 10.0
_FIRST_PATIENCE_S = 2.0
_LONGEST_WAIT_S = 20.0
_LOOK_EVERY_S = 0.25


class ShardCache:
    """Copies of shards, made in the background; one for each process that reads.

    Args:
        cache: The folder of copies, shared with other processes.
    """

    def __init__(self, cache: ObjectCache) -> None:
        self._cache = cache
        self._downloads = DaemonThreads(_DOWNLOADS, name="shard-cache")
        self._began = 0.0
        self._asked = self._done = 0

    def source(self, url: str, *, sha256: str, size: int) -> CachedBytes:
        """Return the bytes of a shard."""
        return CachedBytes(self, url, sha256=sha256, size=size)

    def request(self, url: str, *, sha256: str, size: int) -> Future[CachedFile]:
        """Ask for a copy."""
        if self._asked == self._done:
            self._began, self._asked, self._done = time.monotonic(), 0, 0
        self._asked += 1
        wanted = self._downloads.submit(self._download, url, sha256, size)
        wanted.add_done_callback(self._count)
        return wanted

    def _download(self, url: str, sha256: str, size: int) -> CachedFile:
        return self._cache.open(url, sha256=sha256, size=size)

    def _count(self, _: Future[CachedFile]) -> None:
        self._done += 1

    def wait_for(self, wanted: Future[CachedFile]) -> None:
        """Wait for a copy while all that were asked for are a matter of seconds, by the pace so far."""
        ends = time.monotonic() + _LONGEST_WAIT_S
        while not wanted.done() and time.monotonic() < ends and self._is_soon():
            wait([wanted], timeout=_LOOK_EVERY_S)

    def _is_soon(self) -> bool:
        elapsed_s = time.monotonic() - self._began
        if self._done == 0:
            return elapsed_s < _FIRST_PATIENCE_S
        return (self._asked - self._done) * elapsed_s / self._done < _SOON_S

    def discard(self, url: str, *, sha256: str) -> None:
        """Remove a copy that proved wrong."""
        self._cache.discard(url, sha256=sha256)

    def close(self) -> None:
        """Ask for nothing more; downloads that have begun end on their own."""
        self._downloads.close()


class CachedBytes:
    """Bytes of a remote shard, from its copy once that is there."""

    def __init__(self, shards: ShardCache, url: str, *, sha256: str, size: int) -> None:
        self._shards = shards
        self._url, self._sha256, self._size = url, sha256, size
        self._remote = RemoteBytes(url)
        self._copy: LocalBytes | None = None
        self._wanted: Future[CachedFile] | None = None
        self._lock = threading.Lock()

    @property
    def is_here(self) -> bool:
        """Whether reads come from the disk; the first question asks for the copy."""
        return self._find_copy(patient=False) is not None

    def _find_copy(self, *, patient: bool) -> LocalBytes | None:
        if self._copy is not None:
            return self._copy
        wanted = self._wanted
        if patient and wanted is not None:
            self._shards.wait_for(wanted)
        with self._lock:
            return self._take_copy()

    def _take_copy(self) -> LocalBytes | None:
        """Open the copy if it has come, ask for it if nobody has."""
        if self._copy is not None:  # another thread was faster
            return self._copy
        if self._wanted is None:
            self._wanted = self._shards.request(self._url, sha256=self._sha256, size=self._size)
        if self._wanted.done():
            # no room, a full disk, a damaged object: what is needed is read from the store, which says the rest
            with suppress(SynfundusError, CancelledError):
                found = self._wanted.result()
                path = found.path
                self._copy = LocalBytes(
                    path, self._url, stream=found.stream, open_stream=lambda: open_shared(path).stream
                )
        return self._copy

    def read(self, start: int, size: int, wrong: Callable[[bytes], str]) -> bytes:
        """Return a range that proved right."""
        copy = self._find_copy(patient=True)
        if copy is not None:
            try:
                return copy.read(start, size, wrong)
            except (CorruptShard, StorageError):
                self._drop(copy)
        return self._remote.read(start, size, wrong)

    def read_into(self, start: int, buffers: Sequence[memoryview], wrong: Callable[[], str]) -> None:
        """Fill buffers with bytes that prove right."""
        copy = self._find_copy(patient=True)
        if copy is not None:
            try:
                copy.read_into(start, buffers, wrong)
            except (CorruptShard, StorageError):
                self._drop(copy)
            else:
                return
        self._remote.read_into(start, buffers, wrong)

    def _drop(self, copy: LocalBytes) -> None:
        """Forget a copy that has changed under us or cannot be read, and have it made again: the store has it."""
        with self._lock:
            if self._copy is copy:
                self._copy, self._wanted = None, None
                copy.close()
                with suppress(StorageError):  # a disk that fails here fails the next download too, which is no harm
                    self._shards.discard(self._url, sha256=self._sha256)

    def close(self) -> None:
        """Let the copy go."""
        with self._lock:
            if self._copy is not None:
                self._copy.close()
                self._copy = None
            elif self._wanted is not None and not self._wanted.cancel():
                self._wanted.add_done_callback(_let_go)
            self._wanted = None


def _let_go(wanted: Future[CachedFile]) -> None:
    if not wanted.cancelled() and wanted.exception() is None:
        wanted.result().close()
