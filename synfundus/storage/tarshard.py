"""Tar shards with an index: what plain webdataset reads, plus seek and proof.

A shard is an ordinary ustar file ``NNNNNN.tar`` (owner, group and time normalised) and ``NNNNNN.idx.npz``
beside it, which gives for each sample its key and for each of its members offset, size and crc32. The index
lets a reader fetch any sample without reading what lies before it, and proves what was read.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from synfundus.errors import CorruptShard, DataError, StorageError
from synfundus.storage import filesystem
from synfundus.storage.byte_source import ByteSource, open_byte_source
from synfundus.storage.shard_index import EXTENSION_PATTERN, KEY_PATTERN, MemberPlace, ShardIndex, index_url

__all__ = ["KEY_PATTERN", "ShardFiles", "ShardIndex", "TarShardReader", "TarShardWriter", "index_url", "write_shard"]

_BLOCK = 512
_INDEX_READINGS = 3


@dataclass(frozen=True)
class ShardFiles:
    """What a finished shard consists of, as the manifest records it."""

    num_samples: int
    tar_bytes: int
    tar_sha256: str
    index_sha256: str


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
            row.append((self._position, len(data), crc32(data)))
            self._write(data)
            self._write(b"\0" * (-len(data) % _BLOCK))
        self._seen.add(key)
        self._keys.append(key)
        self._rows.append(row)

    @property
    def num_samples(self) -> int:
        """Samples written so far."""
        return len(self._keys)

    def finish(self, states: NDArray[np.int16] | None = None) -> tuple[ShardIndex, str, int]:
        """Write the end of the archive; returns (index, sha256 of the tar, bytes of the tar).

        Args:
            states: Label states of the samples ``[n, k]``, for the index; None leaves them to the JSON members.
        """
        self._write(b"\0" * (2 * _BLOCK))
        table = np.array(self._rows, dtype=np.int64).reshape(len(self._keys), len(self._extensions), 3)
        index = ShardIndex(
            key_array=np.array(self._keys, dtype=np.bytes_),
            extensions=self._extensions,
            offsets=table[:, :, 0],
            sizes=table[:, :, 1],
            crc32=table[:, :, 2].astype(np.uint32),
            states=states,
        )
        return index, self._sha256.hexdigest(), self._position


def write_shard(
    tar_url: str,
    samples: Iterable[tuple[str, Mapping[str, bytes]]],
    *,
    extensions: tuple[str, ...],
    states: NDArray[np.int16] | Callable[[], NDArray[np.int16]] | None = None,
) -> ShardFiles:
    """Write a whole shard and its index atomically, the index last.

    Args:
        tar_url: The shard.
        samples: Keys and members.
        extensions: Of the members, in the order they are written.
        states: Label states of the samples ``[n, k]``, so that a reader need not parse their JSON, or what returns
            them once the last sample is written; None leaves them out of the index.
    """
    with filesystem.atomic_write(tar_url) as stream:
        writer = TarShardWriter(stream, extensions=extensions)
        for key, members in samples:
            writer.add(key, members)
        index, tar_sha256, tar_bytes = writer.finish(states() if callable(states) else states)
    index_bytes = index.to_bytes()
    filesystem.write_bytes(index_url(tar_url), index_bytes)
    return ShardFiles(len(index), tar_bytes, tar_sha256, hashlib.sha256(index_bytes).hexdigest())


def _read_index(url: str, sha256: str | None) -> ShardIndex:
    """Read an index, as often as it takes to get what the manifest says: it stands for all samples of its shard.

    Raises:
        CorruptShard: Not the index the manifest means.
        StorageError: It is not there, or cannot be read.
    """
    if sha256 is None:
        data = filesystem.read_bytes(url)
    elif filesystem.is_local(url):
        data = _read_again_if_wrong(url, sha256)
    else:
        stream = io.BytesIO()
        try:
            filesystem.fetch(url, stream, sha256=sha256)
        except CorruptShard as error:
            raise CorruptShard(error.message, where=error.where, reason="index") from error
        data = stream.getvalue()
    return ShardIndex.from_bytes(data, where=url)


def _read_again_if_wrong(url: str, sha256: str) -> bytes:
    for readings_left in range(_INDEX_READINGS - 1, -1, -1):
        try:
            data = filesystem.read_bytes(url)
        except StorageError as error:
            if not readings_left or isinstance(error.__cause__, FileNotFoundError):
                raise
        else:
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
    raise CorruptShard("the shard index does not match the manifest", where=url, reason="index")


class TarShardReader:
    """Reads samples of one shard by number, each member checked against its crc32.

    Args:
        tar_url: The shard.
        index_sha256: Hash the manifest records for the index; None skips that check.
        open_bytes: How to reach the tar's bytes; None reads it where it lies.
    """

    def __init__(
        self, tar_url: str, *, index_sha256: str | None, open_bytes: Callable[[], ByteSource] | None = None
    ) -> None:
        self.tar_url = tar_url
        self.index = _read_index(index_url(tar_url), index_sha256)
        self._open_bytes = open_bytes or (lambda: open_byte_source(tar_url))
        self._bytes: ByteSource | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.index)

    def read(self, sample: int) -> dict[str, bytes]:
        """Return the members of a sample by extension.

        Raises:
            CorruptShard: A member is cut or its checksum does not match.
            StorageError: The disk or the store refused.
        """
        start, end = self.index.span(sample)
        stretch = self._source().read(start, end - start, lambda data: self._wrong_member(sample, start, data))
        return {
            extension: stretch[offset - start : offset - start + size]
            for extension, offset, size, _ in self.index.members(sample)
        }

    def _wrong_member(self, sample: int, start: int, stretch: bytes) -> str:
        """Say which member of a sample does not match its checksum; empty if all do."""
        view = memoryview(stretch)
        for extension, offset, size, crc in self.index.members(sample):
            data = view[offset - start : offset - start + size]
            if len(data) != size or crc32(data) != crc:
                return f"sample {self.index.key(sample)}: member .{extension} does not match its checksum"
        return ""

    def read_into(self, sample: int, place: MemberPlace, buffers: Sequence[memoryview]) -> None:
        """Read one member of a sample straight into buffers.

        Args:
            sample: Number of the sample, for messages.
            place: Where the index says the member lies.
            buffers: Writable, together as long as the member; filled one after the other.

        Raises:
            CorruptShard: The bytes do not match their checksum.
        """

        def wrong() -> str:
            value = 0
            for buffer in buffers:
                value = crc32(buffer, value)
            if value == place.crc32:
                return ""
            return f"sample {self.index.key(sample)}: a member does not match its checksum"

        self._source().read_into(place.offset, buffers, wrong)

    @property
    def is_here(self) -> bool:
        """Whether reads go to this machine's disk."""
        return self._source().is_here

    def _source(self) -> ByteSource:
        source = self._bytes
        if source is None:
            with self._lock:
                source = self._bytes = self._bytes or self._open_bytes()
        return source

    def close(self) -> None:
        """Close the file, if it is open, after those who are reading."""
        with self._lock:
            if self._bytes is not None:
                self._bytes.close()
                self._bytes = None
