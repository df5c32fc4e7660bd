"""Shards: the same bytes for the same samples, seekable, and every flipped byte is found."""

from __future__ import annotations

import errno
import hashlib
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_sets import flip_byte

from synfundus.errors import CorruptShard, DataError, StorageError
from synfundus.storage import filesystem
from synfundus.storage.tarshard import ShardIndex, TarShardReader, index_url, write_shard

Sample = tuple[str, dict[str, bytes]]

SAMPLES: list[Sample] = [
    ("a-1", {"json": b'{"labels": {}}', "png": b"first picture" * 50}),
    ("b_2", {"json": b"{}", "png": b""}),
    ("C3", {"png": bytes(range(256)) * 4}),
    ("d", {"json": b"x" * 511, "png": b"y" * 512}),
]
TAR_SHA256 = "601ef095fe8e6dc9449234d562fcf7d2528744862be612a873ef72a3914649f1"
keys = st.text("abcdefXYZ0189_-", min_size=1, max_size=20)
shards = st.lists(st.tuples(keys, st.binary(max_size=1200), st.none() | st.binary(max_size=90)), max_size=6).map(
    lambda rows: [
        (key, {"png": png} | ({} if meta is None else {"json": meta}))
        for key, png, meta in {row[0]: row for row in rows}.values()
    ]
)


def read_all(tar: Path) -> list[Sample]:
    reader = TarShardReader(str(tar), index_sha256=None)
    found = [(reader.index.keys[number], reader.read(number)) for number in range(len(reader))]
    reader.close()
    return found


@given(samples=shards)
def test_what_was_written_is_read_back(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> None:
    tar = tmp_path_factory.mktemp("shard") / "000000.tar"
    files = write_shard(str(tar), samples, extensions=("json", "png"))
    assert read_all(tar) == samples
    assert files.num_samples == len(samples)
    assert files.tar_bytes == tar.stat().st_size
    assert files.tar_sha256 == hashlib.sha256(tar.read_bytes()).hexdigest()
    assert files.index_sha256 == hashlib.sha256(Path(index_url(str(tar))).read_bytes()).hexdigest()


def test_the_same_samples_give_the_same_bytes_twice(tmp_path: Path) -> None:
    first = write_shard(str(tmp_path / "one" / "000000.tar"), SAMPLES, extensions=("json", "png"))
    second = write_shard(str(tmp_path / "two" / "000007.tar"), SAMPLES, extensions=("json", "png"))
    assert first == second


def test_the_bytes_do_not_change_between_versions(tmp_path: Path) -> None:
    files = write_shard(str(tmp_path / "000000.tar"), SAMPLES, extensions=("json", "png"))
    assert files.tar_sha256 == TAR_SHA256
    # the index holds numpy's own format: its hash may follow numpy, its content may not
    assert read_all(tmp_path / "000000.tar") == SAMPLES


def test_owner_group_time_and_mode_are_normalised(tmp_path: Path) -> None:
    tar = tmp_path / "000000.tar"
    write_shard(str(tar), SAMPLES, extensions=("json", "png"))
    with tarfile.open(tar) as archive:
        members = archive.getmembers()
    assert [m.name for m in members] == ["a-1.json", "a-1.png", "b_2.json", "b_2.png", "C3.png", "d.json", "d.png"]
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", 0)}
    assert {m.mode & 0o077 for m in members} == {0}


def test_members_lie_where_the_index_says(tmp_path: Path) -> None:
    tar = tmp_path / "000000.tar"
    write_shard(str(tar), SAMPLES, extensions=("json", "png"))
    index = TarShardReader(str(tar), index_sha256=None).index
    with tarfile.open(tar) as archive:
        by_name = {member.name: (member.offset_data, member.size) for member in archive.getmembers()}
    for row, key in enumerate(index.keys):
        for column, extension in enumerate(index.extensions):
            expected = by_name.get(f"{key}.{extension}", (-1, 0))
            assert (int(index.offsets[row, column]), int(index.sizes[row, column])) == expected


def test_samples_are_read_in_any_order(tmp_path: Path) -> None:
    tar = tmp_path / "000000.tar"
    write_shard(str(tar), SAMPLES, extensions=("json", "png"))
    reader = TarShardReader(str(tar), index_sha256=None)
    for number in (3, 0, 2, 0, 1):
        assert reader.read(number) == SAMPLES[number][1]
    reader.close()
    assert reader.read(2) == SAMPLES[2][1]
    reader.close()


@given(position=st.integers(0, 4095), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_in_a_member_is_found(
    position: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tar = tmp_path_factory.mktemp("flip") / "000000.tar"
    write_shard(str(tar), SAMPLES, extensions=("json", "png"))
    data = bytearray(tar.read_bytes())
    position %= len(data)
    data[position] ^= 1 << bit
    tar.write_bytes(data)
    reader = TarShardReader(str(tar), index_sha256=None)
    index = reader.index
    for number, (_, members) in enumerate(SAMPLES):
        spans = zip(index.offsets[number].tolist(), index.sizes[number].tolist(), strict=True)
        hit = any(offset <= position < offset + size for offset, size in spans if offset >= 0)
        if hit:
            with pytest.raises(CorruptShard, match=f"sample {SAMPLES[number][0]}: member"):
                reader.read(number)
        else:
            assert reader.read(number) == members
    reader.close()


def test_a_disk_that_refuses_is_a_storage_error_and_the_next_read_opens_the_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = tmp_path / "000000.tar"
    write_shard(str(tar), SAMPLES, extensions=("json", "png"))

    def stale(*_: object) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    reader = TarShardReader(str(tar), index_sha256=None)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", stale)
        with pytest.raises(StorageError, match="cannot read: Stale file handle") as caught:
            reader.read(0)
    assert caught.value.where == str(tar)
    assert reader.read(0) == SAMPLES[0][1]
    reader.close()


@pytest.mark.parametrize("kept", [0, 100, 600, 1500])
def test_a_cut_tar_is_found(tmp_path: Path, kept: int) -> None:
    tar = tmp_path / "000000.tar"
    write_shard(str(tar), SAMPLES, extensions=("json", "png"))
    tar.write_bytes(tar.read_bytes()[:kept])
    with pytest.raises(CorruptShard, match="does not match its checksum"):
        read_all(tar)


@pytest.mark.parametrize("key", ["", "a b", "../x", "a.b", "ü", "x" * 129, "a/b", "a\n", "\0"])
def test_a_malformed_key_is_refused(tmp_path: Path, key: str) -> None:
    tar = tmp_path / "000000.tar"
    with pytest.raises(DataError, match="does not match"):
        write_shard(str(tar), [(key, {"png": b"x"})], extensions=("png",))
    assert list(tmp_path.iterdir()) == []


def test_a_key_of_128_characters_is_the_longest(tmp_path: Path) -> None:
    tar = tmp_path / "000000.tar"
    long = [("x" * 128, {"moments.npy": b"1"}), ("y", {"moments.npy": b"2"})]
    write_shard(str(tar), long, extensions=("moments.npy",))
    assert read_all(tar) == long
    with tarfile.open(tar) as archive:
        assert archive.getnames() == ["x" * 128 + ".moments.npy", "y.moments.npy"]


def test_a_key_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'a' twice"):
        write_shard(str(tmp_path / "0.tar"), [("a", {"png": b"x"}), ("a", {"png": b"y"})], extensions=("png",))


@pytest.mark.parametrize("members", [{}, {"jpg": b"x"}, {"png": b"x", "pickle": b"x"}])
def test_members_that_were_not_announced_are_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(DataError, match="declared are"):
        write_shard(str(tmp_path / "0.tar"), [("a", members)], extensions=("png",))


@pytest.mark.parametrize("extension", ["", ".png", "PNG", "a/b", "png.", "p ng", "png\n"])
def test_a_malformed_extension_is_refused(tmp_path: Path, extension: str) -> None:
    with pytest.raises(DataError, match="extension"):
        write_shard(str(tmp_path / "0.tar"), [], extensions=(extension,))


def test_an_index_of_another_shard_is_refused_by_its_hash(tmp_path: Path) -> None:
    tar = tmp_path / "000000.tar"
    files = write_shard(str(tar), SAMPLES, extensions=("json", "png"))
    TarShardReader(str(tar), index_sha256=files.index_sha256)
    write_shard(str(tar), SAMPLES[:2], extensions=("json", "png"))
    with pytest.raises(CorruptShard, match="does not match the manifest"):
        TarShardReader(str(tar), index_sha256=files.index_sha256)


def test_a_damaged_index_is_a_corrupt_shard_and_nothing_else(tmp_path: Path) -> None:
    tar = tmp_path / "000000.tar"
    write_shard(str(tar), SAMPLES, extensions=("json", "png"))
    index = Path(index_url(str(tar)))
    good = index.read_bytes()
    for damaged in (b"", b"\0" * 40, b"PK\x03\x04", good[: len(good) // 2], good[:-30], b"not an archive"):
        index.write_bytes(damaged)
        with pytest.raises(CorruptShard, match="not a shard index"):
            TarShardReader(str(tar), index_sha256=None)


def test_a_flipped_byte_of_the_index_is_found_by_its_hash(tmp_path: Path) -> None:
    tar = tmp_path / "000000.tar"
    files = write_shard(str(tar), SAMPLES, extensions=("json", "png"))
    index = Path(index_url(str(tar)))
    for position in range(0, index.stat().st_size, 97):
        flip_byte(index, position)
        with pytest.raises(CorruptShard):
            TarShardReader(str(tar), index_sha256=files.index_sha256)
        flip_byte(index, position)


@pytest.mark.usefixtures("memory_store")
def test_the_hash_of_an_index_is_checked_on_every_kind_of_store() -> None:
    """Not only on s3: a protocol that is added gets the check too."""
    tar = "memory://synfundus-index/000000.tar"
    try:
        files = write_shard(tar, SAMPLES, extensions=("json", "png"))
        assert TarShardReader(tar, index_sha256=files.index_sha256).index.keys == tuple(key for key, _ in SAMPLES)
        write_shard(tar, SAMPLES[:2], extensions=("json", "png"))
        with pytest.raises(CorruptShard, match=files.index_sha256) as caught:
            TarShardReader(tar, index_sha256=files.index_sha256)
        assert caught.value.reason == "index"
    finally:
        filesystem.remove("memory://synfundus-index", recursive=True)


def test_an_index_that_holds_pickles_is_refused(tmp_path: Path) -> None:
    tar = tmp_path / "000000.tar"
    write_shard(str(tar), SAMPLES, extensions=("json", "png"))
    table = np.zeros((1, 1), dtype=np.int64)
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(index_url(str(tar)), keys=objects, extensions=objects, offsets=table, sizes=table, crc32=table)
    with pytest.raises(CorruptShard, match="not a shard index"):
        TarShardReader(str(tar), index_sha256=None)


def test_a_key_that_is_not_ascii_is_refused_with_the_index() -> None:
    ones = np.ones((2, 1), dtype=np.int64)
    index = ShardIndex(np.array([b"a", b"s\xff"]), ("json",), ones * 512, ones, ones.astype(np.uint32))
    with pytest.raises(CorruptShard, match="a key that is not ASCII"):
        ShardIndex.from_bytes(index.to_bytes(), where="x")


def index_of(keys: Sequence[bytes], size: int, extensions: tuple[str, ...] = ("json",)) -> ShardIndex:
    shape = (len(keys), len(extensions))
    sizes = np.full(shape, size, dtype=np.int64)
    offsets = 512 + (size + 1024) * np.arange(shape[0] * shape[1], dtype=np.int64).reshape(shape)
    return ShardIndex(np.array(keys, dtype=np.bytes_), extensions, offsets, sizes, sizes.astype(np.uint32))


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        (index_of([b"a", b"b", b"a"], 10), "a duplicate key"),
        (index_of([b"a", b"../b"], 10), "an invalid key"),
        (index_of([b"a", b""], 10), "an invalid key"),
        (index_of([b"a", b"b\nc"], 10), "an invalid key"),
        (index_of([b"k" * 129], 10), "an invalid key"),
        (index_of([b"a"], 2**20 + 1), "members with invalid sizes"),
        (index_of([b"a"], 2**26 + 1, ("moments.npy",)), "members with invalid sizes"),
        (index_of([b"a"], 2**26, ("moments.npy", "flip.npy", "png")), "members with invalid sizes"),
        (index_of([b"a"], 10, tuple(f"m{number}" for number in range(33))), "33 kinds of members, more than 32"),
    ],
)
def test_an_index_no_writer_would_write_is_refused_before_anything_is_read(index: ShardIndex, problem: str) -> None:
    with pytest.raises(CorruptShard, match=problem):
        ShardIndex.from_bytes(index.to_bytes(), where="x")


def test_the_largest_members_there_may_be_are_accepted() -> None:
    for index in (
        index_of([b"a", b"b" * 128], 2**20),
        index_of([b"a"], 2**26, ("png",)),
        index_of([b"a"], 2**26, ("moments.npy",)),
        index_of([b"a"], 2**26 - 1024, ("moments.npy", "flip.npy")),
    ):
        assert ShardIndex.from_bytes(index.to_bytes(), where="x").keys == index.keys


def test_an_index_whose_arrays_do_not_fit_is_refused() -> None:
    wrong = np.zeros((3, 2), dtype=np.int64)
    index = ShardIndex(np.array([b"a"]), ("png",), wrong, wrong, wrong.astype(np.uint32))
    with pytest.raises(CorruptShard, match=r"arrays of shape \(3, 2\), expected \(1, 1\)"):
        ShardIndex.from_bytes(index.to_bytes(), where="x")


def test_a_shard_without_samples_is_a_shard(tmp_path: Path) -> None:
    tar = tmp_path / "000000.tar"
    files = write_shard(str(tar), [], extensions=("json", "png"))
    assert files.num_samples == 0
    assert read_all(tar) == []
    with tarfile.open(tar) as archive:
        assert archive.getmembers() == []
