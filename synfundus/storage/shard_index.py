"""The index of a tar shard: offset, size and checksum of each member of each sample."""

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
"""A sample's JSON has about a kilobyte."""
MAX_IMAGE_BYTES = 2**26
"""More than the largest image without compression."""
MAX_NPY_BYTES = 2**26
"""Far above the moments of the largest image."""
MAX_MEMBER_BYTES = max(MAX_JSON_BYTES, MAX_IMAGE_BYTES, MAX_NPY_BYTES)
MAX_SAMPLE_BYTES = 2**27
"""All members of a sample together, which are read at once."""
MAX_MEMBERS_PER_SAMPLE = 32
"""A sample has two or three."""
_MAX_KEY_BYTES = 128
_KEY_BYTES = bytes(code for code in range(256) if re.fullmatch(rb"[A-Za-z0-9_-]", bytes([code])))
_MAX_MEMBER_GAP_BYTES = 4 * 512
"""Padding, the header and text of a long name, and a header."""

_NPY_PREFIX = 10
"""Bytes before the text of an npy version 1 header: magic, version, length."""


def index_url(tar_url: str) -> str:
    """Return the location of a shard's index."""
    return tar_url.removesuffix(".tar") + ".idx.npz"


def _wrong_keys(keys: NDArray[np.bytes_]) -> str:
    """Return a problem with the keys ``[n]``, or an empty string. Vectorised: a first batch may need a million keys."""
    width = keys.dtype.itemsize
    if not len(keys):
        return ""
    content = keys.tobytes()
    if not content.isascii():
        return "a key that is not ASCII"
    others = content.translate(None, delete=_KEY_BYTES)
    if width > _MAX_KEY_BYTES or others.strip(b"\0"):
        return "an invalid key"
    if others:  # numpy pads shorter keys with zero bytes
        padding = np.frombuffer(content, dtype=np.uint8).reshape(len(keys), width) == 0
        if padding[:, 0].any() or (padding[:, :-1] & ~padding[:, 1:]).any():
            return "an invalid key"
    in_order = (keys[1:] > keys[:-1]).all()  # the usual case
    return "" if in_order or len(set(keys.tolist())) == len(keys) else "a duplicate key"


def _max_bytes(extension: str) -> int:
    """Return the maximum size of a member by extension."""
    limits = {"json": MAX_JSON_BYTES, "npy": MAX_NPY_BYTES}
    return limits.get(extension.rpartition(".")[2], MAX_IMAGE_BYTES)


class MemberEntry(NamedTuple):
    """Offset, size and checksum of a member; the offset is -1 if the sample lacks it."""

    offset: int
    size: int
    crc32: int


def _stored_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npz as views of its bytes: a run opens hundreds of indices before its first batch.

    Raises:
        ValueError: It contains something else, or compressed arrays, which could have any size.
    """
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError("its arrays are compressed and could have any size")
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
        raise ValueError("an array without a header")
    begin = _NPY_PREFIX + struct.unpack_from("<H", content, _NPY_PREFIX - 2)[0]
    shape, fortran_order, dtype = _npy_header(bytes(content[:begin]))
    flat = np.frombuffer(content, dtype, count=math.prod(shape), offset=begin)
    return flat.reshape(shape, order="F" if fortran_order else "C")


@lru_cache(maxsize=256)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse the header of an npy file: shape, order, type. Cached: most shards of a set have the same."""
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array of another version of the npy format")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or any(edge < 0 for edge in shape):
        raise ValueError("an array of objects or of negative size")
    return shape, fortran_order, dtype


@dataclass(frozen=True)
class ShardIndex:
    """Offset, size and checksum of each member of each sample.

    Attributes:
        key_array: Sample keys in file order, ASCII, ``[n]``.
        extensions: Member extensions, ``[m]``, e.g. ``("json", "moments.npy")``.
        offsets: First payload byte of each member, int64 ``[n, m]``; -1 if the sample lacks it.
        sizes: Payload bytes, int64 ``[n, m]``.
        crc32: Checksums, uint32 ``[n, m]``.
        states: Label states int16 ``[n, k]``; None if they are only in the JSON members.
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
        """Sample keys as text."""
        return tuple(self.key(sample) for sample in range(len(self)))

    def key(self, sample: int) -> str:
        """Return the key of a sample."""
        return bytes(self.key_array[sample]).decode("ascii")

    def member(self, sample: int, column: int) -> MemberEntry:
        """Return the entry of a member."""
        return MemberEntry(
            self.offsets.item(sample, column), self.sizes.item(sample, column), self.crc32.item(sample, column)
        )

    def members(self, sample: int) -> Iterator[tuple[str, int, int, int]]:
        """Yield (extension, offset, size, crc32) of each member of a sample."""
        for column, extension in enumerate(self.extensions):
            offset, size, crc = self.member(sample, column)
            if offset >= 0:
                yield extension, offset, size, crc

    def span(self, sample: int) -> tuple[int, int]:
        """Return (first byte, end byte) of the range that contains all members of a sample."""
        present = [(offset, offset + size) for _, offset, size, _ in self.members(sample)]
        return min(start for start, _ in present), max(end for _, end in present)

    def to_bytes(self) -> bytes:
        """Serialise as an npz; the same content gives the same bytes."""
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
            CorruptShard: The bytes are not a valid index.
        """
        try:
            arrays = _stored_arrays(data)
            keys = np.asarray(arrays["keys"], dtype=np.bytes_)  # non-ASCII text is an error
            extensions = tuple(str(extension) for extension in arrays["extensions"])
            offsets, sizes, crc32 = (arrays[name] for name in ("offsets", "sizes", "crc32"))
            states = arrays.get("states")
        except (ValueError, KeyError, OSError, EOFError, zlib.error) as error:
            raise CorruptShard(f"not a shard index: {error}", where=where, reason="index") from error
        except Exception as error:
            # zipfile raises many kinds of errors on damaged archives
            raise CorruptShard(f"not a shard index: {type(error).__name__}", where=where, reason="index") from error
        shape = (len(keys) if keys.ndim == 1 else -1, len(extensions))
        if not offsets.shape == sizes.shape == crc32.shape == shape:
            raise CorruptShard(
                f"shard index with arrays of shape {offsets.shape}, expected {shape}", where=where, reason="index"
            )
        if any(array.dtype.kind not in "iu" for array in (offsets, sizes, crc32)):
            raise CorruptShard("shard index with arrays that are not integers", where=where, reason="index")
        locations = (offsets.astype(np.int64, copy=False), sizes.astype(np.int64, copy=False))
        index = cls(keys, extensions, *locations, crc32.astype(np.uint32, copy=False), states)
        if problem := index._problem():
            raise CorruptShard(f"not a shard index: {problem}", where=where, reason="index")
        return index

    def _problem(self) -> str:
        """Return a problem, or an empty string. An invalid index could make a reader allocate or read too much."""
        if self.key_array.dtype.kind != "S" and len(self):
            return "its keys are not byte strings"
        if problem := _wrong_keys(self.key_array.astype(np.bytes_, copy=False)):
            return problem
        if len(self.extensions) > MAX_MEMBERS_PER_SAMPLE:
            return f"{len(self.extensions)} kinds of members, more than {MAX_MEMBERS_PER_SAMPLE}"
        if not all(map(EXTENSION_PATTERN.fullmatch, self.extensions)):
            return "an invalid extension"
        states = self.states
        if states is not None and (states.dtype != np.int16 or states.ndim != 2 or len(states) != len(self)):
            return "label states of another shape or type"
        if len(self) and not self._members_are_valid():
            return "a sample without members, or members with invalid sizes or offsets"
        return ""

    def _members_are_valid(self) -> bool:
        """Whether each sample has members with valid sizes, close to each other; there is at least one sample."""
        # column by column: numpy is slow along an axis of two or three
        starts, ends, limits = np.full(len(self), np.iinfo(np.int64).max), np.zeros(len(self), np.int64), 0
        for extension, offsets, sizes in zip(self.extensions, self.offsets.T, self.sizes.T, strict=True):
            if sizes.min() < 0 or sizes.max() > _max_bytes(extension) or offsets.max() >= 2**60:
                return False
            present = True if offsets.min() >= 0 else offsets >= 0
            np.minimum(starts, offsets, out=starts, where=present)
            np.maximum(ends, offsets + sizes, out=ends, where=present)
            limits += (sizes + _MAX_MEMBER_GAP_BYTES) * present
        spans = ends - starts  # negative if a sample has no members
        return bool(spans.min() >= 0 and spans.max() <= MAX_SAMPLE_BYTES and (spans <= limits).all())
