"""What the loss of every kind of network was over some steps, in golden/network_curves.json.

Autoencoders of others in `train-vae`, U-Nets of others in `train`: their weights are drawn here by a seed, at the sizes
of `foreign_models`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curves import BATCH, STEPS, CurveFile
from diffusers import AutoencoderDC, AutoencoderKL
from fixed_latents import write_fixed_latents
from foreign_models import SD2, SD15, SDXL, dc_f32, foreign_unet, kl_f8
from tiny_sets import IMAGE_SIZE_PX, encode_png, tiny_config, write_set

from synfundus.distributed.world import World
from synfundus.seeding import keyed_normal
from synfundus.stages.train import job as train
from synfundus.stages.train_vae import job as train_vae
from synfundus.storage.documents import read_lines
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole

AUTOENCODERS: dict[str, Callable[[], AutoencoderKL | AutoencoderDC]] = {
    "AutoencoderKL f8 4 channels": lambda: kl_f8(4),
    "AutoencoderKL f8 16 channels": lambda: kl_f8(16),
    "AutoencoderDC f32 8 channels": dc_f32,
}
UNETS = {
    "U-Net of Stable Diffusion 1.5": SD15,
    "U-Net of Stable Diffusion 2": SD2,
    "U-Net of Stable Diffusion XL": SDXL,
}
CURVES = CurveFile("network_curves.json", [*AUTOENCODERS, *UNETS])
NUM_IMAGES, SMOOTH_PX = 48, 8


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_fixed_latents(tmp_path_factory.mktemp("curves"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Blotches that are the same with every version of every library."""
    blotches = keyed_normal(12, "golden-images", range(NUM_IMAGES), (SMOOTH_PX, SMOOTH_PX, 3))
    coarse = np.clip(128 + 48 * blotches, 0, 255).astype(np.uint8)
    scale = IMAGE_SIZE_PX // SMOOTH_PX
    pixels = coarse.repeat(scale, axis=1).repeat(scale, axis=2)
    samples = [
        (f"i{number:05d}", {"png": encode_png(image), "json": b'{"labels": {}}'}) for number, image in enumerate(pixels)
    ]
    return write_set(tmp_path_factory.mktemp("blotches") / "images", samples, shards={"train": (40,), "val": (8,)})


def losses(run_dir: Path) -> list[float]:
    found = [float(row["loss"]) for row in read_lines(str(run_dir / "metrics.jsonl")) if "loss" in row]
    assert len(found) == STEPS
    return found


def loop(**more: Any) -> dict[str, Any]:
    return {
        "budget_images": BATCH * STEPS,
        "checkpoint_every_images": BATCH * STEPS,
        "validate_every_images": 0,
        "validation_images": 8,
        **more,
    }


@pytest.mark.parametrize("case", AUTOENCODERS)
def test_the_loss_of_every_autoencoder_is_the_agreed_one(
    case: str, images: ShardSet, world: World, tmp_path: Path
) -> None:
    AUTOENCODERS[case]().save_pretrained(tmp_path / "foreign")
    given = {"data": images.url, "run_dir": str(tmp_path / "run"), "init_from": str(tmp_path / "foreign")}
    section = {**given, "loop": loop(global_batch_size=BATCH, log_every_images=BATCH)}
    summary = train_vae.run(tiny_config({"train_vae": section}), world, SilentConsole())
    CURVES.assert_agreed(case, {"loss": losses(tmp_path / "run"), "psnr_db": [float(summary["psnr_db"])]})


@pytest.mark.parametrize("case", UNETS)
def test_the_loss_of_every_foreign_unet_is_the_agreed_one(
    case: str,
    inputs: tuple[Path, Path],
    world: World,
    tmp_path: Path,
) -> None:
    latents, vae = inputs
    foreign_unet(UNETS[case]).save_pretrained(tmp_path / "foreign")
    given = {"latents": str(latents), "vae": str(vae), "run_dir": str(tmp_path / "run")}
    section = {**given, "init_from": str(tmp_path / "foreign"), "loop": loop(), "diffusion": {"min_snr_gamma": 5.0}}
    summary = train.run(tiny_config({"train": section}), world, SilentConsole())
    found = {"loss": losses(tmp_path / "run"), "validation_loss": [float(summary["validation_loss"])]}
    CURVES.assert_agreed(case, found)


def test_the_file_holds_every_case_and_no_two_are_alike() -> None:
    CURVES.assert_whole()
