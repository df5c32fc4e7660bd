"""What two ranks saved, one, three and four go on from: the same order, the same noise, the same losses."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from rank_processes import run_cli
from tiny_runs import relative_difference, settings, without_dropout
from tiny_sets import write_config

from synfundus.storage.documents import read_lines
from synfundus.storage.manifest import ShardSet

BATCH = 24


def command(latent_set: ShardSet, run_dir: Path, ranks: int, steps: int) -> tuple[str, ...]:
    loop = {
        "budget_images": 2 * BATCH * steps, "global_batch_size": BATCH, "micro_batch_size": 6,
        "log_every_images": BATCH, "checkpoint_every_images": BATCH * steps, "validate_every_images": 0,
    }  # fmt: skip
    config = write_config(run_dir.with_suffix(f".{ranks}.yaml"), without_dropout(settings(latent_set, run_dir, **loop)))
    return ("train", "--config", str(config), "--procs-per-node", str(ranks))


def losses(run_dir: Path, steps: int) -> list[float]:
    found = [row for row in read_lines(str(run_dir / "metrics.jsonl")) if "loss" in row]
    assert [row["images_seen"] for row in found] == [BATCH * (step + 1) for step in range(2 * steps)]
    return [row["loss"] for row in found]


def check(latent_set: ShardSet, folder: Path, counts: Sequence[int], *, steps: int) -> None:
    """Train on two ranks, and from half way on with other numbers of ranks."""
    two_ranks = folder / "two"
    run_cli(*command(latent_set, two_ranks, 2, steps), timeout_s=300).check()
    before, last = losses(two_ranks, steps), f"images-{2 * BATCH * steps:012d}"
    for ranks in counts:
        run_dir = folder / f"ranks-{ranks}"
        shutil.copytree(two_ranks, run_dir)
        shutil.rmtree(run_dir / "checkpoints" / last)
        ended = run_cli(*command(latent_set, run_dir, ranks, steps), timeout_s=300).check()
        assert f"resumed at {BATCH * steps:,} images" in ended.output
        after = losses(run_dir, steps)
        assert after[:steps] == before[:steps]
        assert relative_difference(before[steps:], after[steps:]) < 1e-5
        assert (run_dir / "ledger.jsonl").read_bytes() == (two_ranks / "ledger.jsonl").read_bytes()
        assert len(list((run_dir / "checkpoints" / last / "zero").iterdir())) == ranks


def test_a_run_goes_on_with_another_number_of_ranks(latent_set: ShardSet, tmp_path: Path) -> None:
    check(latent_set, tmp_path, [3], steps=15)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fifty_steps_on_one_three_and_four_ranks(latent_set: ShardSet, tmp_path: Path) -> None:
    check(latent_set, tmp_path, [1, 3, 4], steps=50)
