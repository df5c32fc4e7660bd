"""Byte ranges of a shard, from a file or an object store, checked by the caller.

A local file is read with ``pread``: no shared position, no mapped pages, which would kill the process if the file were
truncated, and no copy between the file and the caller's buffer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Protocol

from synfundus.errors import CorruptShard, StorageError
from synfundus.storage import filesystem
from synfundus.storage.open_files import OpenFile


class ByteSource(Protocol):
    """Source of the bytes of a shard."""

    @property
    def is_local(self) -> bool:
        """Whether reads use a local file instead of requests to a store."""

    def read(self, start: int, size: int, check: Callable[[bytes], str]) -> bytes:
        """Return a range for which ``check`` returns no problem (an empty string).

        Raises:
            CorruptShard: The bytes do not pass the check after repeated reads.
        """

    def read_into(self, start: int, buffers: Sequence[memoryview], check: Callable[[], str]) -> None:
        """Fill buffers with the bytes from an offset; ``check`` then returns a problem or an empty string.

        Raises:
            CorruptShard: The bytes do not pass the check after repeated reads.
        """

    def close(self) -> None:
        """Close open files."""


def open_byte_source(url: str) -> ByteSource:
    """Return the source of a location."""
    return LocalBytes(filesystem.local_path(url), url) if filesystem.is_local(url) else RemoteBytes(url)


class LocalBytes:
    """Bytes of a file.

    Args:
        path: The file.
        url: Its location, for messages.
        stream: The file, if it is already open.
        open_stream: Reopens it; None opens the path.
    """

    def __init__(
        self,
        path: Path,
        url: str,
        *,
        stream: IO[bytes] | None = None,
        open_stream: Callable[[], IO[bytes]] | None = None,
    ) -> None:
        self._url = url
        self._file = OpenFile(open_stream or (lambda: path.open("rb", buffering=0)), stream)

    @property
    def is_local(self) -> bool:
        """True."""
        return True

    def _attempts(self, attempt: Callable[[int], str]) -> None:
        """Try twice, the second time with the file reopened: a handle can go stale on a shared file system."""
        for last in (False, True):
            opened = False
            try:
                handle = self._file.acquire()
                opened = True
                try:
                    problem = attempt(handle.descriptor)
                finally:
                    self._file.release(handle)
            except OSError as error:
                if last:
                    action = "read" if opened else "open"
                    raise StorageError(f"cannot {action}: {error.strerror or error}", where=self._url) from error
            else:
                if not problem:
                    return
                if last:
                    raise CorruptShard(problem, where=self._url, reason="checksum")
            self._file.close()

    def read(self, start: int, size: int, check: Callable[[bytes], str]) -> bytes:
        """Return a range that passes the check."""
        data = b""

        def attempt(descriptor: int) -> str:
            nonlocal data
            data = os.pread(descriptor, size, start)
            return check(data)

        self._attempts(attempt)
        return data

    def read_into(self, start: int, buffers: Sequence[memoryview], check: Callable[[], str]) -> None:
        """Fill buffers with bytes that pass the check."""
        size = sum(map(len, buffers))

        def attempt(descriptor: int) -> str:
            found = os.preadv(descriptor, buffers, start)
            return check() if found == size else f"{found} of {size} bytes are there"

        self._attempts(attempt)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RemoteBytes:
    """Bytes of an object, one request per range."""

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def is_local(self) -> bool:
        """False."""
        return False

    def read(self, start: int, size: int, check: Callable[[bytes], str]) -> bytes:
        """Return a range that passes the check."""
        return filesystem.read_checked(self._url, start, size, check)

    def read_into(self, start: int, buffers: Sequence[memoryview], check: Callable[[], str]) -> None:
        """Fill buffers with bytes that pass the check."""
        size = sum(len(buffer) for buffer in buffers)

        def unpack(data: bytes) -> str:
            at = 0
            for buffer in buffers:
                buffer[:] = data[at : at + len(buffer)]
                at += len(buffer)
            return check()

        self.read(start, size, unpack)

    def close(self) -> None:
        """Nothing to close."""
