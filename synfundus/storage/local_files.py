"""Local files: durable renames, atomic writes, recursive listings."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def fsync_dir(folder: Path) -> None:
    """Make renames in a local folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def write_in_place(target: Path) -> Iterator[IO[bytes]]:
    """Write a file under a temporary name, then fsync, rename, and fsync of the folder.

    Raises:
        OSError: The disk failed; nothing is left under the final name.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
        fsync_dir(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def walk_files(root: Path) -> Iterator[tuple[str, int]]:
    """Yield (relative name, size) of files, without hidden folders; nothing if the folder does not exist.

    Raises:
        OSError: A folder cannot be read.
    """
    if not root.exists():
        return
    for folder, subfolders, names in os.walk(root, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if path.is_file():
                yield path.relative_to(root).as_posix(), path.stat().st_size


def _raise(error: OSError) -> None:
    raise error
