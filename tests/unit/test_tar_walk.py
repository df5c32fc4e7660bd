"""A tar of unknown origin, read from front to end: whatever it claims is checked before it is believed."""

from __future__ import annotations

import io
import tarfile

import pytest

from synfundus.errors import CorruptShard
from synfundus.storage.tar_walk import TarWalk

BLOCK = 512
HEADERS = slice(0, BLOCK)


def tar_of(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"{name}.json")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    content = sum(BLOCK + -(-len(data) // BLOCK) * BLOCK for data in members.values())
    return stream.getvalue()[: content + 2 * BLOCK]


def walk(data: bytes, *, most: int = 4096, claimed: int | None = None) -> list[tuple[str, bytes]]:
    tar = TarWalk(io.BytesIO(data), num_bytes=claimed or len(data), max_member_bytes=most, where="a.tar")
    return [(member.key, member.data) for member in tar]


def with_checksum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


DATA = tar_of(a=b"1" * 700, b=b"2")


def test_members_are_found_in_order() -> None:
    assert walk(DATA) == [("a", b"1" * 700), ("b", b"2")]


@pytest.mark.parametrize("missing", [1, BLOCK - 1, BLOCK])
def test_a_tar_that_is_cut_within_its_end_mark_is_refused(missing: int) -> None:
    with pytest.raises(CorruptShard, match="truncated in the end mark"):
        walk(DATA[:-missing])


def test_a_tar_without_an_end_mark_and_data_behind_it_are_refused() -> None:
    with pytest.raises(CorruptShard, match="without an end mark"):
        walk(DATA[: -2 * BLOCK])
    with pytest.raises(CorruptShard, match="data after the end mark"):
        walk(DATA + b"x" * BLOCK)


def test_the_size_a_member_claims_is_limited_before_it_is_read() -> None:
    assert walk(DATA, most=700)[0][1] == b"1" * 700
    with pytest.raises(CorruptShard, match="claims 700 bytes, more than 699"):
        walk(DATA, most=699)
    huge = with_checksum(DATA[:124] + b"%011o\0" % (2**32) + DATA[136:BLOCK]) + DATA[BLOCK:]
    with pytest.raises(CorruptShard, match="claims 4294967296 bytes, more than"):
        walk(huge, claimed=2**33)


def test_a_header_with_another_checksum_is_refused() -> None:
    with pytest.raises(CorruptShard, match="does not match its checksum"):
        walk(b"z" + DATA[1:])


@pytest.mark.parametrize(("kind", "name"), [(b"1", "a hard link"), (b"2", "a symbolic link"), (b"5", "a folder")])
def test_only_plain_files_are_read(kind: bytes, name: str) -> None:
    with pytest.raises(CorruptShard, match=f"is {name}, not a plain file"):
        walk(with_checksum(DATA[:156] + kind + DATA[157:BLOCK]) + DATA[BLOCK:])
