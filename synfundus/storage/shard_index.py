"""The index of a tar shard: where each member of each sample lies, and what proves it."""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from synfundus.errors import CorruptShard

KEY_PATTERN = re.compile(r"^[A-Za-z0-9_-]{1,128}$")
EXTENSION_PATTERN = re.compile(r"^[a-z0-9]+(\.[a-z0-9]+)*$")
MAX_JSON_BYTES = 2**20
"""A sample's document takes about a kilobyte."""
MAX_IMAGE_BYTES = 2**26
"""An image of the largest size is smaller than this without any compression."""
MAX_NPY_BYTES = 2**26
"""Far above the moments of the largest image."""
MAX_MEMBER_BYTES = max(MAX_JSON_BYTES, MAX_IMAGE_BYTES, MAX_NPY_BYTES)
MAX_SAMPLE_BYTES = 2**27
"""All members of a sample together: what is read at once."""
MAX_MEMBERS_A_SAMPLE = 32
"""A sample has two or three."""
_MAX_KEY_BYTES = 128
_KEY_BYTES = bytes(code for code in range(256) if re.fullmatch(rb"[A-Za-z0-9_-]", bytes([code])))
_MOST_BETWEEN_MEMBERS = 4 * 512
"""Padding, a header for a long name with the name, and a header."""

_NPY_PREFIX = 10
"""Bytes before the text of an npy head of version 1: magic, version, length."""


def index_url(tar_url: str) -> str:
    """Return the location of a shard's index."""
    return tar_url.removesuffix(".tar") + ".idx.npz"


def _wrong_keys(keys: NDArray[np.bytes_]) -> str:
    """Say what is wrong with keys ``[n]``; empty if nothing. By columns: a first batch may need a million."""
    width = keys.dtype.itemsize
    if not len(keys):
        return ""
    content = keys.tobytes()
    if not content.isascii():
        return "a key that is not ASCII"
    others = content.translate(None, delete=_KEY_BYTES)
    if width > _MAX_KEY_BYTES or others.strip(b"\0"):
        return "a key that is not one"
    if others:  # numpy fills shorter keys up with zero bytes
        padding = np.frombuffer(content, dtype=np.uint8).reshape(len(keys), width) == 0
        if padding[:, 0].any() or (padding[:, :-1] & ~padding[:, 1:]).any():
            return "a key that is not one"
    in_order = (keys[1:] > keys[:-1]).all()  # as writers leave them
    return "" if in_order or len(set(keys.tolist())) == len(keys) else "a key twice"


def _cap(extension: str) -> int:
    """Return the most bytes of a member of a kind."""
    caps = {"json": MAX_JSON_BYTES, "npy": MAX_NPY_BYTES}
    return caps.get(extension.rpartition(".")[2], MAX_IMAGE_BYTES)


class MemberPlace(NamedTuple):
    """Where a member lies and what proves it; the offset is -1 where the sample lacks it."""

    offset: int
    size: int
    crc32: int


def _stored_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npz as views of its bytes: a run opens hundreds of indices before its first batch.

    Raises:
        ValueError: It holds something else, or compressed arrays, which could be of any size.
    """
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError("its arrays are compressed, and could be of any size")
            name_length, extra_length = struct.unpack_from("<HH", data, entry.header_offset + 26)
            begin = entry.header_offset + 30 + name_length + extra_length
            content = memoryview(data)[begin : begin + entry.file_size]
            if crc32(content) != entry.CRC:
                raise ValueError(f"{entry.filename} does not match its checksum")
            arrays[entry.filename.removesuffix(".npy")] = _array(content)
    return arrays


def _array(content: memoryview) -> NDArray[Any]:
    """Return the array of an npy file as a view of its bytes."""
    if len(content) < _NPY_PREFIX:
        raise ValueError("an array without a head")
    begin = _NPY_PREFIX + struct.unpack_from("<H", content, _NPY_PREFIX - 2)[0]
    shape, fortran_order, dtype = _npy_head(bytes(content[:begin]))
    flat = np.frombuffer(content, dtype, count=math.prod(shape), offset=begin)
    return flat.reshape(shape, order="F" if fortran_order else "C")


@lru_cache(maxsize=256)
def _npy_head(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse the head of an npy file: shape, order, type. The shards of a set mostly have the same."""
    stream = io.BytesIO(head)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array of another version of the npy format")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or any(edge < 0 for edge in shape):
        raise ValueError("an array of objects, or of a negative size")
    return shape, fortran_order, dtype


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
        """Sample keys as text, made when they are first asked for."""
        return tuple(self.key(sample) for sample in range(len(self)))

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
            arrays = _stored_arrays(data)
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
        places = (offsets.astype(np.int64, copy=False), sizes.astype(np.int64, copy=False))
        index = cls(keys, extensions, *places, crc32.astype(np.uint32, copy=False), states)
        if problem := index._implausible():
            raise CorruptShard(f"not a shard index: {problem}", where=where, reason="index")
        return index

    def _implausible(self) -> str:
        """Say what no writer of shards would write; empty if nothing. An index decides how much is read from where."""
        if self.key_array.dtype.kind != "S" and len(self):
            return "its keys are not texts"
        if problem := _wrong_keys(self.key_array.astype(np.bytes_, copy=False)):
            return problem
        if len(self.extensions) > MAX_MEMBERS_A_SAMPLE:
            return f"{len(self.extensions)} kinds of members, more than {MAX_MEMBERS_A_SAMPLE}"
        if not all(map(EXTENSION_PATTERN.fullmatch, self.extensions)):
            return "an extension that is not one"
        states = self.states
        if states is not None and (states.dtype != np.int16 or states.ndim != 2 or len(states) != len(self)):
            return "label states of another shape or type"
        if len(self) and not self._places_are_sound():
            return "a sample of no members, or members of impossible sizes or places"
        return ""

    def _places_are_sound(self) -> bool:
        """Whether each sample has members, near each other and of sizes that can be; there is at least one sample."""
        # column by column: numpy is slow along an axis of two or three
        starts, ends, room = np.full(len(self), np.iinfo(np.int64).max), np.zeros(len(self), np.int64), 0
        for extension, offsets, sizes in zip(self.extensions, self.offsets.T, self.sizes.T, strict=True):
            if sizes.min() < 0 or sizes.max() > _cap(extension) or offsets.max() >= 2**60:
                return False
            there = True if offsets.min() >= 0 else offsets >= 0
            np.minimum(starts, offsets, out=starts, where=there)
            np.maximum(ends, offsets + sizes, out=ends, where=there)
            room += (sizes + _MOST_BETWEEN_MEMBERS) * there
        stretch = ends - starts  # negative where there are no members
        return bool(stretch.min() >= 0 and stretch.max() <= MAX_SAMPLE_BYTES and (stretch <= room).all())
