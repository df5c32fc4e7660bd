"""The batch scripts with stand-ins for SLURM: exit codes, and a chain that is submitted whole or not at all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from synfundus.cli.app import run_command

ROOT = Path(__file__).resolve().parents[2]
CHAIN = ("prepare.sh", "vae.sh", "encode_latents.sh", "ldm.sh", "sample.sh")
SCRIPTS = (*CHAIN, "judge.sh", "demo.sh")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    write(folder, "scontrol", "echo node1")
    write(folder, "squeue", "echo RUNNING N/A")
    return folder


def write(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)


def run(programs: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1"}
    environment["SYNFUNDUS_PYTHON"] = str(programs / "python")
    return subprocess.run(
        ["bash", *command],
        env=environment,
        cwd=programs.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("kept", "ended", "code"), [("2", 143, 2), ("", 143, 143), ("3", 3, 3), ("2", 137, 2), ("2", 0, 0)]
)
def test_a_job_ends_with_the_code_of_its_first_error(
    programs: Path, script: str, kept: str, ended: int, code: int
) -> None:
    write(programs, "srun", f'[ -z "{kept}" ] || echo {kept} > "$SYNFUNDUS_EXIT"; exit {ended}')
    write(programs, "python", "exit 1")  # no fault of a GPU is reported
    assert run(programs, str(ROOT / "slurm" / script)).returncode == code


def test_the_code_of_an_earlier_start_is_forgotten(programs: Path) -> None:
    write(programs, "srun", "exit 143")
    write(programs, "python", "exit 1")
    (programs.parent / ".faults-7").mkdir()
    (programs.parent / ".faults-7" / "exit").write_text("2\n")
    assert run(programs, str(ROOT / "slurm" / "ldm.sh")).returncode == 143


@pytest.mark.parametrize("arguments", [["train"], ["train", "--no-such-option"], ["inspect", "--data", "no/such"]])
def test_an_error_leaves_its_exit_code(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNFUNDUS_EXIT", str(tmp_path / "exit"))
    code = run_command(arguments)
    assert (tmp_path / "exit").read_text() == f"{code}\n"


def chain_of(programs: Path) -> list[str]:
    (programs.parent / "run.yaml").touch()
    return [str(ROOT / "slurm" / "pipeline.sh"), "run.yaml"]


def test_a_chain_without_its_config_submits_nothing(programs: Path) -> None:
    write(programs, "sbatch", 'echo "$*" >> "$0.log"; echo 11')
    for arguments, said in (([], "usage: slurm/pipeline.sh RUN.yaml"), (["gone.yaml"], "gone.yaml: no such file")):
        done = run(programs, str(ROOT / "slurm" / "pipeline.sh"), *arguments)
        assert done.returncode == 2
        assert said in done.stderr
    assert not (programs / "sbatch.log").exists()


@pytest.mark.parametrize(("refused", "before"), [("prepare.sh", []), ("ldm.sh", ["11", "12", "13"])])
def test_a_chain_that_is_refused_leaves_no_job_behind(programs: Path, refused: str, before: list[str]) -> None:
    said = 'echo "invalid option" >&2; exit 1'
    write(programs, "sbatch", f'[[ "$*" == *{refused}* ]] && {{ {said}; }}; n=$(wc -l < "$0.log" 2>/dev/null || echo 0)'
                              '; echo x >> "$0.log"; echo $((11 + n))')  # fmt: skip
    write(programs, "scancel", 'echo "$*" >> "$0.log"')
    write(programs, "python", "echo PATH,SYNFUNDUS_PYTHON")
    done = run(programs, *chain_of(programs), "--qos=none")
    assert done.returncode == 1
    assert f"{refused} could not be submitted" in done.stderr
    assert "invalid option" in done.stderr
    if before:
        assert (programs / "scancel.log").read_text().split() == before
        assert f"cancelled: {' '.join(before)}" in done.stderr
    else:
        assert not (programs / "scancel.log").exists()


def test_jobs_that_cannot_be_cancelled_are_named(programs: Path) -> None:
    write(programs, "sbatch", '[[ "$*" == *vae.sh* ]] && exit 1; echo 11')
    write(programs, "scancel", "exit 1")
    write(programs, "python", "exit 1")
    done = run(programs, *chain_of(programs))
    assert done.returncode == 1
    assert "cancel them: scancel 11" in done.stderr


def test_a_whole_chain_cancels_nothing(programs: Path) -> None:
    write(programs, "sbatch", 'echo "$*" >> "$0.log"; echo 11')
    write(programs, "scancel", 'echo "$*" >> "$0.log"')
    write(programs, "python", "echo PATH,WANDB_MODE,SYNFUNDUS_PYTHON")
    done = run(programs, *chain_of(programs), "--qos=long")
    assert (done.returncode, done.stderr) == (0, "")
    asked = (programs / "sbatch.log").read_text().splitlines()
    assert [line.split("/")[-1] for line in asked] == [f"{script} --config run.yaml" for script in CHAIN]
    assert all("--export=PATH,WANDB_MODE,SYNFUNDUS_PYTHON" in line for line in asked)
    assert not (programs / "scancel.log").exists()


def test_a_failed_task_ends_the_others_in_an_allocation_too(programs: Path) -> None:
    write(programs, "srun", 'echo "$@"')
    done = run(programs, str(ROOT / "launchers" / "srun.sh"), "train", "--run-dir", "a b")
    assert done.returncode == 0
    options, _, command = done.stdout.partition(str(programs / "python"))
    assert "--kill-on-bad-exit=1" in options.split()
    assert command.split() == ["-m", "synfundus", "train", "--run-dir", "a", "b"]
