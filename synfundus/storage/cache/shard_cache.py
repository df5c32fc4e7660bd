"""Shards of an object store read through the local cache: from the copy if it exists or soon will, else from the store.

The first read of a shard requests its copy in the background. A request for one sample costs about as much as
downloading a megabyte of a copy, so a read waits as long as all requested copies are expected within seconds. If the
set is too large or the network too slow for that, samples are requested one by one until the copies exist.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TypeVar

from synfundus.errors import CorruptShard, StorageError, SynfundusError
from synfundus.processes.daemon_threads import DaemonThreads
from synfundus.storage.byte_source import ByteSource, LocalBytes, RemoteBytes
from synfundus.storage.cache.object_cache import ObjectCache, open_shared

T = TypeVar("T")

_DOWNLOADS = 2
_SOON_S = 10.0
_FIRST_WAIT_S = 2.0
_MAX_WAIT_S = 20.0
_POLL_S = 0.25


class ShardCache:
    """Copies of shards, downloaded in the background; one instance per process.

    Args:
        cache: The folder of copies, shared with other processes.
    """

    def __init__(self, cache: ObjectCache) -> None:
        self._cache = cache
        self._downloads = DaemonThreads(_DOWNLOADS, name="shard-cache")
        self._start = 0.0
        self._requested = self._done = 0

    def source(self, url: str, *, sha256: str, size: int) -> CachedBytes:
        """Return the bytes of a shard."""
        return CachedBytes(self, url, sha256=sha256, size=size)

    def request(self, url: str, *, sha256: str, size: int) -> Future[IO[bytes]]:
        """Request a copy."""
        if self._requested == self._done:
            self._start, self._requested, self._done = time.monotonic(), 0, 0
        self._requested += 1
        download = self._downloads.submit(partial(self._cache.open, url, sha256=sha256, size=size))
        download.add_done_callback(self._count)
        return download

    def _count(self, _: Future[IO[bytes]]) -> None:
        self._done += 1

    def wait_for(self, download: Future[IO[bytes]]) -> None:
        """Wait for a copy as long as all requested copies are expected within seconds, at the rate so far."""
        deadline = time.monotonic() + _MAX_WAIT_S
        while not download.done() and time.monotonic() < deadline and self._is_soon():
            wait([download], timeout=_POLL_S)

    def _is_soon(self) -> bool:
        elapsed_s = time.monotonic() - self._start
        if self._done == 0:
            return elapsed_s < _FIRST_WAIT_S
        return (self._requested - self._done) * elapsed_s / self._done < _SOON_S

    def discard(self, url: str, *, sha256: str) -> None:
        """Remove a damaged copy."""
        self._cache.discard(url, sha256=sha256)

    def close(self) -> None:
        """Request nothing more; running downloads finish in the background."""
        self._downloads.close()


class CachedBytes:
    """Bytes of a remote shard, from its copy once that exists."""

    def __init__(self, shards: ShardCache, url: str, *, sha256: str, size: int) -> None:
        self._shards = shards
        self._url, self._sha256, self._size = url, sha256, size
        self._remote = RemoteBytes(url)
        self._copy: LocalBytes | None = None
        self._download: Future[IO[bytes]] | None = None
        self._lock = threading.Lock()

    @property
    def is_local(self) -> bool:
        """Whether reads use the copy; the first call requests it."""
        return self._find_copy(waits=False) is not None

    def _find_copy(self, *, waits: bool) -> LocalBytes | None:
        if self._copy is not None:
            return self._copy
        download = self._download
        if waits and download is not None:
            self._shards.wait_for(download)
        with self._lock:
            return self._take_copy()

    def _take_copy(self) -> LocalBytes | None:
        """Open the copy if it is downloaded; request it if it was not requested."""
        if self._copy is not None:  # another thread was faster
            return self._copy
        if self._download is None:
            self._download = self._shards.request(self._url, sha256=self._sha256, size=self._size)
        if self._download.done():
            # no space, a full disk, a damaged object: read from the store, which reports what is wrong with it
            with suppress(SynfundusError, CancelledError):
                opened = self._download.result()
                path = Path(opened.name)
                self._copy = LocalBytes(path, self._url, stream=opened, open_stream=partial(open_shared, path))
        return self._copy

    def read(self, start: int, size: int, check: Callable[[bytes], str]) -> bytes:
        """Return a range that passes the check."""
        return self._from_best_source(lambda source: source.read(start, size, check))

    def read_into(self, start: int, buffers: Sequence[memoryview], check: Callable[[], str]) -> None:
        """Fill buffers with bytes that pass the check."""
        self._from_best_source(lambda source: source.read_into(start, buffers, check))

    def _from_best_source(self, read: Callable[[ByteSource], T]) -> T:
        """Read from the copy if there is one, and from the store if there is none or it fails."""
        copy = self._find_copy(waits=True)
        if copy is not None:
            try:
                return read(copy)
            except (CorruptShard, StorageError):
                self._drop(copy)
        return read(self._remote)

    def _drop(self, copy: LocalBytes) -> None:
        """Close and remove a copy that is damaged or cannot be read; the next read requests it again."""
        with self._lock:
            if self._copy is copy:
                self._copy, self._download = None, None
                copy.close()
                with suppress(StorageError):  # if the disk fails here, so does the next download: harmless
                    self._shards.discard(self._url, sha256=self._sha256)

    def close(self) -> None:
        """Close the copy."""
        with self._lock:
            if self._copy is not None:
                self._copy.close()
                self._copy = None
            elif self._download is not None and not self._download.cancel():
                self._download.add_done_callback(_close_result)
            self._download = None


def _close_result(download: Future[IO[bytes]]) -> None:
    if not download.cancelled() and download.exception() is None:
        download.result().close()
