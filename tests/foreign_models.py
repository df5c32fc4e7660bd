"""Small networks in the folders and with the configs that published ones have, written by diffusers itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, UNet2DConditionModel

_DOWN, _UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

SD15: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 2,
    "block_out_channels": [8, 16, 16, 16],
    "center_input_sample": False,
    "cross_attention_dim": 24,
    "down_block_types": [_DOWN, _DOWN, _DOWN, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 4,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", _UP, _UP, _UP],
}
"""Stable Diffusion 1.5: heads as one number, convolutions around the transformers."""
SD2: dict[str, Any] = {
    **SD15,
    "_diffusers_version": "0.10.0.dev0",
    "attention_head_dim": [1, 2, 4, 4],
    "cross_attention_dim": 32,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
"""Stable Diffusion 2.1: heads by level, linear layers around the transformers."""
SDXL: dict[str, Any] = {
    **SD2,
    "_diffusers_version": "0.19.0.dev0",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 8,
    "attention_head_dim": [1, 2, 4],
    "block_out_channels": [8, 16, 16],
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "cross_attention_dim": 40,
    "down_block_types": ["DownBlock2D", _DOWN, _DOWN],
    "num_attention_heads": None,
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "transformer_layers_per_block": [1, 2, 3],
    "up_block_types": [_UP, _UP, "UpBlock2D"],
    "upcast_attention": None,
}
"""Stable Diffusion XL: three levels, transformers of several layers, pooled text and picture sizes as a condition."""
SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
"""Of Stable Diffusion 1.5, which does not name its prediction type."""


def foreign_unet(config: Mapping[str, Any], *, seed: int = 0) -> UNet2DConditionModel:
    """Return a U-Net with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel.from_config(dict(config)).eval()


def write_foreign_pipeline(
    folder: Path, config: Mapping[str, Any], *, seed: int = 0, scheduler: Mapping[str, Any] = SCHEDULER, **how: Any
) -> UNet2DConditionModel:
    """Write ``unet/`` and ``scheduler/``; ``how`` goes to `save_pretrained`. Returns the U-Net."""
    unet = foreign_unet(config, seed=seed)
    unet.save_pretrained(folder / "unet", **how)
    (folder / "unet" / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return unet


def kl_f8(latent_channels: int, **changes: Any) -> AutoencoderKL:
    """Return a KL autoencoder that shrinks by 8, with the factors published ones have in their configs."""
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": latent_channels,
        "scaling_factor": 0.18215,
    }
    if latent_channels == 16:  # as those of Stable Diffusion 3 and FLUX
        settings |= {
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(latent_channels)
        return AutoencoderKL(**{**settings, **changes}).eval()


def dc_f32(latent_channels: int = 8) -> AutoencoderDC:
    """Return a deep-compression autoencoder that shrinks by 32, built as dc-ae-f32c32 is."""
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    scales: tuple[tuple[int, ...], ...] = ((), (), (), (5,), (5,), (5,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return AutoencoderDC(
            latent_channels=latent_channels,
            attention_head_dim=8,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=(8, 8, 16, 16, 32, 32),
            decoder_block_out_channels=(8, 8, 16, 16, 32, 32),
            encoder_layers_per_block=(0, 1, 1, 1, 1, 1),
            decoder_layers_per_block=(0, 1, 1, 1, 1, 1),
            encoder_qkv_multiscales=scales,
            decoder_qkv_multiscales=scales,
            upsample_block_type="interpolate",
            downsample_block_type="Conv",
            scaling_factor=0.41407,
        ).eval()
