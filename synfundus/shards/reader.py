"""Read samples of a shard set by shard and number; decoding of members is in `synfundus.shards.members`.

Tars are never extracted, and file names in them are only data.
"""

from __future__ import annotations

import errno
import io
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import CorruptShard, StorageError, SynfundusError
from synfundus.shards.members import decode_image, decode_json, decode_npy
from synfundus.storage import filesystem
from synfundus.storage.byte_source import ByteSource, open_byte_source
from synfundus.storage.cache.object_cache import configured_cache
from synfundus.storage.cache.shard_cache import ShardCache
from synfundus.storage.manifest import ShardEntry, ShardSet
from synfundus.storage.tarshard import TarShardReader

__all__ = [
    "Arrays",
    "Members",
    "SampleDecoder",
    "ShardSetReader",
    "as_corruption",
    "decode_image",
    "decode_json",
    "decode_npy",
    "encode_npy",
    "read_errors_as_corruption",
]

Arrays = dict[str, NDArray[Any]]
Members = Mapping[str, bytes]
MAX_INDEXED_SAMPLES = 4_000_000
"""Maximum samples of the indices a reader keeps in memory, 100 to 200 bytes each. Open files are limited separately."""
_OPENERS = min(4, max(2, os.cpu_count() or 2))  # each holds the GIL for part of the time
_FIRST_RETRY_S = 30.0
_MAX_RETRY_S = 3600.0


def encode_npy(array: NDArray[Any]) -> bytes:
    """Encode an array as npy; the same array gives the same bytes."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


@dataclass(frozen=True)
class _UnusableShard:
    """A shard that cannot be used: the error, and when to retry, because a disk or a store can recover."""

    error: CorruptShard
    pause_s: float
    retry_at: float

    @classmethod
    def after(cls, before: _UnusableShard | None, error: CorruptShard) -> _UnusableShard:
        """Double the pause of the previous failure."""
        pause_s = _FIRST_RETRY_S if before is None else min(2 * before.pause_s, _MAX_RETRY_S)
        return cls(error, pause_s, time.monotonic() + pause_s)


class ShardSetReader:
    """Reads the members of samples of one split by (shard, sample).

    Not shared between processes.
    """

    def __init__(self, shard_set: ShardSet, *, split: str) -> None:
        self._set = shard_set
        self._split = split
        self.shards: tuple[ShardEntry, ...] = shard_set.split_shards(split)
        self._open: OrderedDict[int, TarShardReader] = OrderedDict()
        self._indexed = 0
        self._lost: dict[int, _UnusableShard] = {}
        self._lock = threading.Lock()
        self._opening: dict[int, threading.Lock] = {}
        self._cache: ShardCache | None = None
        self._is_local = filesystem.is_local(shard_set.url)
        if not self._is_local and (cache := configured_cache()) is not None:
            self._cache = ShardCache(cache)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a description: another process opens its own files and connections."""
        return partial(ShardSetReader, self._set, split=self._split), ()

    @property
    def shard_sizes(self) -> list[int]:
        """Samples of each shard."""
        return [shard.num_samples for shard in self.shards]

    def shard(self, number: int) -> TarShardReader:
        """Return the reader of a shard; may be called by several threads.

        Raises:
            CorruptShard: Its index is damaged or missing, or its tar is missing; other shards are not affected.
        """
        reader = self._open.get(number)
        if reader is None:
            reader = self._open_once(number)
        if self._indexed > MAX_INDEXED_SAMPLES // 2:  # the least recently used will be dropped soon
            with self._lock:
                if number in self._open:
                    self._open.move_to_end(number)
        return reader

    def _open_once(self, number: int) -> TarShardReader:
        """Open a shard once while other threads wait for it: its index may need several requests."""
        with self._lock:
            turn = self._opening.setdefault(number, threading.Lock())
        try:
            with turn:
                reader = self._open.get(number)
                return self._keep(number, self._open_shard(number)) if reader is None else reader
        finally:
            with self._lock:
                self._opening.pop(number, None)

    def _keep(self, number: int, reader: TarShardReader) -> TarShardReader:
        """Keep the index of a shard; drop the least recently used ones, whose files close after their last reader."""
        with self._lock:
            if number not in self._open:
                self._open[number] = reader
                self._indexed += len(reader)
                while self._indexed > MAX_INDEXED_SAMPLES and len(self._open) > 1:
                    _, oldest = self._open.popitem(last=False)
                    self._indexed -= len(oldest)
                    oldest.close()
            return self._open[number]

    def open_ahead(self, numbers: Iterable[int]) -> None:
        """Open local shards concurrently: a first batch can need hundreds, and each index is hashed.

        Shards that cannot be opened raise when they are read.
        """
        missing = [number for number in numbers if number not in self._open and number not in self._lost]
        if len(missing) > 1 and self._is_local:
            with ThreadPoolExecutor(_OPENERS, thread_name_prefix="shards") as pool:
                pool.map(self._open_quietly, missing)

    def _open_quietly(self, number: int) -> None:
        with suppress(CorruptShard, StorageError):
            self.shard(number)

    def is_local(self, number: int) -> bool:
        """Whether a shard is read from a local file; False while that is not yet known."""
        if self._is_local:
            return True
        reader = self._open.get(number)
        return reader is not None and reader.is_local

    def _open_shard(self, number: int) -> TarShardReader:
        lost = self._lost.get(number)
        if lost is not None and time.monotonic() < lost.retry_at:
            raise lost.error.with_traceback(None)
        entry = self.shards[number]
        try:
            with read_errors_as_corruption():
                url = self._set.shard_url(entry)
                reader = TarShardReader(
                    url, index_sha256=entry.index_sha256, open_bytes=lambda: self._open_bytes(url, entry)
                )
            if len(reader) != entry.num_samples:
                raise CorruptShard(
                    f"the index lists {len(reader)} samples, the manifest {entry.num_samples}",
                    where=reader.tar_url,
                    reason="index",
                )
        except CorruptShard as error:
            self._lost[number] = _UnusableShard.after(lost, error)
            raise
        self._lost.pop(number, None)
        return reader

    def _open_bytes(self, url: str, entry: ShardEntry) -> ByteSource:
        if self._cache is None:
            return open_byte_source(url)
        return self._cache.source(url, sha256=entry.sha256, size=entry.bytes)

    def read(self, shard: int, sample: int) -> tuple[str, dict[str, bytes]]:
        """Return (key, members by extension) of a sample.

        Raises:
            CorruptShard: Bytes that do not match their checksum, or a missing shard.
            StorageError: The disk or the store failed.
        """
        with read_errors_as_corruption():
            reader = self.shard(shard)
            return reader.index.keys[sample], reader.read(sample)

    def key(self, shard: int, sample: int) -> str:
        """Return the key of a sample without reading it."""
        return self.shard(shard).index.keys[sample]

    def sample_name(self, shard: int, sample: int) -> str:
        """Return the name of a sample, for messages."""
        return f"{self._set.shard_url(self.shards[shard])}#{sample}"

    def close(self) -> None:
        """Close all open shards."""
        with self._lock:
            readers = list(self._open.values())
            self._open.clear()
            self._indexed = 0
        for reader in readers:
            reader.close()
        if self._cache is not None:
            self._cache.close()


@contextmanager
def read_errors_as_corruption() -> Iterator[None]:
    """Convert missing files and bad disk blocks to CorruptShard, so that their samples are quarantined."""
    try:
        yield
    except StorageError as error:
        raise as_corruption(error) from error.__cause__


def as_corruption(error: StorageError) -> SynfundusError:
    """Return a CorruptShard for a missing file or a bad disk block, else the error itself."""
    cause = error.__cause__
    if isinstance(cause, FileNotFoundError):
        text, reason = "a file of the shard is missing", "missing"
    elif isinstance(cause, OSError) and cause.errno == errno.EIO:
        text, reason = "a file of the shard is unreadable", "unreadable"
    else:
        return error
    return CorruptShard(f"{text}: {error.message}", where=error.where, reason=reason)


SampleDecoder = Callable[[str, Members, str], Arrays]
"""(key, members, where) -> named arrays of one sample."""
