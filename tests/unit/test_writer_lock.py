"""One writer a folder: the second is refused, a dead one replaced."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from synfundus.errors import ConfigError
from synfundus.storage import filesystem, writer_lock
from synfundus.storage.local_folder import WRITER_NAME, holds_ours
from synfundus.storage.writer_lock import one_writer, require_free, write_alone
from synfundus.storage.writer_note import Writer, is_gone

HERE = Writer("a", "node1", "boot ns", 7, "100", "", 0, "2026-01-01T00:00:00+00:00", 900.0, ("55", "/run"))

WRITES = """
import sys, time
from pathlib import Path
from synfundus.errors import ConfigError
from synfundus.storage.writer_lock import one_writer, write_alone
with one_writer(float(sys.argv[2])):
    try:
        write_alone(sys.argv[1])
    except ConfigError as error:
        print("refused", error.message, flush=True)
        sys.exit(2)
    print("writes", flush=True)
    sys.stdin.read()
"""


class Starts:
    """Starts processes that write to a folder, and ends them."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def __call__(self, folder: Path | str, stale_after_s: float = 900.0) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITES, str(folder), str(stale_after_s)]
        pipe = subprocess.PIPE
        self.started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return self.started[-1]

    def race(self, folder: str, starts: int) -> list[str]:
        """Start several at one moment; return what each says."""
        processes = [self(folder) for _ in range(starts)]
        lines = [said(process) for process in processes]
        for process in processes:
            process.communicate("")
        return lines


@pytest.fixture
def start() -> Iterator[Starts]:
    starts = Starts()
    yield starts
    for process in starts.started:
        process.kill()
        with process:
            process.wait()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize(
    ("changes", "silent_s", "process_start", "gone"),
    [
        ({}, 0, "100", False),  # this machine, and its process lives
        ({}, 9000, "100", False),  # however long it says nothing: it is stopped, or the disk hangs
        ({}, 0, "", True),
        ({}, 0, "101", True),  # its process id belongs to another process now
        ({"host": "node2"}, 0, "", False),
        ({"host": "node2"}, 899, "", False),
        ({"host": "node2"}, 901, "", True),
        ({"machine": "boot another-container"}, 0, "", False),
        ({"host": "node2", "job": "4"}, 0, "", True),  # this job, restarted by SLURM
        ({"host": "node2", "job": "4", "restarts": 1}, 0, "", False),  # another step of this job
        ({"host": "node2", "job": "5"}, 0, "", False),
        ({"folder": ("56", "/copy")}, 0, "100", True),  # the folder was copied
        ({"folder": ("56", "/run")}, 0, "100", False),  # some file systems number it anew
        ({"folder": ("55", "/mnt/run")}, 0, "100", False),  # it is mounted elsewhere
    ],
)
def test_a_writer_is_gone_only_when_that_is_certain(
    changes: dict[str, object], silent_s: float, process_start: str, gone: bool
) -> None:
    here = replace(HERE, job="4", restarts=1)
    found = replace(HERE, **changes)  # type: ignore[arg-type]
    assert is_gone(found, here, silent_s=silent_s, process_start=process_start) is gone


def test_the_second_writer_is_refused_and_names_the_first_until_that_ends(tmp_path: Path, start: Starts) -> None:
    out = tmp_path / "out"
    first = start(out)
    assert said(first) == "writes\n"
    with one_writer(), pytest.raises(ConfigError, match=f"process {first.pid} on .*, since ") as caught:
        write_alone(str(out), flag="--run-dir")
    assert caught.value.where == str(out)
    assert "another --run-dir" in caught.value.hint
    noted = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(ConfigError) as rehearsed:
        require_free(str(out), flag="--run-dir")
    assert vars(rehearsed.value) == vars(caught.value)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == noted
    first.communicate("")
    assert first.returncode == 0
    assert not out.exists(), "made for nothing"
    with one_writer():
        write_alone(str(out))
        write_alone(str(out))
        assert [path.name for path in out.iterdir()] == [WRITER_NAME]
        (out / "work").touch()
    assert [path.name for path in out.iterdir()] == ["work"]


def test_a_killed_writer_is_replaced_at_once(tmp_path: Path, start: Starts) -> None:
    first = start(tmp_path / "out")
    assert said(first) == "writes\n"
    first.kill()
    first.wait()
    require_free(str(tmp_path / "out"))
    with one_writer():
        write_alone(str(tmp_path / "out"))
        assert json.loads((tmp_path / "out" / WRITER_NAME).read_text())["pid"] == os.getpid()


def test_a_writer_of_another_machine_is_gone_when_it_is_silent_for_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, one_writer(60):
        patch.setattr("socket.gethostname", lambda: "node9")
        write_alone(str(tmp_path))
        note = (tmp_path / WRITER_NAME).read_bytes()
    (tmp_path / WRITER_NAME).write_bytes(note)
    with pytest.raises(ConfigError, match="on node9, since"):
        require_free(str(tmp_path))
    with one_writer(), pytest.raises(ConfigError, match="on node9, since") as caught:
        write_alone(str(tmp_path))
    assert "free in 1 min" in caught.value.hint
    past = time.time() - 61
    os.utime(tmp_path / WRITER_NAME, (past, past))
    with one_writer():
        write_alone(str(tmp_path))


def test_a_copy_of_a_folder_in_use_is_free(tmp_path: Path) -> None:
    with one_writer():
        write_alone(str(tmp_path / "out"))
        (tmp_path / "out" / "work").touch()
        copy = shutil.copytree(tmp_path / "out", tmp_path / "copy")
        write_alone(str(copy))


def test_a_note_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / WRITER_NAME).write_text('{"format": "synfundus-writer", "schema_version": 99}')
    with one_writer(), pytest.raises(ConfigError, match="cannot read"):
        write_alone(str(tmp_path))


def test_a_job_waits_for_the_last_sign_of_life_of_the_job_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_lock, "_LONGEST_PAUSE_S", 0.2)
    for alive in (False, True):
        with monkeypatch.context() as patch, one_writer(2.0):
            patch.setattr("socket.gethostname", lambda: "node9")
            patch.setenv("SLURM_JOB_ID", "4")
            write_alone(str(tmp_path))
            note = (tmp_path / WRITER_NAME).read_bytes()
        (tmp_path / WRITER_NAME).write_bytes(note)
        monkeypatch.setenv("SLURM_JOB_ID", "5")
        if alive:
            timer = threading.Timer(0.7, lambda: os.utime(tmp_path / WRITER_NAME))
            timer.start()
            with one_writer(), pytest.raises(ConfigError, match="of job 4 on node9"):
                write_alone(str(tmp_path))
            timer.join()
        else:
            with one_writer():
                write_alone(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{"])
def test_half_a_note_of_a_killed_writer_is_replaced(text: str, tmp_path: Path) -> None:
    (tmp_path / WRITER_NAME).write_text(text)
    past = time.time() - 3600
    os.utime(tmp_path / WRITER_NAME, (past, past))
    with one_writer():
        write_alone(str(tmp_path))


def test_a_writer_whose_folder_was_taken_over_ends(tmp_path: Path, start: Starts) -> None:
    first = start(tmp_path, stale_after_s=3.0)
    assert said(first) == "writes\n"
    note = tmp_path / WRITER_NAME
    other = json.dumps({**json.loads(note.read_text()), "token": "another", "host": "node9"})
    note.write_text(other)
    assert first.wait(timeout=30) == writer_lock.LOST
    assert first.stderr is not None
    assert "was taken over by process" in first.stderr.read()
    assert note.read_text() == other


def test_signs_of_life_are_given(tmp_path: Path, start: Starts) -> None:
    first = start(tmp_path, stale_after_s=1.5)
    assert said(first) == "writes\n"
    note = tmp_path / WRITER_NAME
    os.utime(note, (1, 1))
    deadline = time.monotonic() + 20
    while note.stat().st_mtime < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.communicate("")


def test_a_note_is_no_stranger_in_a_free_folder(tmp_path: Path) -> None:
    for name in (WRITER_NAME, f".{WRITER_NAME}.0123.tmp", f"{WRITER_NAME}.0123.guard", f"{WRITER_NAME}.0123.now"):
        (tmp_path / name).touch()
    assert not holds_ours(str(tmp_path), proof=["run.json"])
    (tmp_path / "writer.json").touch()
    with pytest.raises(ConfigError, match=r"something else: writer\.json"):
        holds_ours(str(tmp_path), proof=["run.json"])


def test_a_folder_that_another_process_makes_meanwhile_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def made_after_the_first_look(url: str) -> bool:
        looked.append(url)
        return len(looked) > 1

    monkeypatch.setattr(filesystem, "is_dir", made_after_the_first_look)
    assert not holds_ours(str(tmp_path), proof=["run.json"])
    assert len(looked) == 2


@pytest.mark.parametrize("killed", [False, True])
def test_of_starts_at_one_moment_one_writes(killed: bool, tmp_path: Path, start: Starts) -> None:
    if killed:
        first = start(tmp_path)
        assert said(first) == "writes\n"
        first.kill()
        first.wait()
    lines = start.race(str(tmp_path), 5)
    assert lines.count("writes\n") == 1, lines
    assert all(line.startswith(("writes", "refused")) for line in lines)


def test_a_folder_of_a_store_has_one_writer_too(s3_bucket: str, start: Starts) -> None:
    folder = f"{s3_bucket}/run"
    lines = start.race(folder, 3)
    assert lines.count("writes\n") == 1, lines
    assert not filesystem.exists(folder)
    first = start(folder)
    assert said(first) == "writes\n"
    with one_writer(), pytest.raises(ConfigError, match=f"process {first.pid} on"):
        write_alone(folder)
    first.kill()
    first.wait()
    with one_writer():
        write_alone(folder)
