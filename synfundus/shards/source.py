"""From a place in a set to a row of a batch: what the loader asks of a kind of sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from synfundus.shards.reader import Arrays, SampleDecoder, ShardSetReader

Layout = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Name -> (shape, type) of the arrays of one sample."""


class SampleSource(Protocol):
    """Samples of one split of one set. Goes to another process by pickling, as a description."""

    @property
    def layout(self) -> Layout:
        """Shapes and types of a sample's arrays."""

    @property
    def shard_sizes(self) -> list[int]:
        """Samples of each shard."""

    def fill(self, arrays: Arrays, row: int, shard: int, sample: int) -> None:
        """Put a sample into a row of a batch's arrays.

        Raises:
            CorruptShard: The sample cannot be used; the row may hold anything.
            StorageError: The disk or the store refused.
        """

    def open_ahead(self, shards: Iterable[int]) -> None:
        """Open shards that are going to be read, side by side."""

    def is_local(self, shard: int) -> bool:
        """Whether a shard is read from this machine's disk; otherwise several samples are asked for at once."""

    def place_name(self, shard: int, sample: int) -> str:
        """Name a sample for messages."""

    def close(self) -> None:
        """Close all files."""


def allocate(layout: Layout, rows: int) -> Arrays:
    """Return arrays for a batch, each ``[rows, ...]``, that hold anything."""
    return {name: np.empty((rows, *shape), dtype=dtype) for name, (shape, dtype) in layout.items()}


class DecodedSource:
    """Samples whose members a decoder turns into arrays.

    Args:
        reader: The samples.
        decode: Members -> arrays.
        layout: What the decoder returns.
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
        """Read, decode, copy."""
        found = self._decode(*self._reader.read(shard, sample), self.place_name(shard, sample))
        for name, array in arrays.items():
            array[row] = found[name]

    def open_ahead(self, shards: Iterable[int]) -> None:
        """Open shards that are going to be read, side by side."""
        self._reader.open_ahead(shards)

    def is_local(self, shard: int) -> bool:
        """Whether a shard is read from this machine's disk."""
        return self._reader.is_local(shard)

    def place_name(self, shard: int, sample: int) -> str:
        """Name a sample for messages."""
        return self._reader.place_name(shard, sample)

    def close(self) -> None:
        """Close all files."""
        self._reader.close()


def row_bytes(row: NDArray[Any]) -> memoryview:
    """Return the bytes of a C-ordered array, writable."""
    return row.reshape(-1).view(np.uint8).data
