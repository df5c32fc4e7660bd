"""A process keeps as many shards open as the system allows, and never closes one that is being read."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from tiny_sets import write_numbered_set

from synfundus.shards.reader import ShardSetReader
from synfundus.storage import byte_source
from synfundus.storage.byte_source import LocalBytes, OpenFile


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[byte_source._Pool]:
    monkeypatch.setattr(byte_source, "_pool", byte_source._Pool())
    monkeypatch.setattr(byte_source, "_pool_capacity", lambda: 3)
    yield byte_source._pool
    for file in list(byte_source._pool.open):
        file.close()


def files(folder: Path, count: int) -> list[OpenFile]:
    made = []
    for number in range(count):
        path = folder / str(number)
        path.write_bytes(bytes([number]) * 8)
        made.append(OpenFile(lambda path=path: path.open("rb", buffering=0)))  # type: ignore[misc]
    return made


@contextmanager
def descriptor_of(file: OpenFile) -> Iterator[int]:
    handle = file.acquire()
    try:
        yield handle.descriptor
    finally:
        file.release(handle)


def first_byte(file: OpenFile) -> int:
    with descriptor_of(file) as descriptor:
        return os.pread(descriptor, 1, 0)[0]


def test_those_read_longest_ago_are_closed_and_opened_again(pool: byte_source._Pool, tmp_path: Path) -> None:
    made = files(tmp_path, 6)
    for number in (0, 1, 2, 0, 3, 4, 1, 5, 0):
        assert first_byte(made[number]) == number
        assert len(pool.open) <= 3
    assert [made.index(file) for file in pool.open] == [1, 5, 0]


def test_a_file_that_is_read_is_closed_only_afterwards(pool: byte_source._Pool, tmp_path: Path) -> None:
    made = files(tmp_path, 6)
    with descriptor_of(made[0]) as descriptor:
        assert [first_byte(file) for file in made[1:]] == [1, 2, 3, 4, 5]
        assert made[0] in pool.open, "it has a reader"
        made[0].close()
        assert first_byte(made[0]) == 0, "it is opened a second time"
        assert os.pread(descriptor, 1, 0) == b"\0", "the first is open still"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_threads_always_read_from_the_file_they_asked_for(pool: byte_source._Pool, tmp_path: Path) -> None:
    made = files(tmp_path, 8)
    wrong: list[int] = []

    def read(start: int) -> None:
        for turn in range(400):
            number = (start + turn * (start + 1)) % len(made)
            if first_byte(made[number]) != number:
                wrong.append(number)
            if turn % 37 == 0:
                made[number].close()

    threads = [threading.Thread(target=read, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(pool.open) <= 3


def test_a_full_table_of_files_closes_idle_ones_and_tries_again(pool: byte_source._Pool, tmp_path: Path) -> None:
    made = files(tmp_path, 3)
    for file in made:
        first_byte(file)
    still_open = []

    def open_stream() -> IO[bytes]:
        still_open.append([made.index(file) for file in pool.open])
        if len(still_open) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return (tmp_path / "2").open("rb", buffering=0)

    assert first_byte(OpenFile(open_stream)) == 2
    assert still_open == [[0, 1, 2], [2]]


def test_a_forked_child_starts_without_the_files_of_its_parent(pool: byte_source._Pool, tmp_path: Path) -> None:
    (file,) = files(tmp_path, 1)
    first_byte(file)
    with pool.lock:  # as another thread of the parent may hold it
        child = os.fork()
        if child == 0:
            os._exit(
                0 if first_byte(file) == 0 and not pool.open.keys() & byte_source._pool.open.keys() ^ {file} else 1
            )
    assert os.waitpid(child, 0)[1] == 0


CHILD = """
import os, resource, sys
soft, hard = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from synfundus.shards.reader import ShardSetReader
from synfundus.storage.manifest import load_shard_set
reader = ShardSetReader(load_shard_set(sys.argv[3], kind="latents"), split="train")
keys = [reader.read(shard, 0)[0] for _ in range(2) for shard in range(len(reader.shards))]
print(len(set(keys)), resource.getrlimit(resource.RLIMIT_NOFILE)[0], len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.parametrize(("soft", "hard"), [(64, 64), (64, 600)])
def test_a_set_of_more_shards_than_a_process_may_open_files_is_read(tmp_path: Path, soft: int, hard: int) -> None:
    write_numbered_set(tmp_path / "set", [1] * 90)
    command = [sys.executable, "-c", CHILD, str(soft), str(hard), str(tmp_path / "set")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    keys, limit, now_open = (int(word) for word in done.stdout.split())
    assert (keys, limit) == (90, hard)
    assert now_open > 90 if hard == 600 else now_open < 64


def test_indices_stay_when_files_are_closed(pool: byte_source._Pool, tmp_path: Path) -> None:
    reader = ShardSetReader(write_numbered_set(tmp_path / "set", [1] * 9), split="train")
    for number in range(9):
        reader.read(number, 0)
    first = [reader.shard(number) for number in range(9)]
    assert all(reader.shard(number) is before for number, before in enumerate(first))
    assert len(pool.open) == 3
    reader.close()
    assert not pool.open


def test_the_limit_is_raised_no_further_than_is_allowed() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 8 <= byte_source._pool_capacity() <= byte_source._MAX_OPEN
    after = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert after[1] == before[1]
    assert before[0] <= after[0]


def test_a_stale_handle_is_opened_again(pool: byte_source._Pool, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    source = LocalBytes(path, "x")
    assert source.read(0, 3, lambda data: "") == b"abc"
    path.unlink()
    path.write_bytes(b"xyz")
    assert source.read(0, 3, lambda data: "" if data == b"xyz" else "old") == b"xyz"
