"""Read bytes again until they pass the caller's check."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from synfundus.errors import CorruptShard

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
