"""The interface between the loader and a kind of sample: from a location in a set to a row of a batch.

Two kinds are here: images with their label states, and posterior moments of latents with theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import CorruptShard, StorageError
from synfundus.labels.schema import LabelSchema
from synfundus.shards.members import META, decode_image, decode_json, decode_npy, label_states
from synfundus.shards.reader import Arrays, Members, SampleDecoder, ShardSetReader, as_corruption, encode_npy
from synfundus.storage.shard_index import ShardIndex
from synfundus.storage.tarshard import TarShardReader

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


IMAGE_EXTENSIONS = ("png", "webp", "jpg")


class ImageDecoder:
    """Members of an image sample -> ``pixels`` uint8 ``[s, s, 3]`` and ``states`` ``[k]``.

    Args:
        schema: Label schema of the set.
        image_size_px: Expected edge of the images.
    """

    def __init__(self, *, schema: LabelSchema, image_size_px: int) -> None:
        self._schema = schema
        self._size = image_size_px

    @property
    def layout(self) -> Layout:
        """Shapes and types of the arrays of a sample."""
        return {
            "pixels": ((self._size, self._size, 3), np.dtype(np.uint8)),
            "states": ((len(self._schema.labels),), np.dtype(np.int64)),
        }

    def __call__(self, key: str, members: Members, where: str) -> Arrays:
        """Decode one sample."""
        extension = next((name for name in IMAGE_EXTENSIONS if name in members), None)
        if extension is None or META not in members:
            raise CorruptShard(f"sample needs an image and a .json, has {sorted(members)}", where=where)
        pixels = decode_image(members[extension], where=where, extension=extension)
        if pixels.shape != (self._size, self._size, 3):
            raise CorruptShard(f"image of {pixels.shape}, expected {self._size} px square RGB", where=where)
        return {
            "pixels": pixels,
            "states": label_states(decode_json(members[META], where=where), self._schema, where=where),
        }


MOMENTS = "moments.npy"
FLIPPED_MOMENTS = "flip.npy"

_Columns = list[tuple[str, int]]
"""Name of an array and column of an index."""
_INFINITY = 0x7C00
_MINUS_INFINITY = 0xFC00


class LatentDecoder:
    """Members of a latent sample -> ``moments`` fp16 ``[2C, lh, lw]``, ``states`` ``[k]`` (and ``flip`` moments).

    Args:
        schema: Label schema of the set.
        moments_shape: Expected shape of the moments.
        with_flip: Also return the moments of the mirrored image.
    """

    def __init__(self, *, schema: LabelSchema, moments_shape: tuple[int, int, int], with_flip: bool) -> None:
        self._schema = schema
        self._shape = moments_shape
        self._with_flip = with_flip

    @property
    def layout(self) -> Layout:
        """Shapes and types of a sample's arrays."""
        moments = (self._shape, np.dtype(np.float16))
        layout: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "moments": moments,
            "states": ((len(self._schema.labels),), np.dtype(np.int64)),
        }
        if self._with_flip:
            layout["flip"] = moments
        return layout

    def _moments(self, members: Members, extension: str, where: str) -> NDArray[np.float16]:
        if extension not in members:
            raise CorruptShard(f"sample lacks its member .{extension}", where=where)
        moments = decode_npy(members[extension], where=where)
        if moments.shape != self._shape or moments.dtype != np.float16:
            raise CorruptShard(
                f"moments of shape {moments.shape} {moments.dtype}, expected {self._shape} float16", where=where
            )
        if not all_finite(moments):
            raise CorruptShard("moments that are not finite", where=where)
        return moments

    def __call__(self, key: str, members: Members, where: str) -> Arrays:
        """Decode one sample."""
        if META not in members:
            raise CorruptShard("sample lacks its member .json", where=where)
        arrays: Arrays = {
            "moments": self._moments(members, MOMENTS, where),
            "states": label_states(decode_json(members[META], where=where), self._schema, where=where),
        }
        if self._with_flip:
            arrays["flip"] = self._moments(members, FLIPPED_MOMENTS, where)
        return arrays


def all_finite(array: NDArray[np.float16]) -> bool:
    """Whether no element is infinite or NaN.

    Such elements have the largest exponent, so their bit patterns are the largest of their sign; comparing integers is
    several times faster than numpy's functions for half precision.
    """
    if not array.size:
        return True
    largest = np.maximum.reduce
    return bool(
        largest(array.view(np.int16), axis=None) < _INFINITY
        and largest(array.view(np.uint16), axis=None) < _MINUS_INFINITY
    )


class LatentSource:
    """Samples of a latent set, read straight into the batch.

    Where the shard's index holds the label states and a member is an npy file as numpy writes it, nothing is parsed;
    anything else takes the way of `LatentDecoder`, which also says what is wrong.

    Args:
        reader: The samples.
        schema: The set's label schema.
        moments_shape: Shape every sample must have, ``[2C, lh, lw]``.
        with_flip: Also return the moments of the mirrored image.
    """

    def __init__(
        self, reader: ShardSetReader, *, schema: LabelSchema, moments_shape: tuple[int, int, int], with_flip: bool
    ) -> None:
        decoder = LatentDecoder(schema=schema, moments_shape=moments_shape, with_flip=with_flip)
        self.layout = decoder.layout
        self._reader = reader
        self._decoded = DecodedSource(reader, decode=decoder, layout=self.layout)
        self._max_states = np.asarray(schema.num_values, dtype=np.int16)
        self._header = npy_header(moments_shape)
        self._columns: dict[int, _Columns] = {}
        self._members = [("moments", MOMENTS), *([("flip", FLIPPED_MOMENTS)] if with_flip else [])]

    @property
    def shard_sizes(self) -> list[int]:
        """Samples of each shard."""
        return self._reader.shard_sizes

    def fill(self, arrays: Arrays, row: int, shard: int, sample: int) -> None:
        """Read a sample into its row."""
        try:
            reader = self._reader.shard(shard)
            filled = self._fill_fast(arrays, row, reader, sample, self._fast_columns(shard, reader.index))
        except StorageError as error:
            raise as_corruption(error) from error.__cause__
        if not filled:
            self._decoded.fill(arrays, row, shard, sample)

    def _fast_columns(self, shard: int, index: ShardIndex) -> _Columns:
        """Return the column of each array in the index of a shard; empty if the index has no states. Cached.

        Raises:
            CorruptShard: States the schema does not have.
        """
        columns = self._columns.get(shard)
        if columns is None:
            states = index.states
            if states is not None and (
                states.shape[1:] != self._max_states.shape or (states < 0).any() or (states > self._max_states).any()
            ):
                where = self.sample_name(shard, 0)
                raise CorruptShard("label states in the index do not fit the schema", where=where, reason="index")
            if states is not None and all(extension in index.extensions for _, extension in self._members):
                columns = [(name, index.extensions.index(extension)) for name, extension in self._members]
            self._columns[shard] = columns = columns or []
        return columns

    def _fill_fast(self, arrays: Arrays, row: int, reader: TarShardReader, sample: int, columns: _Columns) -> bool:
        """Read a sample straight into its row; return False, with an undefined row, if its layout is unusual."""
        states, length = reader.index.states, len(self._header)
        if not columns or states is None:
            return False
        for name, column in columns:
            target = arrays[name][row]
            entry = reader.index.member(sample, column)
            if entry.offset < 0 or entry.size != length + target.nbytes:
                return False
            header = bytearray(length)
            reader.read_into(sample, entry, (memoryview(header), row_bytes(target)))
            if header != self._header:
                return False
            if not all_finite(target):
                raise CorruptShard(f"moments of sample {reader.index.key(sample)} are not finite", where=reader.tar_url)
        arrays["states"][row] = states[sample]
        return True

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


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the npy header of a half-precision array of a shape."""
    whole = encode_npy(np.broadcast_to(np.float16(0), shape))
    return whole[: len(whole) - 2 * math.prod(shape)]
