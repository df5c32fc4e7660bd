"""Whatever a field says, nothing on the way to SLURM executes it: it arrives as it is, or it is refused.

Here sbatch and srun are stand-ins that record what they get and really run the batch script. The same values go
through a real SLURM in `test_slurm_hostile.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_lines import answer, make_file, train
from hostile_values import CANARY, TYPED, VALUES
from rank_processes import REPOSITORY

from synfundus.config.loader import load_config
from synfundus.config.schema import RunConfig
from synfundus.launch import submission

EVERY = pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
"""Take every fourth value; all of them under `make soak`."""
PROGRAMS = {
    "sbatch": """\
printf '%s\\0' "$@" > "$RECORD/sbatch"
while [[ "$1" == --* ]]; do shift; done
SLURM_JOB_ID=4711 SLURM_JOB_NODELIST=node[1-2] bash "$@" > /dev/null
echo Submitted batch job 4711
""",
    "srun": """printf '%s\\0' "$@" > "$RECORD/srun"\n""",
    "scontrol": "echo node1; echo node2\n",
    "squeue": "echo RUNNING N/A\n",
}


@dataclass(frozen=True)
class Desk:
    """A login node with stand-ins for SLURM's programs; the working folder is ``work``."""

    folder: Path
    work: Path

    def recorded(self, program: str) -> list[str]:
        """Return and forget what a program was last called with; empty if it was not."""
        file = self.folder / "record" / program
        if not file.exists():
            return []
        words = os.fsdecode(file.read_bytes()).split("\0")[:-1]
        file.unlink()
        return words

    def harmed(self) -> list[Path]:
        """Return what a payload has left."""
        return [path for path in self.folder.rglob(CANARY) if path.is_file()]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    programs, work = tmp_path / "bin", tmp_path / "a" / "b" / "work"
    for folder in (programs, work, tmp_path / "record"):
        folder.mkdir(parents=True)
    for name, body in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}")
        (programs / name).chmod(0o755)
    (work / "latents").mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    # it takes git and a hash of the package each time, and is the same each time
    monkeypatch.setattr(submission, "code_version", lambda: {"synfundus": "0"})
    mask = os.umask(0o077)
    yield Desk(tmp_path, work)
    os.umask(mask)


def taken_literally(option: str) -> str:
    """Read a file name the way SLURM does: with a backslash anywhere, %j and the like are letters."""
    if "\\" in option:
        return re.sub(r"\\(.)", r"\1", option, flags=re.DOTALL)
    assert "%" not in option
    return option


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> int:
    """Run a command line and return its code."""
    return answer(capsys, *arguments)[0]


def check_frozen(asked: list[str], started: list[str]) -> RunConfig:
    """Check that a job was asked for with nothing but places of its submission; returns what it will read."""
    script = asked.index(str(REPOSITORY / "slurm" / "ldm.sh"))
    options = dict(option.split("=", 1) for option in asked[:script] if "=" in option)
    assert started[-2:] == asked[script + 1 :] == ["--config", asked[-1]]
    assert taken_literally(options["--output"]) == str(Path(asked[-1]).with_name("job.log"))
    return load_config(preset=None, file=asked[-1], settings=[], flags=[]).config


@EVERY
def test_a_run_directory_is_not_executed(desk: Desk, capsys: pytest.CaptureFixture[str], every: int) -> None:
    passed = 0
    for value in VALUES[::every]:
        code = run(capsys, *train(**{"run-dir": value}))
        asked, started = desk.recorded("sbatch"), desk.recorded("srun")
        assert not desk.harmed(), value
        if code == 0:
            assert check_frozen(asked, started).train.run_dir == value
            passed += 1
        else:
            assert not asked + started, value
    assert passed >= 100 // every


@EVERY
def test_a_config_path_a_location_and_a_setting_are_not_executed(
    desk: Desk, capsys: pytest.CaptureFixture[str], every: int
) -> None:
    passed = 0
    for value in VALUES[::every]:
        given = {"set": f"telemetry.wandb_project={value}"}
        on_disk = make_file(value)
        if on_disk:
            given |= {"config": value, "latents": value}
        code = run(capsys, *train(**given))
        asked, started = desk.recorded("sbatch"), desk.recorded("srun")
        assert not desk.harmed(), value
        if code != 0:
            assert not asked + started, value
            continue
        frozen = check_frozen(asked, started)
        assert frozen.telemetry.wandb_project == (None if value.strip() in ("null", "~") else value)
        if on_disk:
            assert (frozen.train.latents, frozen.seed) == ((value,), 7), value
            passed += 1
    assert passed >= 90 // every


@EVERY
def test_names_and_limits_are_checked_before_slurm_sees_them(
    desk: Desk, capsys: pytest.CaptureFixture[str], every: int
) -> None:
    passed = 0
    for value in VALUES[::every]:
        is_name, is_null = bool(re.fullmatch("[A-Za-z0-9_.-]{1,64}", value)), value.strip() in ("null", "~")
        is_list = bool(re.fullmatch("[A-Za-z0-9_.-]{1,64}(,[A-Za-z0-9_.-]{1,64})+", value))
        fields = ("account", "time_limit") if is_list else ("partition", "account", "time_limit")
        for names in zip(fields) if is_name or is_null else (fields,):
            code = run(capsys, *train(), *(f"--set=launch.{name}={value}" for name in names))
            asked = desk.recorded("sbatch")
            assert not desk.harmed(), value
            if names == ("time_limit",) or not (is_name or is_null):
                assert (code, asked) == (2, []), value
            else:
                assert code == 0, value
                assert (f"--{names[0]}={value}" in asked) != is_null, value
                passed += 1
    assert passed >= 20 // every


@EVERY
def test_further_options_of_sbatch_are_not_executed(desk: Desk, capsys: pytest.CaptureFixture[str], every: int) -> None:
    """As the value of an option, and as the option itself."""
    passed = 0
    for value in VALUES[::every]:
        for words in ([f"--comment={value}"], [value]):
            Path("run.yaml").write_text(json.dumps({"launch": {"sbatch_args": words}}), encoding="utf-8")
            code = run(capsys, *train(config="run.yaml"))
            asked, started = desk.recorded("sbatch"), desk.recorded("srun")
            assert not desk.harmed(), value
            if code == 0:
                assert words[0] in asked, value
                assert set(check_frozen(asked, started).launch.sbatch_args) == set(words), value
                assert words[0].startswith("--"), "no word of its own reaches sbatch"
                passed += 1
            else:
                assert not asked + started, value
    assert passed >= 60 // every


@EVERY
def test_values_that_are_not_frozen_arrive_as_they_are(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """With its output in an object store a job gets the command line itself; so does a step of an allocation."""
    passed = 0
    for at, value in enumerate(VALUES[::every]):
        setting = f"telemetry.wandb_project={value}"
        inside = at % 2 == 0
        for name, text in {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1-2]"}.items():
            monkeypatch.setenv(name, text) if inside else monkeypatch.delenv(name, raising=False)
        arguments = train(**{"run-dir": value if inside else f"s3://bucket/{value}", "set": setting})
        code = run(capsys, *arguments)
        asked, started = desk.recorded("sbatch"), desk.recorded("srun")
        assert not desk.harmed(), value
        assert bool(asked) == (code == 0 and not inside)
        assert (started[-len(arguments) :] == arguments) if code == 0 else not started, value
        passed += code == 0
    assert passed >= 100 // every


@pytest.mark.parametrize(
    "script", ["prepare.sh", "vae.sh", "encode_latents.sh", "ldm.sh", "sample.sh", "augment.sh", "judge.sh", "demo.sh"]
)
def test_a_batch_script_hands_every_value_on(script: str, desk: Desk) -> None:
    """What a user types after ``sbatch slurm/ldm.sh``, in as many jobs as a command line's length needs."""
    for batch in ([value for value in TYPED if len(value) < 40_000], *([v] for v in TYPED if len(v) >= 40_000)):
        command = ["sbatch", str(REPOSITORY / "slurm" / script), *batch]
        subprocess.run([os.fsencode(word) for word in command], check=True, capture_output=True)
        assert desk.recorded("srun")[-len(batch) :] == batch
    assert not desk.harmed()


@EVERY
def test_a_pipeline_hands_every_value_on(desk: Desk, every: int) -> None:
    (desk.folder / "bin" / "sbatch").write_text('#!/bin/bash\nprintf "%s\\0" "$@" > "$RECORD/sbatch"\necho 12\n')
    folder = desk.folder / "configs"
    folder.mkdir()
    (folder / "run.yaml").touch()
    named = 0
    for value in filter(None, TYPED[::every]):
        config = "run.yaml"
        with contextlib.suppress(OSError, ValueError):  # no name of a file
            (folder / value).touch(exist_ok=False)
            config = value
            named += 1
        command = ["bash", str(REPOSITORY / "slurm" / "pipeline.sh"), config, f"--comment={value}"]
        subprocess.run([os.fsencode(word) for word in command], check=True, capture_output=True, cwd=folder)
        *_, comment, script, option, passed_on = desk.recorded("sbatch")
        assert (comment, Path(script).name, option, passed_on) == (
            f"--comment={value}",
            "sample.sh",
            "--config",
            config,
        )
    assert named >= len(TYPED[::every]) // 2
    assert not desk.harmed()


def test_the_values_would_be_executed_by_a_careless_script(tmp_path: Path) -> None:
    """Without this, a canary that never appears would prove nothing."""
    worked = 0
    for value in (value for value in TYPED if len(value) < 40_000):
        command = [b"bash", b"-c", b"x=1; echo " + os.fsencode(value) + b" >/dev/null"]
        subprocess.run(command, cwd=tmp_path, capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=30)
        worked += (tmp_path / CANARY).exists()
        for left in tmp_path.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert worked >= 80
