"""The values of `test_hostile_submission.py` through a real SLURM: the tasks get them letter by letter, or nobody does.

What would be Python on the nodes is a script that records its arguments.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from command_lines import answer, make_file, train
from hostile_values import CANARY, TYPED, VALUES
from rank_processes import REPOSITORY
from slurm_cluster import SlurmCluster, what_is_missing
from slurm_runs import cluster

from synfundus.config.loader import load_config

__all__ = ["cluster"]
pytestmark = [
    pytest.mark.skipif(bool(what_is_missing()), reason=f"no SLURM here: {what_is_missing()}"),
    pytest.mark.timeout(1800),
    pytest.mark.slow,
]
SCRIPTS = ("prepare.sh", "vae.sh", "encode_latents.sh", "ldm.sh", "sample.sh", "augment.sh", "judge.sh", "demo.sh")
SHAPE = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0")
PATIENCE_S = 600.0
EACH_ALONE = 40_000
"""Values of so many letters get a command line of their own."""


@pytest.fixture
def work(cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder on a login node, where the interpreter is the recorder."""
    work, records = tmp_path / "a" / "b" / "work", tmp_path / "records"
    for folder in (work, records):
        folder.mkdir(parents=True)
    recorder = tmp_path / "recorder"
    recorder.write_text(f"""#!/bin/bash\nprintf '%s\\0' "$@" > "{records}/$SLURM_JOB_ID.$SLURM_PROCID"\n""")
    recorder.chmod(0o755)
    (work / "latents").mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "executable", str(recorder))
    for name, value in {**cluster.environment, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    mask = os.umask(0o077)
    yield work
    os.umask(mask)
    assert [path for path in tmp_path.rglob(CANARY) if path.is_file()] == []
    assert [path for path in cluster.folder.rglob(CANARY) if path.is_file()] == []


def records_of(work: Path, job: str) -> list[list[str]]:
    """Return what each of the two tasks of a job was called with."""
    files = [work.parents[2] / "records" / f"{job}.{rank}" for rank in (0, 1)]
    return [os.fsdecode(file.read_bytes()).split("\0")[:-1] for file in files]


def wait_for_all(cluster: SlurmCluster, jobs: Iterable[str]) -> None:
    """Wait until jobs have ended well."""
    for job in jobs:
        cluster.wait_for(job, "COMPLETED", timeout_s=PATIENCE_S)


def submit_each(capsys: pytest.CaptureFixture[str], lines: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Run a command line for each value; returns the job's number for those that were not refused."""
    said = {value: answer(capsys, *line) for value, line in lines.items()}
    numbers = {
        value: re.search(r"Submitted batch job (\d+)", text) for value, (code, text) in said.items() if code == 0
    }
    return {value: number[1] for value, number in numbers.items() if number is not None}


def test_run_directories(cluster: SlurmCluster, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The value is part of the file name of the log, which slurmd expands and opens, and of an argument."""
    jobs = submit_each(capsys, {value: train(**{"run-dir": value}) for value in VALUES})
    wait_for_all(cluster, jobs.values())
    for value, job in jobs.items():
        first, second = records_of(work, job)
        assert first == second == ["-m", "synfundus", "train", "--config", first[-1]], value
        frozen = Path(first[-1])
        assert load_config(preset=None, file=str(frozen), settings=[], flags=[]).config.train.run_dir == value
        assert "restart 0 of 20" in frozen.with_name("job.log").read_text(), value
    assert len(jobs) >= 100
    print(json.dumps({"name": "hostile run directories through SLURM", "passed": len(jobs), "of": len(VALUES)}))


def test_config_paths_locations_and_settings(
    cluster: SlurmCluster, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output is in an object store, so that nothing is frozen and SLURM sees the command line itself."""
    lines = {}
    for value in VALUES:
        given = {"run-dir": "s3://bucket/run", "set": f"telemetry.wandb_project={value}"}
        if make_file(value):
            given |= {"config": value, "latents": value}
        lines[value] = train(**given)
    lines |= {f"s3://bucket/{value}": train(**{"run-dir": f"s3://bucket/{value}"}) for value in VALUES}
    jobs = submit_each(capsys, lines)
    wait_for_all(cluster, jobs.values())
    for value, job in jobs.items():
        assert records_of(work, job) == [["-m", "synfundus", *lines[value]]] * 2, value
    assert len(jobs) >= 200
    print(json.dumps({"name": "hostile settings through SLURM", "passed": len(jobs), "of": len(lines)}))


def test_partitions_accounts_and_time_limits(
    cluster: SlurmCluster, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del work
    lines = {
        f"{name}={value}": [*train(), f"--set=launch.{name}={value}"]
        for name in ("partition", "account", "time_limit")
        for value in VALUES
        if value.strip() not in ("null", "~")
    }
    jobs = submit_each(capsys, lines)
    # SLURM knows no such partition; without accounting it takes every account's name
    assert all(re.fullmatch("account=[A-Za-z0-9_.-]{1,64}", value) for value in jobs)
    wait_for_all(cluster, jobs.values())
    assert all(cluster.job(job)["Account"] == value.split("=", 1)[1].lower() for value, job in jobs.items())


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_typed_behind_a_batch_script(cluster: SlurmCluster, work: Path, script: str) -> None:
    short = [value for value in TYPED if len(value) < EACH_ALONE]
    batches = [short, *([value] for value in TYPED if len(value) >= EACH_ALONE)]
    extra = {"SYNFUNDUS_PYTHON": sys.executable}
    for batch in batches:
        command = ("sbatch", "--parsable", *SHAPE, str(REPOSITORY / "slurm" / script), *batch)
        job = cluster.client(*command, extra=extra).strip()
        wait_for_all(cluster, [job])
        first, second = records_of(work, job)
        assert first == second
        assert first[3:] == batch


DRIVER = """
import os, pathlib, sys
from command_lines import train
from hostile_values import VALUES
from synfundus.cli.app import run_command
sys.executable = sys.argv[1]
records = pathlib.Path(sys.argv[2])
passed = 0
for value in VALUES:
    line = train(**{"run-dir": value, "set": f"telemetry.wandb_project={value}"})
    if run_command(line) == 0:
        got = [os.fsdecode(file.read_bytes()).split("\\0")[:-1] for file in sorted(records.iterdir())]
        assert got == [["-m", "synfundus", *line]] * 2, (value, got)
        passed += 1
    for file in records.iterdir():
        file.unlink()
print("passed", passed)
"""


def test_inside_an_allocation(cluster: SlurmCluster, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = str(Path(sys.prefix) / "bin" / "python")
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{REPOSITORY / 'tests'}:{REPOSITORY / 'tests' / 'integration'}")
    records = work.parents[2] / "records"
    command = ("salloc", *SHAPE, interpreter, "-c", DRIVER, sys.executable, str(records))
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    passed = re.search(r"passed (\d+)", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 100
