"""What two ranks saved, one, three and four go on from: the same order, the same noise, the same losses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rank_processes import run_cli
from test_training_resume import relative_difference, settings, without_dropout
from tiny_sets import write_config

from synfundus.storage.documents import read_lines
from synfundus.storage.manifest import ShardSet

BATCH, STEPS = 24, 50
HALF, WHOLE = BATCH * STEPS, 2 * BATCH * STEPS


def command(latent_set: ShardSet, run_dir: Path, ranks: int) -> tuple[str, ...]:
    loop = {
        "budget_images": WHOLE, "global_batch_size": BATCH, "micro_batch_size": 6, "log_every_images": BATCH,
        "checkpoint_every_images": HALF, "validate_every_images": 0,
    }  # fmt: skip
    config = write_config(run_dir.with_suffix(f".{ranks}.yaml"), without_dropout(settings(latent_set, run_dir, **loop)))
    return ("train", "--config", str(config), "--procs-per-node", str(ranks))


def losses(run_dir: Path) -> list[float]:
    found = [row for row in read_lines(str(run_dir / "metrics.jsonl")) if "loss" in row]
    assert [row["images_seen"] for row in found] == [BATCH * (step + 1) for step in range(2 * STEPS)]
    return [row["loss"] for row in found]


@pytest.fixture(scope="module")
def two_ranks(latent_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with a checkpoint half way."""
    run_dir = tmp_path_factory.mktemp("elastic") / "run"
    run_cli(*command(latent_set, run_dir, 2)).check()
    return run_dir


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_ranks(
    latent_set: ShardSet, two_ranks: Path, tmp_path: Path, ranks: int
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(two_ranks, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / f"images-{WHOLE:012d}")
    ended = run_cli(*command(latent_set, run_dir, ranks), timeout_s=300).check()
    assert f"resumed at {HALF:,} images" in ended.output
    before, after = losses(two_ranks), losses(run_dir)
    assert after[:STEPS] == before[:STEPS]
    assert relative_difference(before[STEPS:], after[STEPS:]) < 1e-5
    assert (run_dir / "ledger.jsonl").read_bytes() == (two_ranks / "ledger.jsonl").read_bytes()
    partitions = list((run_dir / "checkpoints" / f"images-{WHOLE:012d}" / "zero").iterdir())
    assert len(partitions) == ranks
