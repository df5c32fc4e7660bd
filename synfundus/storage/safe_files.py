"""Local files: durable renames, atomic writes, recursive listings; and bytes read again until they pass a check."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from synfundus.errors import CorruptShard


def fsync_dir(folder: Path) -> None:
    """Make renames in a local folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Make all files below a local folder durable, then their names, then the folder's own list of names."""
    for at, _, names in os.walk(folder, topdown=False):
        for name in names:
            fsync_dir(Path(at, name))
        fsync_dir(Path(at))


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


BROKEN = -1
"""Size of a link that leads to nothing."""
MOST_HIDDEN = 10_000
"""Files listed of one hidden folder: it may hold the snapshots of a file system."""


def is_hidden(name: str) -> bool:
    """Whether a relative name, or that of a folder in it, begins with a dot."""
    return any(part.startswith(".") and part.strip(".") for part in name.split("/"))


def walk_files(root: Path, *, everything: bool = False) -> Iterator[tuple[str, int]]:
    """Yield (relative name, size) of files, without hidden folders; nothing if the folder does not exist.

    Links to folders are followed, each link once, where its name is shortest, and none to a folder that it lies in.

    Args:
        root: The folder.
        everything: Yield links to nothing too, with the size `BROKEN`, and what hidden folders hold, with the size 0
            and no more than `MOST_HIDDEN` of each.

    Raises:
        OSError: A folder cannot be read.
    """
    if not root.exists():
        return
    followed: set[Path] = set()
    waiting = deque([(root, frozenset({root.resolve()}))])
    while waiting:
        folder, above = waiting.popleft()
        real = folder.resolve()
        for path in sorted(folder.iterdir()):
            if path.is_file():
                yield path.relative_to(root).as_posix(), path.stat().st_size
            elif path.is_symlink() and not path.exists():
                if everything:
                    yield path.relative_to(root).as_posix(), BROKEN
            elif path.is_dir() and path.name.startswith("."):
                yield from _within(path, root) if everything else ()
            elif path.is_dir():
                target, link = path.resolve(), real / path.name
                if target in above or link in followed:
                    continue
                if path.is_symlink():
                    followed.add(link)
                waiting.append((path, above | {target}))


def _within(folder: Path, root: Path) -> Iterator[tuple[str, int]]:
    """Yield what a hidden folder holds, where it can be read; its links are not followed."""
    names = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
    for path in islice(names, MOST_HIDDEN):
        yield path.relative_to(root).as_posix(), 0


_MAX_READINGS = 16
_SAME_WRONG_BYTES = 3


def read_until_valid(
    read: Callable[[], tuple[bytes, str]], size: int, check: Callable[[bytes], str], *, where: str
) -> bytes:
    """Read until the bytes pass the check.

    If the same invalid bytes come three times, the file is damaged; if they differ from read to read, the transfer is
    damaged, and they are read up to 16 times.

    Args:
        read: Returns (bytes, description of the version of the file; may be empty).
        size: Expected number of bytes.
        check: Returns a problem with the bytes or an empty string. Not called if the length differs.
        where: The file, for messages.

    Raises:
        CorruptShard: The bytes do not pass; names the version of the file, or both versions if it was replaced.
    """
    seen: dict[bytes, int] = {}
    first, now, problem, readings = "", "", "", 0
    while readings < _MAX_READINGS:
        data, now = read()
        readings += 1
        problem = check(data) if len(data) == size else f"{len(data)} bytes were read, {size} were expected"
        if not problem:
            return data
        first = first or now
        digest = hashlib.sha256(data).digest()
        seen[digest] = seen.get(digest, 0) + 1
        if seen[digest] == _SAME_WRONG_BYTES:
            break
    if now != first:
        problem += f"; the object was replaced in the meantime, it was {first}"
    version = f" (now {now})" if now else ""
    raise CorruptShard(f"{problem}, read {readings} times{version}", where=where, reason="checksum")
