"""The interface between the loader and a kind of sample: from a location in a set to a row of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from synfundus.shards.reader import Arrays, SampleDecoder, ShardSetReader

Layout = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Name -> (shape, type) of the arrays of one sample."""


class SampleSource(Protocol):
    """Samples of one split of one set. Pickling sends only a description to another process."""

    @property
    def layout(self) -> Layout:
        """Shapes and types of the arrays of a sample."""

    @property
    def shard_sizes(self) -> list[int]:
        """Samples of each shard."""

    def fill(self, arrays: Arrays, row: int, shard: int, sample: int) -> None:
        """Read a sample into a row of the arrays of a batch.

        Raises:
            CorruptShard: The sample cannot be used; the row is undefined.
            StorageError: The disk or the store failed.
        """

    def open_ahead(self, shards: Iterable[int]) -> None:
        """Open shards that will be read, concurrently."""

    def is_local(self, shard: int) -> bool:
        """Whether a shard is read from a local file; otherwise samples are requested concurrently."""

    def sample_name(self, shard: int, sample: int) -> str:
        """Return the name of a sample, for messages."""

    def close(self) -> None:
        """Close all files."""


def allocate(layout: Layout, rows: int) -> Arrays:
    """Return uninitialised arrays for a batch, each ``[rows, ...]``."""
    return {name: np.empty((rows, *shape), dtype=dtype) for name, (shape, dtype) in layout.items()}


class DecodedSource:
    """Samples whose members are decoded to arrays.

    Args:
        reader: The samples.
        decode: Members -> arrays.
        layout: Shapes and types of the decoded arrays.
    """

    def __init__(self, reader: ShardSetReader, *, decode: SampleDecoder, layout: Layout) -> None:
        self._reader = reader
        self._decode = decode
        self.layout = dict(layout)

    @property
    def shard_sizes(self) -> list[int]:
        """Samples of each shard."""
        return self._reader.shard_sizes

    def fill(self, arrays: Arrays, row: int, shard: int, sample: int) -> None:
        """Read and decode a sample and copy it into its row."""
        found = self._decode(*self._reader.read(shard, sample), self.sample_name(shard, sample))
        for name, array in arrays.items():
            array[row] = found[name]

    def open_ahead(self, shards: Iterable[int]) -> None:
        """Open shards that will be read, concurrently."""
        self._reader.open_ahead(shards)

    def is_local(self, shard: int) -> bool:
        """Whether a shard is read from a local file."""
        return self._reader.is_local(shard)

    def sample_name(self, shard: int, sample: int) -> str:
        """Return the name of a sample, for messages."""
        return self._reader.sample_name(shard, sample)

    def close(self) -> None:
        """Close all files."""
        self._reader.close()


def row_bytes(row: NDArray[Any]) -> memoryview:
    """Return a writable view of the bytes of a C-ordered array."""
    return row.reshape(-1).view(np.uint8).data
