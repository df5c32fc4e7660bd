"""Ranges of bytes of a shard, from a file or from an object store, with the caller's own proof of what came.

A local file is read with ``pread``: no shared position, no mapped pages that would end the process when the file is
cut under it, and straight into the buffer where the bytes are wanted.
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
    """Where the bytes of a shard come from."""

    @property
    def is_here(self) -> bool:
        """Whether a read goes to this machine's disk, and not over a network to a store."""

    def read(self, start: int, size: int, wrong: Callable[[bytes], str]) -> bytes:
        """Return a range; ``wrong`` says what is wrong with it, or nothing.

        Raises:
            CorruptShard: The bytes do not prove right, however often they are read.
        """

    def read_into(self, start: int, buffers: Sequence[memoryview], wrong: Callable[[], str]) -> None:
        """Fill buffers with the bytes from an offset on; ``wrong`` looks at them then.

        Raises:
            CorruptShard: The bytes do not prove right, however often they are read.
        """

    def close(self) -> None:
        """Give back what is held open."""


def open_byte_source(url: str) -> ByteSource:
    """Return the source of a location."""
    return LocalBytes(filesystem.local_path(url), url) if filesystem.is_local(url) else RemoteBytes(url)


class LocalBytes:
    """Bytes of a file.

    Args:
        path: The file.
        url: What messages call it.
        stream: The file, where it is open already.
        open_stream: Opens it again; None opens the path.
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
    def is_here(self) -> bool:
        """It is."""
        return True

    def _attempts(self, attempt: Callable[[int], str]) -> None:
        """Try twice, the second time with the file opened again: a handle can go stale on a shared file system."""
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

    def read(self, start: int, size: int, wrong: Callable[[bytes], str]) -> bytes:
        """Return a range that proved right."""
        data = b""

        def attempt(descriptor: int) -> str:
            nonlocal data
            data = os.pread(descriptor, size, start)
            return wrong(data)

        self._attempts(attempt)
        return data

    def read_into(self, start: int, buffers: Sequence[memoryview], wrong: Callable[[], str]) -> None:
        """Fill buffers with bytes that prove right."""
        size = sum(map(len, buffers))

        def attempt(descriptor: int) -> str:
            found = os.preadv(descriptor, buffers, start)
            return wrong() if found == size else f"{found} of {size} bytes are there"

        self._attempts(attempt)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RemoteBytes:
    """Bytes of an object, each range a request of its own."""

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def is_here(self) -> bool:
        """It is not."""
        return False

    def read(self, start: int, size: int, wrong: Callable[[bytes], str]) -> bytes:
        """Return a range that proved right."""
        return filesystem.read_checked(self._url, start, size, wrong)

    def read_into(self, start: int, buffers: Sequence[memoryview], wrong: Callable[[], str]) -> None:
        """Fill buffers with bytes that prove right."""
        size = sum(len(buffer) for buffer in buffers)

        def unpack(data: bytes) -> str:
            at = 0
            for buffer in buffers:
                buffer[:] = data[at : at + len(buffer)]
                at += len(buffer)
            return wrong()

        self.read(start, size, unpack)

    def close(self) -> None:
        """Nothing is held."""
