"""What a batch job is submitted with: where it is kept, that it is complete, and what is said when the code changes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from synfundus import __version__
from synfundus.cli import submit
from synfundus.cli.app import run_command
from synfundus.cli.request import Request
from synfundus.cli.run import start_facts
from synfundus.config.dump import dump_config
from synfundus.config.loader import load_config
from synfundus.distributed.world import LocalWorld
from synfundus.errors import LaunchError
from synfundus.launch.plan import slurm_file_name
from synfundus.launch.submission import (
    Submission,
    belongs_to_a_job,
    changed_code,
    code_differences,
    code_version,
    freeze,
    place_submission,
    source_hash,
)
from synfundus.stages.train import job as train
from synfundus.stages.train.verb import VERB

NOON = datetime(2026, 11, 26, 12, 0, 5, tzinfo=UTC)
ANSWER = "Submitted batch job 4711"
pytestmark = pytest.mark.usefixtures("inputs_elsewhere")


def test_a_submission_lies_in_a_run_and_beside_a_set(tmp_path: Path) -> None:
    place = place_submission(tmp_path / "run", beside=False, now=NOON.astimezone(timezone(timedelta(hours=9))))
    assert place.folder == tmp_path / "run" / "submissions" / "20261126T120005Z"
    beside = place_submission(tmp_path / "set", beside=True, now=NOON)
    assert beside.folder == tmp_path / "set.submissions" / "20261126T120005Z"
    assert list(tmp_path.iterdir()) == []


def test_submissions_of_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    places = []
    for _ in range(3):
        places.append(place_submission(tmp_path, beside=False, now=NOON))
        freeze(places[-1], config="seed: 1\n", argv=["sbatch"], environment={})
    names = [place.folder.name for place in places]
    assert names == ["20261126T120005Z", "20261126T120005Z-2", "20261126T120005Z-3"]
    place = places[-1]
    with pytest.raises(LaunchError, match="cannot be written: File exists"):
        freeze(place, config="seed: 2\n", argv=["sbatch"], environment={})
    assert place.config.read_text() == "seed: 1\n"


def test_a_place_nobody_can_write_to_is_a_launch_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = place_submission(tmp_path / "file", beside=False, now=NOON)
    with pytest.raises(LaunchError, match="cannot be written: Not a directory"):
        freeze(place, config="", argv=[], environment={})


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/runs/a b/job.log", "/runs/a b/job.log"),
        ("/runs/50%j/job.log", "/runs/50%j/\\job.log"),
        ("/runs/a\\b/job.log", "/runs/a\\\\b/\\job.log"),
    ],
)
def test_a_file_name_is_written_so_that_slurm_takes_it_letter_by_letter(path: str, written: str) -> None:
    """That SLURM reads it so is tested in `test_slurm_hostile.py`."""
    assert slurm_file_name(path) == written


def test_code_is_named_without_importing_it() -> None:
    script = (
        "import sys, json\nfrom synfundus.launch.submission import code_version\n"
        "print(json.dumps([code_version(), sorted({'torch', 'deepspeed', 'diffusers'} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found, imported = json.loads(done.stdout)
    assert imported == []
    assert found["synfundus"] == __version__
    assert set(found["packages"]) == {"torch", "deepspeed", "diffusers"}
    assert all(found["packages"].values())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A package in a repository of its own."""
    package = tmp_path / "checkout" / "synfundus"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("a = 1\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.invalid"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(package.parent), *command], check=True)
    return package


def test_code_of_a_checkout_has_a_commit_and_says_whether_it_was_changed(checkout: Path) -> None:
    clean = code_version(checkout)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (checkout.parent / "notes.txt").touch()
    assert code_version(checkout) == clean
    (checkout / "__init__.py").write_text("a = 2\n")
    changed = code_version(checkout)
    assert changed["dirty"] is True
    differences = code_differences(clean, changed)
    assert [text.split(" was ")[0] for text in differences] == ["the source", "uncommitted changes"]
    # two changes of the same commit are told apart as well
    (checkout / "__init__.py").write_text("a = 3\n")
    assert len(code_differences(changed, code_version(checkout))) == 1


def test_code_outside_a_checkout_has_no_commit(tmp_path: Path) -> None:
    (tmp_path / "synfundus").mkdir()
    found = code_version(tmp_path / "synfundus")
    assert (found["commit"], found["dirty"]) == (None, None)


def test_what_one_side_does_not_know_is_no_difference() -> None:
    now = code_version()
    assert code_differences(now, now) == []
    assert code_differences({**now, "commit": None, "dirty": None}, now) == []
    other = {**now, "synfundus": "0.0.0", "packages": {**now["packages"], "torch": "1.0"}}
    assert code_differences(other, now) == [
        f"synfundus was 0.0.0, is {__version__[:12]}",
        f"torch was 1.0, is {now['packages']['torch'][:12]}",
    ]


def test_a_file_that_is_no_submission_has_nothing_to_say(tmp_path: Path) -> None:
    assert changed_code(str(tmp_path / "run.yaml")) == []
    assert not belongs_to_a_job(str(tmp_path / "run.yaml"))
    (tmp_path / "code.json").write_text("{}")
    assert belongs_to_a_job(str(tmp_path / "run.yaml"))
    assert changed_code(str(tmp_path / "run.yaml")) == []


@pytest.fixture
def login_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder on a machine whose sbatch answers what the file ``answer`` says."""
    programs = tmp_path / "bin"
    programs.mkdir()
    answer = tmp_path / "answer"
    answer.write_text(f"echo {ANSWER}\n")
    for name in ("sbatch", "srun"):
        (programs / name).write_text(f"#!/bin/bash\n. {answer}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    work = tmp_path / "work"
    (work / "latents").mkdir(parents=True)
    monkeypatch.chdir(work)
    mask = os.umask(0o022)
    yield work
    os.umask(mask)


@contextmanager
def _here() -> Iterator[LocalWorld]:
    yield LocalWorld()


TRAIN = ("train", "--latents", "latents", "--run-dir", "run", "--nodes", "2", "--device", "cpu")


def only_submission(folder: Path) -> Submission:
    (place,) = folder.iterdir()
    return Submission(place)


def test_a_job_reads_what_was_resolved_when_it_was_submitted(
    login_node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (login_node / "run.yaml").write_text("train: {loop: {budget_images: 777}}\nlaunch: {partition: gpu}\n")
    assert run_command([*TRAIN, "--config", "run.yaml", "--set", "train.optim.lr=3e-4", "--seed", "9", "--json"]) == 0
    said = capsys.readouterr().out
    place = only_submission(login_node / "run" / "submissions")
    assert said.splitlines() == [ANSWER, place.describe()]
    (login_node / "run.yaml").write_text("train: {loop: {budget_images: 1}}\n")
    frozen = load_config(preset=None, file=str(place.config), settings=[], flags=[]).config
    assert (frozen.train.loop.budget_images, frozen.train.optim.lr, frozen.seed) == (777, 3e-4, 9)
    argv = json.loads(place.argv.read_text())
    assert argv["argv"][0] == "sbatch"
    assert argv["argv"][-3:] == ["--config", str(place.config), "--json"]
    assert {f"--output={place.log}", "--open-mode=append", "--partition=gpu"} <= set(argv["argv"])
    assert argv["answer"] == ANSWER
    assert json.loads(place.code.read_text())["synfundus"] == __version__
    assert [path.name for path in place.folder.iterdir() if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)] == []


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("prepare", ["--source", "latents", "--labels", "labels.csv"]),
        ("encode-latents", ["--data", "latents", "--vae", "latents"]),
        ("sample", ["--model", "latents", "--num-images", "2"]),
    ],
)
def test_what_is_handed_on_holds_no_paths_of_the_cluster(login_node: Path, verb: str, options: list[str]) -> None:
    (login_node / "labels.csv").touch()
    assert run_command([verb, *options, "--out", "out", "--nodes", "2"]) == 0
    assert not (login_node / "out").exists()
    assert only_submission(login_node / "out.submissions").config.exists()


def test_a_run_in_an_object_store_says_that_nothing_is_kept(
    login_node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(login_node.rglob("*"))
    assert run_command([*TRAIN, "--run-dir", "s3://bucket/run"]) == 0
    said, noted = capsys.readouterr()
    assert ANSWER in said
    assert "sbatch decides where its log goes" in said
    assert "settings of a run that is there are not taken over (s3://bucket/run/run.json)" in noted
    assert sorted(login_node.rglob("*")) == before


@pytest.mark.usefixtures("inputs_elsewhere")
def test_a_dry_run_shows_where_it_would_be_kept(login_node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*TRAIN, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"job.log of this submission: {login_node / 'run' / 'submissions'}" in said
    assert f"--config {login_node / 'run' / 'submissions'}" in said
    assert not (login_node / "run").exists()


ONE_NODE = ("train", "--latents", "latents", "--run-dir", "run", "--procs-per-node", "8")


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_command([*arguments, "--dry-run"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "wish",
    [["--set", "launch.partition=gpu"], ["--set", "launch.account=eye"], ["--submit"], ["--set=launch.submit=1"]],
)
def test_one_node_is_submitted_with_the_record_of_several(
    login_node: Path, capsys: pytest.CaptureFixture[str], wish: list[str]
) -> None:
    said = dry_run(capsys, *ONE_NODE, *wish)
    assert "\nsbatch: a batch job" in said
    assert "#SBATCH --nodes=1" in said, "the script is shown"
    assert run_command([*ONE_NODE, *wish]) == 0
    place = only_submission(login_node / "run" / "submissions")
    assert json.loads(place.argv.read_text())["argv"][0] == "sbatch"
    assert "\nlocal: 8 processes on this machine" in dry_run(capsys, *ONE_NODE)


def test_a_verb_that_runs_in_no_job_is_not_submitted(login_node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del login_node
    said = dry_run(capsys, "export", "--run-dir", "latents", "--out", "out", "--set", "launch.partition=gpu")
    assert "in_process: one process" in said
    assert "note:" not in said


@pytest.mark.parametrize(
    "line", [["judge", "--model", "latents", "--data", "latents", "--out", "out"], ["demo", "--out", "out"]]
)
@pytest.mark.parametrize("wish", [["--set", "launch.partition=gpu"], ["--submit"]])
def test_judge_and_demo_are_jobs_of_one_node_and_their_record_lies_beside_their_folder(
    login_node: Path, capsys: pytest.CaptureFixture[str], line: list[str], wish: list[str]
) -> None:
    said = dry_run(capsys, *line, *wish, "--set", "launch.nodes=2")
    assert "\nsbatch: a batch job" in said
    assert "--nodes=1 " in said
    assert run_command([*line, *wish]) == 0
    place = only_submission(login_node / "out.submissions")
    argv = json.loads(place.argv.read_text())["argv"]
    assert f"{line[0]}.sh" in {Path(word).name for word in argv}
    assert not (login_node / "out").exists()


def test_a_verb_that_computes_where_it_is_started_is_not_started_on_a_login_node(
    login_node: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del login_node
    line = ["verify-latents", "--latents", "latents", "--vae", "latents"]
    for wish in (["--set", "launch.partition=gpu"], ["--set", "launch.submit=true"]):
        assert run_command([*line, *wish, "--dry-run"]) == 2
        assert "asks for a batch job, and `verify-latents` computes where it is started" in capsys.readouterr().err
    assert "in_process: one process" in dry_run(capsys, *line)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    for wish in (["--set", "launch.partition=gpu"], ["--set", "launch.submit=true"]):
        assert "in_process: one process" in dry_run(capsys, *line, *wish)


@pytest.mark.parametrize(
    ("options", "device", "ds_file"),
    [
        ([], "cuda", "zero2.json"),
        (["--set", "launch.gpus_per_node=0"], "cpu", "zero2_cpu.json"),
        (["--device", "cpu"], "cpu", "zero2_cpu.json"),
        (["--nodes", "1", "--submit"], "cuda", "zero2.json"),
        (["--nodes", "1"], "cpu", "zero2_cpu.json"),
    ],
)
def test_a_dry_run_shows_the_device_of_the_job(
    login_node: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    device: str,
    ds_file: str,
) -> None:
    """Not that of the login node, which has no GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = ["train", "--latents", "latents", "--run-dir", "run", "--nodes", "2", *options]
    said = dry_run(capsys, *run)
    assert f", device {device}\n" in said
    assert f"/{ds_file})" in said
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[1-2]")
    if "--submit" not in options:
        assert f", device {device}\n" in dry_run(capsys, *run), "of the nodes of the allocation"
    data = ["prepare", "--source", "latents", "--labels", "l.csv", "--out", "set", "--nodes", "2"]
    assert ", device cpu\n" in dry_run(capsys, *data)


def test_submissions_of_one_folder_have_one_name(login_node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (login_node / "link").symlink_to(login_node)

    def name(run_dir: str) -> str:
        said = dry_run(capsys, *TRAIN, "--run-dir", run_dir)
        assert "--dependency=singleton" in said
        return said.split("--job-name=")[1].split()[0]

    same = {name(text) for text in ("run", "run/", "./run", "link/run", str(login_node / "run"))}
    assert len(same) == 1
    (kept,) = same
    assert kept.startswith("synfundus-train-run-")
    assert len({kept, name("run2"), name("latents/run"), name("s3://bucket/run"), name("s3://other/run")}) == 5
    assert name("s3://bucket/run") == name("s3://bucket/run/")


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("--nodes=4", "set launch.nodes"),
        ("--node=4", "set launch.nodes"),
        ("--gpus=4", "launch.nodes, procs_per_node, gpus_per_node"),
        ("--partition=x", "set launch.partition"),
        ("--time=1", "time_limit"),
        ("--output=x", "belong to its folder"),
        ("--err=x", "belong to its folder"),
        ("--chdir=/", "belong to its folder"),
        ("--job-name=x", "belong to its folder"),
        ("--export=ALL", "keys"),
        ("--exp=ALL", "keys"),
        ("--array=1-9", "one job"),
        ("--wrap=id", "one job"),
        ("--no-requeue", "SYNFUNDUS_MAX_RESTARTS=0"),
        ("--test-only", "--dry-run"),
        ("--signal=TERM@60", "--signal=B:USR2@SECONDS"),
        ("--qos", "write --qos=VALUE"),
        ("--qos long", "of the form --NAME=VALUE"),
        ("-qlong", "of the form --NAME=VALUE"),
        ("ldm.sh", "of the form --NAME=VALUE"),
        ("--comment=a\nb", "a line break"),
    ],
)
def test_options_of_sbatch_that_are_ours_are_refused_by_name(
    login_node: Path, capsys: pytest.CaptureFixture[str], argument: str, reason: str
) -> None:
    (login_node / "run.yaml").write_text(f"launch: {{sbatch_args: [{json.dumps(argument)}]}}\n")
    assert run_command([*TRAIN, "--config", "run.yaml"]) == 2
    said = capsys.readouterr().err
    assert "launch.sbatch_args" in said
    assert "run.yaml:1" in said
    assert reason in said
    assert not (login_node / "run").exists()


def test_options_of_sbatch_are_taken_from_the_command_line(
    login_node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--qos=long", "--mem=200G", "--constraint=a100", "--reservation=eye", "--signal=B:USR2@900", "--exclusive"]
    said = dry_run(capsys, *TRAIN, "--set", f"launch.sbatch_args=[{', '.join(given)}]")
    assert f"sbatch {' '.join(given)} --nodes=2" in said
    assert run_command([*TRAIN, "--set", "launch.sbatch_args=[--qos=long]"]) == 0
    place = only_submission(login_node / "run" / "submissions")
    assert load_config(preset=None, file=str(place.config), settings=[], flags=[]).config.launch.sbatch_args == (
        "--qos=long",
    )


def test_a_refusal_is_kept_with_its_reason(login_node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (login_node.parent / "answer").write_text("echo no such partition >&2; exit 1\n")
    assert run_command([*TRAIN]) == 7
    assert "no such partition" in capsys.readouterr().err
    answer = json.loads(only_submission(login_node / "run" / "submissions").argv.read_text())["answer"]
    assert answer == "sbatch refused the job: no such partition"


def test_no_secret_is_kept(
    login_node: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "correct-horse-battery-staple"
    monkeypatch.setenv("OTHER_PASSWORD", secret)
    assert run_command([*TRAIN, "--set", f"telemetry.wandb_project=my-{secret}"]) == 2
    assert run_command([*TRAIN, "--run-dir", f"run-{secret}"]) == 2
    said = capsys.readouterr()
    assert "telemetry.wandb_project" in said.err
    assert secret not in said.err + said.out
    assert not (login_node / "run").exists()
    (login_node.parent / "answer").write_text(f"echo {ANSWER} {secret}\n")
    assert run_command([*TRAIN]) == 0
    kept = [path for path in (login_node / "run").rglob("*") if path.is_file()]
    assert len(kept) == 3
    assert [path.name for path in kept if secret in path.read_text()] == []


def test_settings_too_long_for_a_file_are_refused_before_sbatch_hears_of_them(
    login_node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([*TRAIN, "--set", f"telemetry.wandb_project={'x' * 300_000}"]) == 2
    assert "more than 262144 bytes" in capsys.readouterr().err
    assert not (login_node / "run" / "submissions").exists()


def test_a_job_that_finds_other_code_says_so(
    login_node: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_command([*TRAIN, "--set", "train.loop.global_batch_size=256"]) == 0
    place = only_submission(login_node / "run" / "submissions")
    monkeypatch.setattr("synfundus.cli.run._joined", lambda *_: _here())
    monkeypatch.setattr(train, "run", lambda *_: {})
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    capsys.readouterr()
    assert run_command(["train", "--config", str(place.config)]) == 0
    assert "submitted with" not in "".join(capsys.readouterr())
    code = json.loads(place.code.read_text())
    place.code.write_text(json.dumps({**code, "source_sha256": "0" * 64, "synfundus": "0.0.0"}))
    assert run_command(["train", "--config", str(place.config)]) == 0
    said = "".join(capsys.readouterr())
    assert f"this is not the code the job was submitted with: synfundus was 0.0.0, is {__version__[:12]}; the" in said


@pytest.mark.parametrize("name", ["steps.py", "presets/a.yaml"])
def test_code_and_presets_are_in_the_hash_of_the_source(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    found = {source_hash(tmp_path)}
    for text in ("lr: 1", "lr: 2"):
        path.write_text(text)
        found.add(source_hash(tmp_path))
    path.rename(path.with_stem("b"))
    assert len(found | {source_hash(tmp_path)}) == 4


def test_the_deepspeed_files_are_in_the_hash_of_the_source_of_a_checkout_and_of_a_wheel(tmp_path: Path) -> None:
    found = set()
    for package, folder in ((tmp_path / "a" / "synfundus", "../ds_configs"), (tmp_path / "b", "_assets/ds_configs")):
        (package / folder).mkdir(parents=True)
        (package / "steps.py").write_text("a = 1")
        found.add(source_hash(package))
        for text in ("{}", '{"zero_optimization": {}}'):
            (package / folder / "zero2.json").write_text(text)
            found.add(source_hash(package))
    assert len(found) == 3, "the same in both"


def test_ranks_tell_each_other_what_their_deepspeed_file_holds(tmp_path: Path) -> None:
    def facts(name: str) -> dict[str, object]:
        loaded = load_config(preset=None, file=None, settings=[f"launch.ds_config={name}"], flags=[])
        return start_facts(Request(VERB, loaded))

    own, found = tmp_path / "own.json", []
    for text in ("{}", "{ }"):
        own.write_text(text)
        found.append(facts(str(own)))
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"the DeepSpeed file"}
    own.unlink()
    assert "unreadable" in str(facts(str(own))["the DeepSpeed file"]), "refused when all ranks have met"


def test_settings_that_change_when_they_are_written_are_not_submitted(
    login_node: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "dump_config", lambda loaded: dump_config(loaded).replace("seed: 9", "seed: 8"))
    assert run_command([*TRAIN, "--seed", "9"]) == 2
    said = capsys.readouterr()
    assert "the settings changed when they were written" in said.err
    assert ANSWER not in said.out
    assert not (login_node / "run" / "submissions").exists()
