"""The index of a tar shard: where each member of each sample lies, and what proves it."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import CorruptShard

KEY_PATTERN = re.compile(r"^[A-Za-z0-9_-]{1,128}$")
EXTENSION_PATTERN = re.compile(r"^[a-z0-9]+(\.[a-z0-9]+)*$")
MAX_MEMBER_BYTES = 2**30
"""Far above any image or moments; an index that says more is not followed."""
_MOST_BETWEEN_MEMBERS = 4 * 512
"""Padding, a header for a long name with the name, and a header."""


def index_url(tar_url: str) -> str:
    """Return the location of a shard's index."""
    return tar_url.removesuffix(".tar") + ".idx.npz"


class MemberPlace(NamedTuple):
    """Where a member lies and what proves it; the offset is -1 where the sample lacks it."""

    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class ShardIndex:
    """Where each member of each sample lies.

    Attributes:
        key_array: Sample keys in file order, ASCII, ``[n]``.
        extensions: Member extensions, ``[m]``, e.g. ``("json", "moments.npy")``.
        offsets: First payload byte of a member, int64 ``[n, m]``; -1 where the sample lacks it.
        sizes: Payload bytes, int64 ``[n, m]``.
        crc32: Checksums, uint32 ``[n, m]``.
        states: Label states int16 ``[n, k]``; None where they stand in the JSON members only.
    """

    key_array: NDArray[np.bytes_]
    extensions: tuple[str, ...]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    crc32: NDArray[np.uint32]
    states: NDArray[np.int16] | None = None

    def __len__(self) -> int:
        return len(self.key_array)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Sample keys as text, made when they are first asked for.

        Raises:
            CorruptShard: A key twice, or one that is not a key.
        """
        keys = tuple(self.key(sample) for sample in range(len(self)))
        if len(set(keys)) != len(keys) or not all(map(KEY_PATTERN.fullmatch, keys)):
            raise CorruptShard("a shard index with a key twice, or one that is not a key", reason="index")
        return keys

    def key(self, sample: int) -> str:
        """Return the key of a sample."""
        return bytes(self.key_array[sample]).decode("ascii")

    def member(self, sample: int, column: int) -> MemberPlace:
        """Return the place of a member."""
        return MemberPlace(
            self.offsets.item(sample, column), self.sizes.item(sample, column), self.crc32.item(sample, column)
        )

    def members(self, sample: int) -> Iterator[tuple[str, int, int, int]]:
        """Yield (extension, offset, size, crc32) of each member a sample has."""
        for column, extension in enumerate(self.extensions):
            offset, size, crc = self.member(sample, column)
            if offset >= 0:
                yield extension, offset, size, crc

    def span(self, sample: int) -> tuple[int, int]:
        """Return (first byte, end byte) of the stretch that holds all members of a sample."""
        there = [(offset, offset + size) for _, offset, size, _ in self.members(sample)]
        return min(start for start, _ in there), max(end for _, end in there)

    def to_bytes(self) -> bytes:
        """Serialise as an npz that is the same, byte for byte, for the same content."""
        stream = io.BytesIO()
        optional = {} if self.states is None else {"states": self.states}
        np.savez(
            stream,
            keys=self.key_array,
            extensions=np.array(self.extensions, dtype=np.str_),
            offsets=self.offsets,
            sizes=self.sizes,
            crc32=self.crc32,
            allow_pickle=False,
            **optional,
        )
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> ShardIndex:
        """Read an index.

        Raises:
            CorruptShard: The bytes are not an index, or one that no writer would write.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                if any(entry.compress_type for entry in arrays.zip.infolist()):
                    raise ValueError("its arrays are compressed, and could be of any size")
                keys = np.asarray(arrays["keys"], dtype=np.bytes_)  # text that is not ASCII is an error
                extensions = tuple(str(extension) for extension in arrays["extensions"])
                offsets, sizes, crc32 = (arrays[name] for name in ("offsets", "sizes", "crc32"))
                states = arrays.get("states")
        except (ValueError, KeyError, OSError, EOFError, zlib.error) as error:
            raise CorruptShard(f"not a shard index: {error}", where=where, reason="index") from error
        except Exception as error:
            # zipfile raises its own family on damaged archives, all of them mean the same here
            raise CorruptShard(f"not a shard index: {type(error).__name__}", where=where, reason="index") from error
        shape = (len(keys) if keys.ndim == 1 else -1, len(extensions))
        if not offsets.shape == sizes.shape == crc32.shape == shape:
            raise CorruptShard(
                f"shard index with arrays of {offsets.shape}, expected {shape}", where=where, reason="index"
            )
        if any(array.dtype.kind not in "iu" for array in (offsets, sizes, crc32)):
            raise CorruptShard("shard index with something else than integers", where=where, reason="index")
        index = cls(keys, extensions, offsets.astype(np.int64), sizes.astype(np.int64), crc32.astype(np.uint32), states)
        if problem := index._implausible():
            raise CorruptShard(f"not a shard index: {problem}", where=where, reason="index")
        return index

    def _implausible(self) -> str:
        """Say what no writer of shards would write; empty if nothing. An index decides how much is read from where."""
        if self.key_array.dtype.kind != "S" and len(self):
            return "its keys are not texts"
        if not all(map(EXTENSION_PATTERN.fullmatch, self.extensions)):
            return "an extension that is not one"
        states = self.states
        if states is not None and (states.dtype != np.int16 or states.ndim != 2 or len(states) != len(self)):
            return "label states of another shape or type"
        there = self.offsets >= 0
        starts = np.where(there, self.offsets, np.iinfo(np.int64).max).min(axis=1, initial=np.iinfo(np.int64).max)
        ends = np.where(there, self.offsets + self.sizes, 0).max(axis=1, initial=0)
        room = np.where(there, self.sizes + _MOST_BETWEEN_MEMBERS, 0).sum(axis=1)
        sound = (self.sizes >= 0) & (self.sizes <= MAX_MEMBER_BYTES) & (self.offsets < 2**60)
        if not (sound.all() and there.any(axis=1).all() and (ends - starts <= room).all()):
            return "a sample of no members, or members of impossible sizes or places"
        return ""
