"""The grid drawn while a run goes on: the averaged weights above, the raw ones below, the same noise and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rank_processes import run_cli
from tiny_runs import settings
from tiny_sets import tiny_config, write_config

from synfundus.distributed.world import World
from synfundus.stages.train import job as train
from synfundus.storage.documents import read_lines
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole

HEADING_PX = 60


def drawn(latent_set: ShardSet, run_dir: Path, world: World, *, half_life_images: float) -> list[NDArray[np.int16]]:
    """Train for 40 images and return both grids without their headings."""
    section: dict[str, Any] = {
        "latents": latent_set.url,
        "run_dir": str(run_dir),
        "loop": {"budget_images": 40, "preview_every_images": 40},
        "optim": {"lr": 1e-3, "warmup_images": 0},
        "ema": {"half_life_images": half_life_images, "rampup_ratio": 10.0},
    }
    train.run(tiny_config({"train": section}), world, SilentConsole())
    return grids(run_dir / "previews" / "images-000000000040.png")


def grids(path: Path) -> list[NDArray[np.int16]]:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(np.int16)
    return [half[HEADING_PX:] for half in np.split(pixels, 2)]


def test_a_preview_shows_averaged_and_raw_weights(latent_set: ShardSet, world: World, tmp_path: Path) -> None:
    averaged, raw = drawn(latent_set, tmp_path / "slow", world, half_life_images=1000.0)
    none, same = drawn(latent_set, tmp_path / "none", world, half_life_images=1e-3)
    np.testing.assert_array_equal(none, same)
    np.testing.assert_array_equal(same, raw)
    assert (averaged != raw).any()


@pytest.fixture(scope="module")
def looks(latent_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs of one and two ranks that validate and draw, and whose steps are too small to change a weight."""
    folder = tmp_path_factory.mktemp("looks")
    found = {}
    for ranks in (1, 2):
        loop = {"budget_images": 16, "preview_every_images": 16, "validate_every_images": 16, "validation_images": 7}
        section = settings(latent_set, folder / str(ranks), **loop, micro_batch_size=2)
        section["train"]["optim"] = {"lr": 1e-30, "warmup_images": 0}
        path = write_config(folder / f"{ranks}.yaml", section)
        run_cli("train", "--config", str(path), "--procs-per-node", str(ranks)).check()
        found[ranks] = folder / str(ranks)
    return found


def test_ranks_share_a_validation_out_and_its_figures_stay_the_same(looks: dict[int, Path]) -> None:
    rows = [
        [row for row in read_lines(str(run_dir / "metrics.jsonl")) if "validation_loss" in row]
        for run_dir in looks.values()
    ]
    assert rows[0] == rows[1]
    assert [row["validation_images"] for row in rows[0]] == [7]


def test_ranks_share_a_preview_out_and_it_stays_the_same(looks: dict[int, Path]) -> None:
    one, two = (grids(run_dir / "previews" / "images-000000000016.png") for run_dir in looks.values())
    # kernels of batches of 16 and of 8 round differently
    assert np.abs(np.stack(one) - np.stack(two)).max() <= 1
