"""Tar shards with an index: readable by plain webdataset, with random access and checksums.

A shard is an ordinary ustar file ``NNNNNN.tar`` (owner, group and time normalised) with an index ``NNNNNN.idx.npz``
beside it: the key of each sample, and offset, size and crc32 of each of its members. With the index a reader reads
any sample directly and verifies it.
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
from synfundus.storage.shard_index import EXTENSION_PATTERN, KEY_PATTERN, MemberEntry, ShardIndex, index_url

__all__ = ["KEY_PATTERN", "ShardFiles", "ShardIndex", "TarShardReader", "TarShardWriter", "index_url", "write_shard"]

_BLOCK = 512
_INDEX_READINGS = 3


@dataclass(frozen=True)
class ShardFiles:
    """Size and hashes of a written shard, as recorded in the manifest."""

    num_samples: int
    tar_bytes: int
    tar_sha256: str
    index_sha256: str


def _member_header(name: str, size: int) -> bytes:
    """Return a header with owner, group and time normalised; long names get a GNU long-name header."""
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
            DataError: An invalid or duplicate key, or an extension that was not declared.
        """
        if not KEY_PATTERN.fullmatch(key):
            raise DataError(f"sample key {key!r} does not match {KEY_PATTERN.pattern}")
        if key in self._seen:
            raise DataError(f"sample key {key!r} twice in one shard")
        undeclared = set(members) - set(self._extensions)
        if undeclared or not members:
            raise DataError(f"sample {key!r} has members {sorted(members)}, declared are {list(self._extensions)}")
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

    def finish(self, states: NDArray[np.int16] | None = None) -> tuple[ShardIndex, str, int]:
        """Write the end of the archive; return (index, sha256 of the tar, size of the tar).

        Args:
            states: Label states of the samples ``[n, k]``, for the index; None leaves them in the JSON members only.
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
        extensions: Extensions of the members, in writing order.
        states: Label states ``[n, k]``, or a function that returns them after the last sample, stored in the index so
            that readers need not parse JSON; None leaves them out.
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
    """Read an index; retry until it matches the manifest, because all samples of the shard depend on it.

    Raises:
        CorruptShard: It does not match the manifest.
        StorageError: It is missing or cannot be read.
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
    """Reads samples of one shard by number; checks each member against its crc32.

    Args:
        tar_url: The shard.
        index_sha256: Hash of the index in the manifest; None skips the check.
        open_bytes: Returns the source of the tar's bytes; None reads ``tar_url``.
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
            CorruptShard: A member is truncated or does not match its checksum.
            StorageError: The disk or the store failed.
        """
        start, end = self.index.span(sample)
        data = self._source().read(start, end - start, lambda read: self._damaged_member(sample, start, read))
        return {
            extension: data[offset - start : offset - start + size]
            for extension, offset, size, _ in self.index.members(sample)
        }

    def _damaged_member(self, sample: int, start: int, data: bytes) -> str:
        """Name the first member of a sample that does not match its checksum; empty if all match."""
        view = memoryview(data)
        for extension, offset, size, crc in self.index.members(sample):
            member = view[offset - start : offset - start + size]
            if len(member) != size or crc32(member) != crc:
                return f"sample {self.index.key(sample)}: member .{extension} does not match its checksum"
        return ""

    def read_into(self, sample: int, entry: MemberEntry, buffers: Sequence[memoryview]) -> None:
        """Read one member of a sample into buffers, without a copy.

        Args:
            sample: Number of the sample, for messages.
            entry: Entry of the member in the index.
            buffers: Writable, together as long as the member; filled in order.

        Raises:
            CorruptShard: The bytes do not match the checksum.
        """

        def check() -> str:
            value = 0
            for buffer in buffers:
                value = crc32(buffer, value)
            if value == entry.crc32:
                return ""
            return f"sample {self.index.key(sample)}: a member does not match its checksum"

        self._source().read_into(entry.offset, buffers, check)

    @property
    def is_local(self) -> bool:
        """Whether reads use a local file."""
        return self._source().is_local

    def _source(self) -> ByteSource:
        source = self._bytes
        if source is None:
            with self._lock:
                source = self._bytes = self._bytes or self._open_bytes()
        return source

    def close(self) -> None:
        """Close the file after its last reader."""
        with self._lock:
            if self._bytes is not None:
                self._bytes.close()
                self._bytes = None
