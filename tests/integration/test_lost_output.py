"""A terminal, a pipe or a log that cannot be written costs no work; a result that cannot be written is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forked_python import Popen
from phantom_clinic import config_of, keyed_crosswalk, write_clinic
from rank_processes import REPOSITORY, clean_environment, run_cli
from tiny_pipeline import write_tiny_pipeline
from tiny_runs import assert_same_run, settings, train_here
from tiny_sets import write_config

from synfundus.distributed.world import World
from synfundus.storage.documents import read_lines
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.dashboard import warnings
from synfundus.telemetry.run_files import read_run

LOSSES = ("2>/dev/full", "2>&-", ">/dev/full 2>&1", "closed pipe")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``$S`` is the program."""
    variables = clean_environment({"S": f"{sys.executable} -m synfundus", **environment})
    words = ["bash", "-c", command]
    return subprocess.run(
        words, env=variables, capture_output=True, text=True, errors="replace", timeout=180, check=False
    )


def code_after_loss(loss: str, *arguments: str) -> int:
    """Run a command line whose messages are lost in one of the ways of `LOSSES`; returns its exit code."""
    if loss != "closed pipe":
        return shell(f'$S "$@" {loss}'.replace('"$@"', " ".join(arguments))).returncode
    command = [sys.executable, "-m", "synfundus", *arguments]
    reads, writes = os.pipe()
    os.close(reads)
    process = Popen(command, env=clean_environment(), cwd=REPOSITORY, stdout=writes, stderr=writes)
    os.close(writes)
    return process.wait(timeout=180)


@pytest.fixture(scope="module")
def straight(latent_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    train_here(latent_set, folder / "run", world)
    return folder / "run"


@pytest.mark.parametrize("loss", [LOSSES[0], *(pytest.param(loss, marks=pytest.mark.slow) for loss in LOSSES[1:])])
def test_a_training_goes_on_without_its_messages(
    latent_set: ShardSet, straight: Path, tmp_path: Path, loss: str
) -> None:
    config = write_config(tmp_path / "run.yaml", settings(latent_set, tmp_path / "run"))
    assert code_after_loss(loss, "train", "--config", str(config)) == 0
    assert_same_run(straight, tmp_path / "run")
    told = [row for row in read_lines(str(tmp_path / "run" / "ledger.jsonl")) if "messages_lost" in row]
    if loss == "2>&-":
        assert told == [], "closed on purpose"
    else:
        assert len(told) == 1
        assert "no messages from here on: standard error" in warnings(read_run(str(tmp_path / "run")))[0]


def test_a_reader_that_leaves_in_mid_run_ends_nothing(latent_set: ShardSet, straight: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", settings(latent_set, tmp_path / "run"))
    done = shell(f"{{ $S train --config {config}; echo $? > {tmp_path}/code; }} 2>&1 | head -1")
    assert done.stdout.count("\n") == 1
    assert (tmp_path / "code").read_text() == "0\n"
    assert_same_run(straight, tmp_path / "run")


@pytest.mark.parametrize("loss", [LOSSES[0], *(pytest.param(loss, marks=pytest.mark.slow) for loss in LOSSES[1:])])
def test_prepare_and_sample_go_on_without_their_messages(tmp_path: Path, loss: str) -> None:
    write_clinic(tmp_path / "clinic", 6)
    config = config_of(tmp_path / "clinic", tmp_path / "set", keyed_crosswalk(tmp_path / "crosswalk"))
    (tmp_path / "run.yaml").write_text(json.dumps({"prepare": config.model_dump(mode="json")["prepare"]}))
    assert code_after_loss(loss, "prepare", "--config", str(tmp_path / "run.yaml")) == 0
    assert (tmp_path / "set" / "manifest.json").exists()
    write_tiny_pipeline(tmp_path / "model")
    sizes = ("--num-images", "4", "--num-steps", "2", "--device", "cpu")
    assert code_after_loss(loss, "sample", "--model", f"{tmp_path}/model", "--out", f"{tmp_path}/out", *sizes) == 0
    assert len(list((tmp_path / "out" / "images").iterdir())) == 4


@pytest.mark.parametrize(
    "verb",
    [
        "inspect --data {set}",
        pytest.param("plan", marks=pytest.mark.slow),
        "train --latents {set} --run-dir r --dry-run",
    ],
)
def test_a_result_nobody_reads_ends_quietly_and_a_full_disk_is_said(latent_set: ShardSet, verb: str) -> None:
    line = "$S " + verb.format(set=latent_set.url)
    cut = shell(f"{line} | true; echo ${{PIPESTATUS[0]}}")
    assert (cut.stdout, cut.stderr) == ("141\n", "")
    closed = shell(f"{line} >&-")
    assert (closed.returncode, closed.stdout) == (0, "")
    assert "Traceback" not in closed.stderr
    full = shell(f"{line} > /dev/full")
    assert full.returncode == 5
    assert full.stderr == (
        "error (storage): the result cannot be written: No space left on device\nwhere: standard output\n"
    )


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.slow)])
def test_text_the_terminal_lacks_is_escaped(latent_set: ShardSet, tmp_path: Path, encoding: str) -> None:
    place = tmp_path / "Läufe_眼底"
    place.symlink_to(latent_set.url)
    looks = (f"inspect --data {place}", f"train --latents {place} --run-dir {place}-run --dry-run", "plan", "doctor")
    for verb in looks if encoding == "latin-1" else looks[:2]:
        done = shell(f"$S {verb}", PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert "\\u773c" in shell(f"$S {looks[1]}", PYTHONIOENCODING=encoding).stdout


def test_standard_output_has_the_summary_alone(tmp_path: Path) -> None:
    done = shell(f"$S phantoms --out {tmp_path}/out --num-images 1 --image-size 64 --json 2>/dev/null")
    assert json.loads(done.stdout)
    assert run_cli("phantoms", "--out", tmp_path / "other", "--num-images", "1", "--image-size", "64").returncode == 0
