"""train-vae judges its autoencoder at intervals, and no row is lost or doubled by a stop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Talk
from tiny_sets import tiny_config

from synfundus.distributed.world import World
from synfundus.stages.train_vae import job as train_vae
from synfundus.storage.documents import read_lines
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole
from synfundus.training.checkpoints.writer import CheckpointWriter
from synfundus.training.progress import CLOCK_FIGURES

TIMES = CLOCK_FIGURES
JUDGED = ("psnr_db", "ssim", "vessel_correlation", "vessel_images", "energy_16_32", "evaluated_images")


def train(image_set: ShardSet, run_dir: Path, world: World, *, every: int) -> list[dict[str, Any]]:
    """Train for 48 images and return the rows of metrics without what depends on the clock."""
    loop = {"budget_images": 48, "checkpoint_every_images": 16, "validate_every_images": every, "validation_images": 4}
    config = tiny_config({"train_vae": {"data": image_set.url, "run_dir": str(run_dir), "loop": loop}})
    summary = train_vae.run(config, world, SilentConsole())
    rows = read_lines(str(run_dir / "metrics.jsonl"))
    if every:
        assert {name: rows[-1][name] for name in JUDGED} == {name: summary[name] for name in JUDGED}
    assert train_vae.run(config, world, SilentConsole()) == summary, "a finished run is judged alike"
    assert read_lines(str(run_dir / "metrics.jsonl")) == rows
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def test_the_autoencoder_is_judged_at_every_interval_also_where_a_run_was_stopped(
    image_set: ShardSet, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(image_set, tmp_path / "whole", world, every=16)
    judged = [row for row in whole if "psnr_db" in row]
    assert [row["images_seen"] for row in judged] == [16, 32, 48]
    assert all(row["evaluated_images"] == 4 for row in judged)

    original = CheckpointWriter.save

    def save_and_stop(self: CheckpointWriter, images_seen: int, state: Mapping[str, Any]) -> None:
        original(self, images_seen, state)
        if images_seen == 32:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(image_set, tmp_path / "stopped", world, every=16)
    assert train(image_set, tmp_path / "stopped", world, every=16) == whole


def test_lost_vessels_are_said_at_the_end_and_kept_ones_are_not(
    image_set: ShardSet, world: World, tmp_path: Path
) -> None:
    """The tiny autoencoder codes 64 px in 8 x 8 positions: no vessel passes. A linear one of all channels keeps all."""
    talk = Talk()
    settings = {"data": image_set.url, "run_dir": str(tmp_path / "lossy"), "loop": {"budget_images": 8}}
    lossy = train_vae.run(tiny_config({"train_vae": settings}), world, talk)
    assert lossy["vessel_correlation"] < 0.5
    assert f"vessel correlation {lossy['vessel_correlation']:.2f}" in "".join(talk.lines)
    assert any(line.startswith("warning: vessels are lost") for line in talk.lines)
    exact = {
        "autoencoder": {"latent_channels": 12, "block_size_px": 2, "block_out_channels": [8]},
        "run_dir": str(tmp_path / "exact"),
    }
    talk = Talk()
    assert train_vae.run(tiny_config({"train_vae": {**settings, **exact}}), world, talk)["vessel_correlation"] > 0.9
    assert not any(line.startswith("warning: vessels are lost") for line in talk.lines)


def test_an_interval_of_nought_judges_only_at_the_end(image_set: ShardSet, world: World, tmp_path: Path) -> None:
    assert not [row for row in train(image_set, tmp_path / "run", world, every=0) if "psnr_db" in row]
