"""What `watch` says of a run, of its batch job, and of a folder of runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synfundus.cli.app import run_command
from synfundus.launch.submission import ARGV_FORMAT, FORMAT_VERSION
from synfundus.stages.watch import job as watch
from synfundus.stages.watch.batch_job import BatchJob, JobReader, ask_slurm
from synfundus.storage import documents
from synfundus.storage.local_folder import WRITER_NAME
from synfundus.storage.writer_note import Writer, note_document
from synfundus.telemetry.dashboard import Dashboard


@pytest.fixture(autouse=True)
def _umask() -> Any:
    mask = os.umask(0o077)
    yield
    os.umask(mask)


def make_run(folder: Path, *, seen: int = 40, budget: int = 100, kind: str = "diffusion", eta_s: float = 90.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"kind": kind}))
    section = "train_vae" if kind == "vae" else "train"
    (folder / "config.yaml").write_text(f"{section}:\n  loop:\n    budget_images: {budget}\n")
    if seen:
        row = {"images_seen": seen, "loss": 0.5, "images_per_s": 9.0, "eta_s": eta_s}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def at_work(run: Path) -> Path:
    """Leave the note of a process that writes to it: this one."""
    (run / WRITER_NAME).write_bytes(note_document(Writer.here(str(run), 900.0)))
    return run


def submit(
    run: Path, name: str = "20261126T120005Z", *, answer: str | None = "Submitted batch job 4711", log: str = ""
) -> None:
    place = run / "submissions" / name
    place.mkdir(parents=True)
    document: dict[str, Any] = {"argv": [], "environment": {}, "answer": answer}
    documents.write_document(str(place / "argv.json"), document, format_name=ARGV_FORMAT, version=FORMAT_VERSION)
    if log:
        (place / "job.log").write_text(log)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Programs of SLURM that answer as told; without an answer they fail, as for a job that is forgotten."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)

    def answer(squeue: str = "", sacct: str = "") -> None:
        for name, text in {"squeue": squeue, "sacct": sacct}.items():
            body = f"echo '{text}'" if text else "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
            (programs / name).write_text(f"#!/bin/bash\n{body}\n")
            (programs / name).chmod(0o755)

    return answer


def shown(capsys: pytest.CaptureFixture[str], run: Path) -> str:
    assert run_command(["watch", "--run-dir", str(run), "--once"]) == 0
    return capsys.readouterr().out


def summary(capsys: pytest.CaptureFixture[str], run: Path) -> dict[str, Any]:
    assert run_command(["watch", "--run-dir", str(run), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_failed_job_says_so_with_the_end_of_its_log(
    tmp_path: Path, slurm: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", seen=0)
    lines = [f"line {number}" for number in range(50)]
    secret = "AKIA" + "A1" * 8
    submit(run, log="\n".join([*lines, f"error (configuration): no such set {secret}", "\x1b[31mred", ""]))
    slurm(squeue="FAILED|NonZeroExitCode")
    said = shown(capsys, run)
    assert "state       failed: job 4711 FAILED (NonZeroExitCode)" in said
    assert "error (configuration): no such set [redacted]" in said
    assert "line 49" in said
    assert "line 10" not in said
    assert "\x1b" not in said
    assert summary(capsys, run)["job"] == {"number": "4711", "state": "FAILED", "detail": "NonZeroExitCode"}


def test_a_job_that_squeue_has_forgotten_is_asked_of_sacct(
    tmp_path: Path, slurm: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    submit(run, log="slurmstepd: error: CANCELLED")
    slurm(sacct="CANCELLED by 1000|0:15")
    said = shown(capsys, run)
    assert "cancelled: job 4711 CANCELLED (0:15)" in said
    assert "slurmstepd: error: CANCELLED" in said


def test_a_waiting_job_is_not_a_stalled_run(
    tmp_path: Path, slurm: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", seen=0)
    submit(run)
    slurm(squeue="PENDING|Priority")
    said = shown(capsys, run)
    assert "state       pending, no row yet" in said
    assert "job         4711 PENDING (Priority)" in said
    assert "log  " not in said


def test_a_running_job_shows_no_log(
    tmp_path: Path, slurm: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    submit(run, log="step 1")
    slurm(squeue="RUNNING|None")
    said = shown(capsys, run)
    assert "the last row is" in said
    assert "4711 RUNNING\n" in said
    assert "step 1" not in said


def test_without_slurm_the_end_of_the_log_of_a_stalled_run_is_shown(
    tmp_path: Path, slurm: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    os.utime(run / "metrics.jsonl", (1.0, 1.0))
    submit(run, log="error (storage): the disk is full")
    slurm()
    said = shown(capsys, run)
    assert "stopped: the last row is" in said
    assert "4711 is no longer known to SLURM here" in said
    assert "the disk is full" in said


def test_a_refused_submission_says_what_sbatch_said(
    tmp_path: Path, slurm: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    submit(run, answer="sbatch refused the job: invalid partition")
    slurm()
    said = shown(capsys, run)
    assert "state       sbatch refused the job: invalid partition" in said
    at_work(make_run(tmp_path / "other"))
    submit(tmp_path / "other", answer="sbatch refused the job: invalid partition")
    assert "the last row is" in shown(capsys, tmp_path / "other"), "it was then started otherwise"


def test_the_newest_submission_counts(tmp_path: Path, slurm: Callable[..., None]) -> None:
    for name, number in {"20261126T120005Z-10": 3, "20261126T120005Z-2": 2, "20261126T120005Z": 1}.items():
        submit(tmp_path, name, answer=f"Submitted batch job {number}")
    slurm(squeue="RUNNING|None")
    assert JobReader().read(str(tmp_path)) == BatchJob("3", "RUNNING", "None", ())
    assert JobReader().read("s3://bucket/run") is None


def test_the_submission_at_work_counts_before_one_that_waits_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = at_work(make_run(tmp_path / "run"))
    for second, number in enumerate((1, 2, 3)):
        submit(run, f"20261126T12000{second}Z", answer=f"Submitted batch job {number}")
    states = {"1": ("COMPLETED", "0:0"), "2": ("RUNNING", "None"), "3": ("PENDING", "Dependency")}
    monkeypatch.setattr(watch, "JobReader", lambda: JobReader(ask=states.__getitem__))
    said = shown(capsys, run)
    assert "state       running: the last row is" in said
    assert "job         2 RUNNING; 3 waits for it" in said
    states["2"] = ("COMPLETED", "0:0")
    assert "job         3 PENDING (Dependency)" in shown(capsys, run)


def test_a_writer_of_another_version_hides_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    (run / WRITER_NAME).write_text('{"format": "synfundus-writer", "schema_version": 99}')
    assert "40 / 100" in shown(capsys, run)


def test_a_finished_run_of_which_a_later_job_failed_says_both(
    tmp_path: Path, slurm: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", seen=100)
    (run / "export").mkdir()
    submit(run, log="error (configuration): no such partition")
    slurm(squeue="FAILED|NonZeroExitCode")
    said = shown(capsys, run)
    assert "state       finished before; job 4711 FAILED (NonZeroExitCode)" in said
    assert "no such partition" in said


def test_a_live_dashboard_asks_the_controller_rarely(tmp_path: Path) -> None:
    submit(tmp_path)
    asked: list[str] = []
    now = [0.0]

    def ask(number: str) -> tuple[str, str]:
        asked.append(number)
        return "RUNNING", ""

    reader = JobReader(ask=ask, clock=lambda: now[0])
    for at in range(60):
        now[0] = float(at)
        reader.read(str(tmp_path))
    assert len(asked) == 3


def test_a_controller_that_does_not_answer_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_slurm("1") == ("", "")


def test_a_folder_of_runs_lists_them_all(
    tmp_path: Path, slurm: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    at_work(make_run(tmp_path / "runs" / "a", seen=40, eta_s=7200.0))
    make_run(tmp_path / "runs" / "exp" / "vae", kind="vae", seen=100)
    make_run(tmp_path / "runs" / "failed", seen=0)
    submit(tmp_path / "runs" / "failed")
    (tmp_path / "runs" / "notes.txt").write_text("x")
    (tmp_path / "runs" / "set" / "train").mkdir(parents=True)
    slurm(squeue="FAILED|NonZeroExitCode")
    said = shown(capsys, tmp_path / "runs")
    title, *rows = said.splitlines()
    assert "(3 runs)" in title
    assert [row.split()[0] for row in rows] == ["a", "exp/vae", "failed"]
    assert "train " in rows[0]
    assert "40 / 100 (40.0 %)" in rows[0]
    assert "loss 0.5000" in rows[0]
    assert "ETA 2 h 00 min" in rows[0]
    assert "the last row is" in rows[0]
    assert "train-vae" in rows[1]
    assert "trained" in rows[1]
    assert "failed: job 4711 FAILED" in rows[2]
    found = summary(capsys, tmp_path / "runs")["runs"]
    assert {name: one["images_seen"] for name, one in found.items()} == {"a": 40, "exp/vae": 100, "failed": 0}


@pytest.mark.parametrize("inside", [None, "notes.txt", "set/manifest.json", "a/b/c/run.json"])
def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, inside: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if inside:
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        (folder / inside).write_text("{}")
    assert run_command(["watch", "--run-dir", str(folder)]) == 2
    said = capsys.readouterr()
    assert "there is no run, neither in this folder nor below it" in said.err
    assert said.out == ""


def test_a_live_display_has_the_characters_of_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """rich replaces sys.stdout by an object without an encoding while it shows."""
    seen: list[Dashboard] = []

    class Terminal:
        encoding: str | None = "utf-8"

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            return len(text)

        def flush(self) -> None: ...

    def show(build: Callable[[], Dashboard], **_: object) -> None:
        monkeypatch.setattr(Terminal, "encoding", None)
        seen.append(build())

    monkeypatch.setattr(watch, "show_live", show)
    monkeypatch.setattr("sys.stdout", Terminal())
    run = make_run(tmp_path / "run")
    assert run_command(["watch", "--run-dir", str(run)]) == 0
    assert "█" in seen[0].plain()
