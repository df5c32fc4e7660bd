"""Tar shards with an index: what plain webdataset reads, plus seek and proof.

A shard is an ordinary ustar file ``NNNNNN.tar`` (owner, group and time normalised) and ``NNNNNN.idx.npz``
beside it, which gives for each sample its key and for each of its members offset, size and crc32. The index
lets a reader fetch any sample without reading what lies before it, and proves what was read.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import CorruptShard, DataError, StorageError
from synfundus.storage import filesystem

KEY_PATTERN = re.compile(r"^[A-Za-z0-9_-]{1,128}$")
EXTENSION_PATTERN = re.compile(r"^[a-z0-9]+(\.[a-z0-9]+)*$")
_BLOCK = 512


@dataclass(frozen=True)
class ShardFiles:
    """What a finished shard consists of, as the manifest records it."""

    num_samples: int
    tar_bytes: int
    tar_sha256: str
    index_sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """Where each member of each sample lies.

    Attributes:
        keys: Sample keys in file order, ``[n]``.
        extensions: Member extensions, ``[m]``, e.g. ``("json", "moments.npy")``.
        offsets: First payload byte of a member, ``[n, m]``; -1 where the sample lacks it.
        sizes: Payload bytes, ``[n, m]``.
        crc32: Checksums, ``[n, m]``.
    """

    keys: tuple[str, ...]
    extensions: tuple[str, ...]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    crc32: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.keys)

    def span(self, sample: int) -> tuple[int, int]:
        """Return (first byte, end byte) of the stretch that holds all members of a sample."""
        present = self.offsets[sample] >= 0
        starts = self.offsets[sample][present]
        return int(starts.min()), int((starts + self.sizes[sample][present]).max())

    def to_bytes(self) -> bytes:
        """Serialise as an npz that is the same, byte for byte, for the same content."""
        stream = io.BytesIO()
        np.savez(
            stream,
            keys=np.array(self.keys, dtype=np.str_),
            extensions=np.array(self.extensions, dtype=np.str_),
            offsets=self.offsets,
            sizes=self.sizes,
            crc32=self.crc32,
        )
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> ShardIndex:
        """Read an index.

        Raises:
            CorruptShard: The bytes are not an index.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                keys = tuple(str(key) for key in arrays["keys"])
                extensions = tuple(str(extension) for extension in arrays["extensions"])
                shape = (len(keys), len(extensions))
                offsets, sizes, crc32 = (arrays[name] for name in ("offsets", "sizes", "crc32"))
        except (ValueError, KeyError, OSError, EOFError, zlib.error) as error:
            raise CorruptShard(f"not a shard index: {error}", where=where) from error
        except Exception as error:
            # zipfile raises its own family on damaged archives, all of them mean the same here
            raise CorruptShard(f"not a shard index: {type(error).__name__}", where=where) from error
        if not offsets.shape == sizes.shape == crc32.shape == shape:
            raise CorruptShard(f"shard index with arrays of {offsets.shape}, expected {shape}", where=where)
        return cls(keys, extensions, offsets.astype(np.int64), sizes.astype(np.int64), crc32.astype(np.uint32))


def _member_header(name: str, size: int) -> bytes:
    """Return a header with owner, group and time normalised; a name ustar cannot hold gets GNU's long-name header."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o600
    info.mtime = 0
    fits = len(name) <= tarfile.LENGTH_NAME
    return info.tobuf(format=tarfile.USTAR_FORMAT if fits else tarfile.GNU_FORMAT, encoding="ascii", errors="strict")


class TarShardWriter:
    """Writes one shard to a stream and builds its index.

    The same samples in the same order give the same bytes.
    """

    def __init__(self, stream: IO[bytes], *, extensions: tuple[str, ...]) -> None:
        for extension in extensions:
            if not EXTENSION_PATTERN.fullmatch(extension):
                raise DataError(f"member extension {extension!r} is not allowed")
        self._stream = stream
        self._extensions = extensions
        self._sha256 = hashlib.sha256()
        self._position = 0
        self._keys: list[str] = []
        self._seen: set[str] = set()
        self._rows: list[list[tuple[int, int, int]]] = []

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._sha256.update(data)
        self._position += len(data)

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append a sample.

        Raises:
            DataError: A key that is malformed or already there, or an extension that was not announced.
        """
        if not KEY_PATTERN.fullmatch(key):
            raise DataError(f"sample key {key!r} does not match {KEY_PATTERN.pattern}")
        if key in self._seen:
            raise DataError(f"sample key {key!r} twice in one shard")
        unannounced = set(members) - set(self._extensions)
        if unannounced or not members:
            raise DataError(f"sample {key!r} has members {sorted(members)}, announced were {list(self._extensions)}")
        row = []
        for extension in self._extensions:
            data = members.get(extension)
            if data is None:
                row.append((-1, 0, 0))
                continue
            self._write(_member_header(f"{key}.{extension}", len(data)))
            row.append((self._position, len(data), zlib.crc32(data)))
            self._write(data)
            self._write(b"\0" * (-len(data) % _BLOCK))
        self._seen.add(key)
        self._keys.append(key)
        self._rows.append(row)

    @property
    def num_samples(self) -> int:
        """Samples written so far."""
        return len(self._keys)

    def finish(self) -> tuple[ShardIndex, str, int]:
        """Write the end of the archive; returns (index, sha256 of the tar, bytes of the tar)."""
        self._write(b"\0" * (2 * _BLOCK))
        table = np.array(self._rows, dtype=np.int64).reshape(len(self._keys), len(self._extensions), 3)
        index = ShardIndex(
            keys=tuple(self._keys),
            extensions=self._extensions,
            offsets=table[:, :, 0],
            sizes=table[:, :, 1],
            crc32=table[:, :, 2].astype(np.uint32),
        )
        return index, self._sha256.hexdigest(), self._position


def index_url(tar_url: str) -> str:
    """Return the location of a shard's index."""
    return tar_url.removesuffix(".tar") + ".idx.npz"


def write_shard(
    tar_url: str, samples: Sequence[tuple[str, Mapping[str, bytes]]], *, extensions: tuple[str, ...]
) -> ShardFiles:
    """Write a whole shard and its index atomically, the index last."""
    with filesystem.atomic_write(tar_url) as stream:
        writer = TarShardWriter(stream, extensions=extensions)
        for key, members in samples:
            writer.add(key, members)
        index, tar_sha256, tar_bytes = writer.finish()
    index_bytes = index.to_bytes()
    filesystem.write_bytes(index_url(tar_url), index_bytes)
    return ShardFiles(len(index), tar_bytes, tar_sha256, hashlib.sha256(index_bytes).hexdigest())


class TarShardReader:
    """Reads samples of one shard by number, each member checked against its crc32.

    Args:
        tar_url: The shard.
        index_sha256: Hash the manifest records for the index; None skips that check.
    """

    def __init__(self, tar_url: str, *, index_sha256: str | None) -> None:
        self.tar_url = tar_url
        data = filesystem.read_bytes(index_url(tar_url))
        if index_sha256 is not None and hashlib.sha256(data).hexdigest() != index_sha256:
            raise CorruptShard("the shard index does not match the manifest", where=index_url(tar_url))
        self.index = ShardIndex.from_bytes(data, where=index_url(tar_url))
        self._stream: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def read(self, sample: int) -> dict[str, bytes]:
        """Return the members of a sample by extension.

        Raises:
            CorruptShard: A member is cut or its checksum does not match.
            StorageError: The disk or the store refused.
        """
        start, end = self.index.span(sample)
        stretch = self._read_stretch(start, end - start)
        members = {}
        for column, extension in enumerate(self.index.extensions):
            offset = int(self.index.offsets[sample, column])
            if offset < 0:
                continue
            size = int(self.index.sizes[sample, column])
            data = stretch[offset - start : offset - start + size]
            if len(data) != size or zlib.crc32(data) != int(self.index.crc32[sample, column]):
                raise CorruptShard(
                    f"sample {self.index.keys[sample]}: member .{extension} does not match its checksum",
                    where=self.tar_url,
                )
            members[extension] = data
        return members

    def _read_stretch(self, start: int, size: int) -> bytes:
        if not filesystem.is_local(self.tar_url):
            return filesystem.read_range(self.tar_url, start, size)
        if self._stream is None:
            self._stream = filesystem.open_read(self.tar_url)
        try:
            self._stream.seek(start)
            return self._stream.read(size)
        except OSError as error:
            self.close()  # a handle can go stale; the next read opens the file again
            raise StorageError(f"cannot read: {error.strerror or error}", where=self.tar_url) from error

    def close(self) -> None:
        """Close the file handle, if one is open."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
