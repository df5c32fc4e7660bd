"""Bytes that count only when the caller's own measure says so, read again until it does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from synfundus.errors import CorruptShard

_MOST_READINGS = 16
_SAME_WRONG_BYTES = 3


def read_until_right(
    read: Callable[[], tuple[bytes, str]], size: int, wrong: Callable[[bytes], str], *, where: str
) -> bytes:
    """Read until the bytes prove right.

    Bytes that come wrong in the same way three times are wrong in the file; bytes that differ from one reading to the
    next are damaged on their way, and asked for up to 16 times.

    Args:
        read: Returns (bytes, what tells this version of the file from others; may be empty).
        size: Number of bytes there must be.
        wrong: Says what is wrong with the bytes, or nothing. Not asked about bytes of another length.
        where: The file, for the message.

    Raises:
        CorruptShard: The bytes do not prove right; names the file and its version, or both where it was replaced.
    """
    seen: dict[bytes, int] = {}
    first, now, problem, readings = "", "", "", 0
    while readings < _MOST_READINGS:
        data, now = read()
        readings += 1
        problem = wrong(data) if len(data) == size else f"{len(data)} bytes are there, {size} were expected"
        if not problem:
            return data
        first = first or now
        digest = hashlib.sha256(data).digest()
        seen[digest] = seen.get(digest, 0) + 1
        if seen[digest] == _SAME_WRONG_BYTES:
            break
    if now != first:
        problem += f"; the object was replaced meanwhile, it was {first}"
    facts = f" (now {now})" if now else ""
    raise CorruptShard(f"{problem}, read {readings} times{facts}", where=where, reason="checksum")
