"""Strict sequential reading of a tar shard without its index.

Only regular files with valid member names in ustar headers are accepted, long names in GNU headers. Links, devices,
sparse files, PAX headers, and sizes that are negative, in base 256 or beyond the end of the file are errors. Nothing
is extracted, and no memory is allocated because of an unchecked header.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from synfundus.errors import CorruptShard

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_CHUNK_BYTES = 2**20
_SIZE_FIELD, _SUM_FIELD, _PREFIX_FIELD = slice(124, 136), slice(148, 156), slice(345, 500)
_TYPE_BYTE = 156
_MAX_NAME_BYTES = 512
_OCTAL = re.compile(rb" *([0-7]{1,11})[ \0]*")
_MEMBER_NAME = re.compile(r"([A-Za-z0-9_-]{1,128})\.([a-z0-9]+(?:\.[a-z0-9]+)*)")
_REGULAR = (b"0", b"\0")
_REFUSED_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a folder",
    b"6": "a named pipe",
    b"7": "a contiguous file",
    b"S": "a sparse file",
    b"K": "a long link name",
    b"x": "a PAX header",
    b"g": "a PAX header for all members",
}


@dataclass(frozen=True)
class TarMember:
    """A member: its key and extension, the offset of its payload, the payload and its crc32."""

    key: str
    extension: str
    offset: int
    data: bytes
    crc32: int


class TarWalk:
    """One pass over a tar.

    Args:
        stream: The tar, at its beginning.
        num_bytes: Length of the file.
        max_member_bytes: Maximum size of a member.
        where: Location, for messages.
    """

    def __init__(self, stream: IO[bytes], *, num_bytes: int, max_member_bytes: int, where: str) -> None:
        self._stream = stream
        self._num_bytes = num_bytes
        self._max_member_bytes = max_member_bytes
        self._where = where
        self._sha256 = hashlib.sha256()
        self._position = 0

    def _corrupt(self, problem: str, at: int) -> CorruptShard:
        return CorruptShard(f"the tar is invalid at byte {at}: {problem}", where=self._where)

    def _read(self, size: int) -> bytes:
        pieces = []
        while size > 0 and (piece := self._stream.read(min(size, _CHUNK_BYTES))):
            self._sha256.update(piece)
            self._position += len(piece)
            size -= len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _header(self) -> tuple[bytes, int] | None:
        """Return (header, payload size), or None at the end of the archive."""
        at = self._position
        header = self._read(_BLOCK)
        if header == _ZEROS:
            self._check_end(at)
            return None
        if len(header) < _BLOCK:
            raise self._corrupt("it ends without an end mark" if not header else "it is truncated in a header", at)
        stored = _OCTAL.fullmatch(header[_SUM_FIELD])
        if stored is None or int(stored[1], 8) != sum(header) - sum(header[_SUM_FIELD]) + 8 * ord(" "):
            raise self._corrupt("a header does not match its checksum", at)
        size = _OCTAL.fullmatch(header[_SIZE_FIELD])
        if size is None:
            raise self._corrupt("the size of a member is negative or not a plain number", at)
        return header, int(size[1], 8)

    def _check_end(self, at: int) -> None:
        """Check that there is no data after the end mark, where tar readers stop."""
        rest = 0
        while piece := self._read(_CHUNK_BYTES):
            rest += len(piece)
            if piece.count(0) != len(piece):
                raise self._corrupt("there is data after the end mark", at)
        if rest < _BLOCK:
            raise self._corrupt("it is truncated in the end mark", at)

    def _payload(self, size: int, at: int, max_bytes: int) -> bytes:
        if size > max_bytes:
            raise self._corrupt(f"a member claims {size} bytes, more than {max_bytes}", at)
        padding = -size % _BLOCK
        if self._position + size + padding > self._num_bytes:
            raise self._corrupt(f"a member claims {size} bytes, the file ends before", at)
        data = self._read(size)
        if len(data) != size or self._read(padding).count(0) != padding:
            raise self._corrupt("the padding of a member is not empty", at)
        return data

    def _next(self) -> TarMember | None:
        at = self._position
        found = self._header()
        if found is None:
            return None
        header, size = found
        name = header[:100].split(b"\0", 1)[0]
        if header[_TYPE_BYTE : _TYPE_BYTE + 1] == b"L":
            name = self._payload(size, at, _MAX_NAME_BYTES).rstrip(b"\0")
            found = self._header()
            if found is None:
                raise self._corrupt("a long name without a member", at)
            header, size = found
        kind = header[_TYPE_BYTE : _TYPE_BYTE + 1]
        text = name.decode("latin-1")
        if kind not in _REGULAR:
            raise self._corrupt(
                f"{text[:100]!r} is {_REFUSED_TYPES.get(kind, f'of type {kind!r}')}, not a plain file", at
            )
        match = _MEMBER_NAME.fullmatch(text)
        if match is None or header[_PREFIX_FIELD].strip(b"\0"):
            raise self._corrupt(f"{text[:200]!r} is not a valid member name", at)
        start = self._position
        data = self._payload(size, at, self._max_member_bytes)
        return TarMember(match[1], match[2], start, data, zlib.crc32(data))

    def __iter__(self) -> Iterator[TarMember]:
        """Yield the members in order.

        Raises:
            CorruptShard: The tar is truncated or contains anything else than a shard may; names the byte offset.
        """
        while (member := self._next()) is not None:
            yield member

    def finish(self) -> tuple[str, int]:
        """Read the rest; return (sha256 of the file, its size)."""
        while self._read(_CHUNK_BYTES):
            pass
        return self._sha256.hexdigest(), self._position
