"""An exported model with random weights, for tests that sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from synfundus.artifacts.model import ModelSetup
from synfundus.artifacts.model_export import save_pipeline
from synfundus.labels.schema import LabelSchema, LabelSpec
from synfundus.models.autoencoder import LatentAutoencoder, build_autoencoder, fingerprint
from synfundus.models.conditioner import LabelConditioner
from synfundus.models.unet import ConditionalDenoiser, build_unet

SCHEMA = LabelSchema((LabelSpec("dr_grade", 5, ordinal=True), LabelSpec("is_gc", 2), LabelSpec("eye_side", 2)))
IMAGE_SIZE_PX = 32
LATENT_MEAN = (0.5, -0.25)
LATENT_STD = (2.0, 0.5)
SCHEDULE: dict[str, Any] = {
    "schedule_kind": "cosine",
    "num_timesteps": 50,
    "beta_start": 0.001,
    "beta_end": 0.02,
    "zero_terminal_snr": True,
    "prediction_type": "v_prediction",
}


def tiny_denoiser(*, seed: int = 0, schema: LabelSchema = SCHEMA) -> ConditionalDenoiser:
    """Return a denoiser of a few thousand parameters for latents of 2 x 8 x 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = build_unet(
            sample_size=8,
            latent_channels=2,
            block_out_channels=[16, 16],
            layers_per_block=1,
            attention_levels=[False, True],
            attention_head_dim=8,
            cross_attention_dim=8,
            pooled_dim=8,
            norm_num_groups=4,
            transformer_layers_per_block=1,
            dropout=0.0,
            scale_shift_norm=False,
        )
        conditioner = LabelConditioner(num_values=schema.num_values, ordinal=schema.ordinal, token_dim=8, pooled_dim=8)
    return ConditionalDenoiser(unet=unet, conditioner=conditioner).eval()


def tiny_autoencoder(*, seed: int = 0, linear_path: bool = False) -> LatentAutoencoder:
    """Return an autoencoder that turns 2 x 8 x 8 latents into 32 px images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_autoencoder(
            image_size_px=IMAGE_SIZE_PX,
            block_size_px=1,
            latent_channels=2,
            block_out_channels=[8, 8, 8],
            layers_per_block=1,
            norm_num_groups=4,
            mid_block_attention=False,
            linear_path=linear_path,
        ).eval()


Place = TypeVar("Place", str, Path)


def write_tiny_pipeline(folder: Place, *, seed: int = 0, schema: LabelSchema = SCHEMA, **changes: Any) -> Place:
    """Export a model with random weights; ``changes`` replace arguments of `save_pipeline` or surroundings."""
    autoencoder = tiny_autoencoder(seed=seed)
    around: dict[str, Any] = {
        "autoencoder": autoencoder,
        "schedule_settings": SCHEDULE,
        "label_schema": schema,
        "latent_mean": LATENT_MEAN,
        "latent_std": LATENT_STD,
        "image_size_px": IMAGE_SIZE_PX,
        "latent_set_identity": "1" * 64,
        "autoencoder_fingerprint": fingerprint(autoencoder),
        "recommended_sampling": None,
    }
    arguments: dict[str, Any] = {
        "denoiser": tiny_denoiser(seed=seed, schema=schema),
        "training_summary": {"images_seen": 1234, "training_images": 77, "validation_loss": float("nan")},
    }
    around |= {name: value for name, value in changes.items() if name in around}
    arguments |= {name: value for name, value in changes.items() if name not in around}
    save_pipeline(folder, setup=ModelSetup(**around), **arguments)
    return folder
