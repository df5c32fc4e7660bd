"""Flow matching from the command line to images: trained, killed, resumed, exported, sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from rank_processes import run_cli, run_cli_killed_at
from tiny_runs import STEPS, Talk, assert_same_run, losses, rows, settings
from tiny_sets import merged, tiny_config, write_config

from synfundus.distributed.world import World
from synfundus.errors import ConfigError
from synfundus.stages.demo.pace import measure_pace
from synfundus.stages.sample import job as sample
from synfundus.stages.train import job as train
from synfundus.stages.trial_step import latent_shape
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole

NO_SCHEDULE = {"beta_schedule": "scaled_linear", "zero_terminal_snr": False, "min_snr_gamma": None}
FLOW = "train.diffusion.prediction_type=flow_velocity"
SHIFT = "train.diffusion.flow.shift=1.5"
PREVIEWS = {"preview_every_images": 400}


def with_flow(latent_set: ShardSet, run_dir: Path, *, shift: float = 1.5, **loop: Any) -> dict[str, Any]:
    flow = {"prediction_type": "flow_velocity", "flow": {"shift": shift}}
    return merged(settings(latent_set, run_dir, **loop), {"train": {"diffusion": {**NO_SCHEDULE, **flow}}})


@pytest.fixture(scope="module")
def straight(latent_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, with a preview at its end; not to be written to."""
    run_dir = tmp_path_factory.mktemp("flow") / "run"
    train.run(tiny_config(with_flow(latent_set, run_dir, **PREVIEWS)), world, SilentConsole())
    return run_dir


def test_a_flow_learns_and_its_losses_fall_into_the_quarters_of_time(straight: Path) -> None:
    found = losses(straight)
    assert len(found) == STEPS
    assert sum(found[-15:]) < 0.9 * sum(found[:15])
    assert [row["images_seen"] for row in rows(straight) if "validation_loss" in row] == [160, 320, 400]
    assert {f"loss_t{number}" for number in range(4)} <= {name for row in rows(straight) for name in row}
    assert len(list((straight / "previews").iterdir())) == 1


def test_a_flow_from_the_command_line_killed_and_resumed_ends_with_the_same_bits(
    latent_set: ShardSet, straight: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    without = merged(settings(latent_set, run_dir, **PREVIEWS), {"train": {"diffusion": NO_SCHEDULE}})
    config = write_config(tmp_path / "run.yaml", without)
    command = ("train", "--config", str(config), "--set", FLOW, "--set", SHIFT)
    run_cli_killed_at("settled:14", *command)
    assert rows(run_dir)[-1]["images_seen"] == 104
    assert "resumed at 80 images" in run_cli(*command).check().output
    assert_same_run(straight, run_dir)

    drawn = tmp_path / "images"
    asked = ("sample", "--config", str(config), "--model", str(run_dir), "--out", str(drawn), "--num-images", "4")
    run_cli(*asked).check()
    assert json.loads((drawn / "request.json").read_text())["sampler"] == "dpmpp"
    assert len(list((drawn / "images").glob("*.png"))) == 4


def draw_from(run_dir: Path, out: Path, world: World, **options: Any) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    section = {"model": str(run_dir), "out": str(out), "num_images": 3, "num_steps": 20, **options}
    sample.run(tiny_config({"sample": section}), world, SilentConsole())
    return [np.asarray(Image.open(path)) for path in sorted((out / "images").glob("*.png"))]


def test_every_sampler_of_a_flow_ends_at_nearly_the_same_images(straight: Path, world: World, tmp_path: Path) -> None:
    drawn = {name: np.stack(draw_from(straight, tmp_path / name, world, sampler=name)) for name in ("dpmpp", "euler")}
    exact = np.stack(draw_from(straight, tmp_path / "heun", world, sampler="heun", num_steps=60)).astype(float)
    assert exact.std() > 5
    for name, images in drawn.items():
        assert np.abs(images - exact).mean() < 0.25 * exact.std(), name


def test_a_sampler_that_cannot_follow_a_flow_is_refused_before_anything_is_written(
    straight: Path, latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="'ddim' cannot draw"):
        draw_from(straight, tmp_path / "images", world, sampler="ddim")
    config = merged(with_flow(latent_set, tmp_path / "run", preview_every_images=80), {"sample": {"sampler": "ddim"}})
    with pytest.raises(ConfigError, match="'ddim' cannot draw"):
        train.run(tiny_config(config), world, SilentConsole())
    assert list(tmp_path.iterdir()) == []


def test_the_export_names_the_flow_to_people_to_diffusers_and_to_synfundus(straight: Path) -> None:
    export = straight / "export"
    theirs = FlowMatchEulerDiscreteScheduler.from_pretrained(export / "scheduler")
    assert theirs.config.shift == 1.5
    schedule = json.loads((export / "synfundus.json").read_text())["schedule"]
    assert schedule == {"prediction_type": "flow_velocity", "num_timesteps": 1000, "shift": 1.5}
    card = (export / "README.md").read_text()
    assert "flow matching" in card
    assert "no stock pipeline" in " ".join(card.split())
    assert not (export / "diffusers").exists()
    assert "shifted by 1.5" in card


def test_another_shift_is_another_run_and_a_start_from_the_export_is_not_warned_of(
    straight: Path, latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"diffusion\.flow\.shift is 1\.5 there, 3\.0 here"):
        train.run(tiny_config(with_flow(latent_set, straight, shift=3.0)), world, SilentConsole())
    config = merged(
        with_flow(latent_set, tmp_path / "run", budget_images=16),
        {"train": {"init_from": str(straight / "export" / "unet")}},
    )
    talk = Talk()
    train.run(tiny_config(config), world, talk)
    assert not [line for line in talk.lines if "another objective" in line]


def test_the_pace_of_a_demo_is_measured_on_its_flow(latent_set: ShardSet, world: World, tmp_path: Path) -> None:
    config = tiny_config(merged(with_flow(latent_set, tmp_path), {"prepare": {"image_size_px": 64}}))
    shape = latent_shape(config.train_vae.autoencoder, image_size_px=64)
    assert measure_pace(config.train, shape, world, seed=0) > 0
