"""What tests start by forking behaves as a process that was started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked_python import REPOSITORY, Popen, run

SYNFUNDUS = [sys.executable, "-m", "synfundus"]


def test_a_command_line_says_and_returns_what_a_started_one_does(tmp_path: Path) -> None:
    for words in (["config", "presets"], ["train", "--lr", "3"], ["no-such-verb"], ["--version"]):
        forked = run([*SYNFUNDUS, *words], capture_output=True, text=True, cwd=tmp_path, timeout=60)
        started = subprocess.run(
            [*SYNFUNDUS, *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


def test_it_is_forked_not_started() -> None:
    with Popen([*SYNFUNDUS, "--version"], stdout=subprocess.PIPE) as process:
        assert process._server is not None
        process.communicate(timeout=60)
    with Popen([sys.executable, "-c", "print(7)"], stdout=subprocess.PIPE) as process:
        assert process._server is None
        assert process.communicate(timeout=60)[0] == b"7\n"


def test_it_can_be_killed_and_has_a_group_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    command = [*SYNFUNDUS, "watch", "--run-dir", str(tmp_path / "run")]
    process = Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    assert os.getpgid(process.pid) == process.pid
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.05)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=20) == -signal.SIGKILL


def test_ranks_die_with_a_launcher_that_is_killed() -> None:
    probe = REPOSITORY / "tests" / "unit" / "launcher_probe.py"
    with Popen([sys.executable, str(probe)], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        rank = int(launcher.stdout.readline())
        os.kill(rank, 0)
        launcher.kill()
    assert launcher.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while Path(f"/proc/{rank}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
