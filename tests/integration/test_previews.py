"""The grid drawn while a run goes on: the averaged weights above, the raw ones below, the same noise and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tiny_sets import tiny_config

from synfundus.distributed.world import World
from synfundus.stages.train import job as train
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
    with Image.open(run_dir / "previews" / "images-000000000040.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(np.int16)
    return [half[HEADING_PX:] for half in np.split(pixels, 2)]


def test_a_preview_shows_averaged_and_raw_weights(latent_set: ShardSet, world: World, tmp_path: Path) -> None:
    averaged, raw = drawn(latent_set, tmp_path / "slow", world, half_life_images=1000.0)
    none, same = drawn(latent_set, tmp_path / "none", world, half_life_images=1e-3)
    np.testing.assert_array_equal(none, same)
    np.testing.assert_array_equal(same, raw)
    assert (averaged != raw).any()
