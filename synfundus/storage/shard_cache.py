"""Shards of an object store through the local cache: read at once from the store, from the copy when it is there.

The first read of a shard asks for its copy in the background. So a first batch that touches many shards costs some
small requests and does not wait for many large files; what follows is read from the disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress

from synfundus.errors import CorruptShard, SynfundusError
from synfundus.storage.byte_source import LocalBytes, RemoteBytes
from synfundus.storage.object_cache import CachedFile, ObjectCache

_DOWNLOADS = 2
_SOON_S = 10.0
_FIRST_DIRECT = 64
_HEAD_START_S = 1.0


class ShardCache:
    """Copies of shards, made in the background; one for each process that reads.

    Args:
        cache: The folder of copies, shared with other processes.
    """

    def __init__(self, cache: ObjectCache) -> None:
        self._cache = cache
        self._downloads = ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="shard-cache")
        self._began = 0.0
        self._asked = self._done = self._direct = 0
        self._first_reads = threading.Event()

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
        self._first_reads.wait(_HEAD_START_S)  # the first batch is wanted sooner than anything else
        return self._cache.open(url, sha256=sha256, size=size)

    def _count(self, _: Future[CachedFile]) -> None:
        self._done += 1

    def should_wait(self) -> bool:
        """Whether a read should wait for its copy.

        It should when all copies that were asked for will be there in some seconds, by the pace so far: a request for
        one sample costs the store and us about as much as a megabyte of a copy. It should not for the first batch, and
        not while copies take minutes.
        """
        self._direct += 1
        if self._direct <= _FIRST_DIRECT:
            return False
        self._first_reads.set()
        pace_s = (time.monotonic() - self._began) / max(1, self._done)
        return self._done > 0 and (self._asked - self._done) * pace_s < _SOON_S

    def discard(self, url: str, *, sha256: str) -> None:
        """Remove a copy that proved wrong."""
        self._cache.discard(url, sha256=sha256)

    def close(self) -> None:
        """Ask for nothing more; downloads that have begun end on their own."""
        self._downloads.shutdown(wait=False, cancel_futures=True)


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
        if patient and wanted is not None and self._shards.should_wait():
            wait([wanted], timeout=2 * _SOON_S)
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
                self._copy = LocalBytes(found.path, self._url, release=found.close)
        return self._copy

    def read(self, start: int, size: int, wrong: Callable[[bytes], str]) -> bytes:
        """Return a range that proved right."""
        copy = self._find_copy(patient=True)
        if copy is not None:
            try:
                return copy.read(start, size, wrong)
            except CorruptShard:
                self._drop(copy)
        return self._remote.read(start, size, wrong)

    def read_into(self, start: int, buffers: Sequence[memoryview], wrong: Callable[[], str]) -> None:
        """Fill buffers with bytes that prove right."""
        copy = self._find_copy(patient=True)
        if copy is not None:
            try:
                copy.read_into(start, buffers, wrong)
            except CorruptShard:
                self._drop(copy)
            else:
                return
        self._remote.read_into(start, buffers, wrong)

    def _drop(self, copy: LocalBytes) -> None:
        """Forget a copy that has changed under us, and have it made again."""
        with self._lock:
            if self._copy is copy:
                self._copy, self._wanted = None, None
                copy.close()
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
