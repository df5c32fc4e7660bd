"""A rank that stands still: every rank says where it is, all leave with the code to queue the job again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rank_processes import Ended, run_cli, run_cli_with_fault, run_ranks_with_fault
from tiny_runs import assert_same_run, settings, train_here
from tiny_sets import write_config

from synfundus.distributed.watchdog import PHASE_PATIENCE
from synfundus.distributed.world import World
from synfundus.storage.manifest import ShardSet

LIMIT_S = 4.0
PATIENCE_S = 15.0
"""What the other ranks get after the first has left."""
STEP = "synfundus.distributed.engine:ZeroEngine.step"
READ = "synfundus.shards.batches:BatchReader.read"
WRITE = "synfundus.training.checkpoints.checkpoint:_write_all"


def command(latent_set: ShardSet, out: Path, *, limit_s: float = LIMIT_S) -> tuple[str, ...]:
    path = write_config(out.with_suffix(".yaml"), settings(latent_set, out, watchdog_s=limit_s))
    return "train", "--config", str(path)


def hang(latent_set: ShardSet, out: Path, point: str, rank: int, *, limit_s: float = LIMIT_S) -> list[Ended]:
    """Run two ranks, of which one hangs; returns how both ended."""
    words = command(latent_set, out, limit_s=limit_s)
    return run_ranks_with_fault(f"hang:{point}", rank, *words, world_size=2, timeout_s=100, patience_s=PATIENCE_S)


def test_every_rank_writes_its_stacks_and_the_run_goes_on_later(latent_set: ShardSet, tmp_path: Path) -> None:
    ended = hang(latent_set, tmp_path / "out", f"sleep:{STEP}:20", 1)
    assert [end.returncode for end in ended] == [75, 75], ended
    for rank, end in enumerate(ended):
        assert f"rank {rank} of 2" in end.output
        assert "the step from 152 images, first sample" in end.output
        assert "Current thread" in end.output
        assert "Traceback" not in end.output
    assert "in hang" in ended[1].output, "the stack says where"
    assert re.search(r"first sample \S+\.tar#\d+", ended[1].output), "and the sample which"
    run_cli(*command(latent_set, tmp_path / "out")).check()


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stopped_rank_is_noticed_by_the_other(latent_set: ShardSet, tmp_path: Path, rank: int) -> None:
    ended = hang(latent_set, tmp_path / "out", f"stop:{STEP}:20", rank)
    assert ended[1 - rank].returncode == 75, ended[1 - rank].output
    assert "no end of the step" in ended[1 - rank].output
    assert ended[rank].returncode == -9, "it had to be killed"


def test_a_call_that_keeps_the_interpreter_is_shown_with_its_stack(latent_set: ShardSet, tmp_path: Path) -> None:
    ended = hang(latent_set, tmp_path / "out", f"gil:{STEP}:20", 1)
    assert ended[0].returncode == 75, ended[0].output
    assert ended[1].returncode == 1
    assert "Timeout" in ended[1].output
    assert "in hang" in ended[1].output


@pytest.fixture(scope="module")
def undisturbed(latent_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which nothing hung."""
    run_dir = tmp_path_factory.mktemp("standstill") / "undisturbed"
    train_here(latent_set, run_dir, world)
    return run_dir


@pytest.mark.parametrize(
    ("function", "what"),
    [(f"{READ}:25", "the wait for the batch from"), (f"{WRITE}:2", "the writing of the checkpoint at 160 images")],
)
def test_data_and_saves_that_stand_still_are_named(
    latent_set: ShardSet, undisturbed: Path, tmp_path: Path, function: str, what: str
) -> None:
    ended = run_cli_with_fault(f"hang:sleep:{function}", *command(latent_set, tmp_path / "out"), timeout_s=100)
    assert ended.returncode == 75, ended.output
    assert f"no end of {what}" in ended.output
    assert "Traceback" not in ended.output
    run_cli(*command(latent_set, tmp_path / "out")).check()
    assert_same_run(undisturbed, tmp_path / "out")


@pytest.mark.parametrize(
    ("function", "what", "rank"),
    [
        ("synfundus.stages.train.job:initial_denoiser:1", "the start", 0),
        pytest.param("synfundus.stages.train.job:initial_denoiser:1", "the start", 1, marks=pytest.mark.slow),
        pytest.param("synfundus.stages.train.job:DiffusionTraining.export:1", "the export", 0, marks=pytest.mark.slow),
    ],
)
def test_a_start_and_an_export_that_stand_still_are_named(
    latent_set: ShardSet, undisturbed: Path, tmp_path: Path, function: str, what: str, rank: int
) -> None:
    limit_s = LIMIT_S / 2  # nothing but a phase is waited for: ten times as long
    ended = hang(latent_set, tmp_path / "out", f"sleep:{function}", rank, limit_s=limit_s)
    assert [end.returncode for end in ended] == [75, 75], ended
    assert any(f"no end of {what}" in end.output for end in ended), ended
    assert "in hang" in ended[rank].output, "the stack says where"
    waited = [int(text) for end in ended for text in re.findall(rf"no end of {what} after (\d+) s", end.output)]
    assert waited
    assert all(seconds >= PHASE_PATIENCE * limit_s for seconds in waited), "a start may take longer than a step"
    run_cli(*command(latent_set, tmp_path / "out")).check()
    if what == "the start":  # two ranks that have trained give other bits than one
        assert_same_run(undisturbed, tmp_path / "out")


@pytest.mark.slow
def test_a_validation_longer_than_a_collective_may_take_is_waited_for(latent_set: ShardSet, tmp_path: Path) -> None:
    section = settings(latent_set, tmp_path / "out", budget_images=32, validate_every_images=16)
    path = write_config(tmp_path / "run.yaml", {**section, "launch": {"collective_timeout_s": 25}})
    for end in run_ranks_with_fault(
        "hang:35:synfundus.stages.train.job:judge_batches:1",
        0,
        "train",
        "--config",
        str(path),
        world_size=2,
        timeout_s=150,
    ):
        end.check()
