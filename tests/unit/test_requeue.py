"""What a rank leaves for the batch script: a request for a requeue, a report of a fault."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from synfundus.cli import app
from synfundus.distributed.requeue import FAULTS, STALLED, forget_faults, how_to_resume, request_requeue
from synfundus.errors import DataError, Stalled


def test_the_file_is_left_where_the_script_looks_and_only_for_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ".stalled-7-0"
    monkeypatch.setenv(STALLED, str(place))
    request_requeue()
    request_requeue()
    assert place.exists()
    assert stat.S_IMODE(place.stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize("place", ["", "/proc/no/such/folder"])
def test_without_a_place_to_leave_it_nothing_happens(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STALLED, place)
    request_requeue()


@pytest.mark.parametrize(("error", "left"), [(Stalled("nothing moved"), True), (DataError("no such set"), False)])
def test_a_standstill_that_an_error_tells_of_leaves_it_too(
    error: Exception, left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(_: object) -> None:
        raise error

    monkeypatch.setattr(app, "build_app", build)
    monkeypatch.setenv(STALLED, str(tmp_path / "mark"))
    assert app.run_command(["doctor"]) == getattr(error, "exit_code", None)
    assert (tmp_path / "mark").exists() is left


def run_rank(folder: Path, statements: str) -> subprocess.CompletedProcess[str]:
    """Run a rank 3 on node7 that opens its report first."""
    code = f"from synfundus.distributed.requeue import *\nopen_fault_report(3)\n{statements}"
    environment = {**os.environ, FAULTS: str(folder), "SLURMD_NODENAME": "node7.cluster"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    ("statements", "code", "report"),
    [
        ("import os; os.abort()", -signal.SIGABRT, "Fatal Python error: Aborted"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV, "Segmentation fault"),
        ("import threading, os\nthreading.Thread(target=os.abort).start()", -signal.SIGABRT, "Aborted"),
        ("report_fault('the GPU failed'); raise SystemExit(71)", 71, "the GPU failed"),
        ("raise SystemExit(1)", 1, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    ],
)
def test_only_a_fault_is_reported_under_the_name_of_the_node(
    tmp_path: Path, statements: str, code: int, report: str
) -> None:
    assert run_rank(tmp_path, statements).returncode == code
    text = (tmp_path / "node7.cluster.3").read_text()
    assert report in text
    assert bool(text) == bool(report)


def test_a_checkpoint_forgets_the_faults_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_faults()
    monkeypatch.setenv(FAULTS, str(tmp_path))
    forget_faults()
    (tmp_path / "history").write_text("node1\n")
    (tmp_path / "all").write_text("node1\n")
    forget_faults()
    assert [path.name for path in tmp_path.iterdir()] == ["all"]


def test_without_a_folder_nothing_is_reported(tmp_path: Path) -> None:
    done = run_rank(tmp_path / "none", "report_fault('the GPU failed'); raise SystemExit(71)")
    assert (done.returncode, done.stderr) == (71, "")


def test_a_job_that_slurm_starts_again_is_not_to_be_started_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STALLED, raising=False)
    assert how_to_resume() == "run the same command again to resume"
    monkeypatch.setenv(STALLED, "/shared/.stalled-7-0")
    assert how_to_resume().startswith("the job starts again by itself after a time limit or a preemption; if it was")
