"""Memory that is reserved before it is touched."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from synfundus.errors import ConfigError
from synfundus.processes import shared_memory
from synfundus.processes.shared_memory import SharedMemory

MIB = 2**20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of 4 MiB, as /dev/shm of a container is."""
    folder = tmp_path / "shm"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if done.returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(connection: Connection, memory: SharedMemory) -> None:
    memory.view[:3] = b"abc"
    connection.send(len(memory.view))


def test_what_one_process_writes_the_other_reads() -> None:
    context = multiprocessing.get_context("spawn")
    memory = SharedMemory(MIB)
    assert memory.view[:] == bytes(MIB)
    ours, theirs = context.Pipe()
    process = context.Process(target=fill, args=(theirs, memory))
    process.start()
    assert ours.recv() == MIB
    process.join()
    assert process.exitcode == 0
    assert memory.view[:4] == b"abc\0"
    process.close()
    for end in (ours, theirs):
        end.close()


def test_what_two_ranks_cannot_both_have_one_gets_elsewhere(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "FOLDERS", (str(small), ""))
    first = SharedMemory(3 * MIB)
    second = SharedMemory(3 * MIB)  # in TMPDIR: touching it in the small one would end the process
    for memory in (first, second):
        memory.view[:] = b"x" * (3 * MIB)
    assert os.statvfs(small).f_bavail * os.statvfs(small).f_frsize == MIB
    assert list(small.iterdir()) == []


def test_no_room_anywhere_is_an_error_with_figures(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "FOLDERS", (str(small), ""))
    monkeypatch.setattr(tempfile, "tempdir", str(small))
    with pytest.raises(ConfigError, match=r"4,194,304 of 4,194,304 \(No space left on device\)") as caught:
        SharedMemory(5 * MIB)
    assert "--shm-size" in caught.value.hint
    assert os.statvfs(small).f_bavail == os.statvfs(small).f_blocks, "nothing is kept"
