"""The starting weights that come with the package: a model of drawn eyes alone, and of no patient.

They are made by ``make starting-weights``: the folder of an exported model, or its autoencoder alone, in half
precision. Its networks are used for the one architecture they have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from synfundus.config.assets import asset_folders
from synfundus.config.diffusion import UNetConfig
from synfundus.config.training import AutoencoderConfig
from synfundus.errors import CheckpointError, ConfigError

DRAWN = "drawn"
"""Their name as a value of ``--init-from``."""
Part = Literal["vae", "unet"]
_AUTOENCODER: Part = "vae"
_UNET: Part = "unet"
_CONFIG_NAME = "config.json"
_LINEAR_PATH_NAME = "linear_path.json"
_MORE: dict[Part, str] = {_AUTOENCODER: "", _UNET: " DENOISER=1"}
"""What has `make starting-weights` train that network."""


def shipped_model(part: Part = _AUTOENCODER) -> Path | None:
    """Return the folder of the shipped model; None where this installation has none with that network."""
    folders = (folder / DRAWN for folder in asset_folders("starting_weights"))
    return next((folder for folder in folders if (folder / part / _CONFIG_NAME).is_file()), None)


def _require_model(part: Part, key: str) -> Path:
    """Return the folder of the shipped model.

    Raises:
        ConfigError: There is none with that network.
    """
    if (folder := shipped_model(part)) is None:
        raise ConfigError(
            f"this installation has no starting weights {DRAWN!r} for this network{folder_of_that_name()}",
            where=key,
            hint=f"run `make starting-weights{_MORE[part]}` in a checkout (hours), or give another folder",
        )
    return folder


def folder_of_that_name() -> str:
    """Return how to write the folder of the working folder that has their name too; empty if there is none."""
    return f"; the folder of that name here is written ./{DRAWN}" if Path(DRAWN).is_dir() else ""


def architecture(document: Mapping[str, Any], *, linear_path: bool) -> dict[str, Any]:
    """Return the architecture that a config of diffusers' AutoencoderKL describes, by our names."""
    return {
        "latent_channels": document["latent_channels"],
        "block_out_channels": list(document["block_out_channels"]),
        "block_size_px": math.isqrt(int(document["in_channels"]) // 3),
        "layers_per_block": document["layers_per_block"],
        "norm_num_groups": document["norm_num_groups"],
        "mid_block_attention": document.get("mid_block_add_attention", True),
        "linear_path": linear_path,
    }


def architecture_of(folder: Path) -> dict[str, Any]:
    """Return the architecture of the autoencoder in a model's folder, by our names.

    Raises:
        CheckpointError: The folder is damaged.
    """
    try:
        document = json.loads((folder / _AUTOENCODER / _CONFIG_NAME).read_text(encoding="utf-8"))
        return architecture(document, linear_path=(folder / _AUTOENCODER / _LINEAR_PATH_NAME).exists())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the starting weights are damaged: {error}", where=str(folder)) from error


def architecture_problem(wanted: AutoencoderConfig, folder: Path) -> str:
    """Return how an architecture differs from that of a model's autoencoder, both named; empty where it fits.

    Raises:
        CheckpointError: The folder is damaged.
    """
    has = architecture_of(folder)
    asked = wanted.model_dump(mode="json")
    return ", ".join(f"{name} {asked[name]} (they have {has[name]})" for name in has if asked[name] != has[name])


def drawn_autoencoder(wanted: AutoencoderConfig) -> Path:
    """Return the folder of the shipped autoencoder.

    Raises:
        ConfigError: There is none, or it is of another architecture.
        CheckpointError: It is damaged.
    """
    folder = _require_model(_AUTOENCODER, "train_vae.init_from")
    if problem := architecture_problem(wanted, folder):
        raise ConfigError(
            f"the starting weights {DRAWN!r} do not fit train_vae.autoencoder: {problem}{folder_of_that_name()}",
            where="train_vae.init_from",
            hint="give --preset demo-cpu --set train_vae.autoencoder.latent_channels="
            f"{architecture_of(folder)['latent_channels']}, or leave --init-from out",
        )
    return folder / _AUTOENCODER


def drawn_denoiser(wanted: UNetConfig, latent_shape: tuple[int, int, int]) -> Path:
    """Return the folder of the shipped model, whose denoiser is one that is wanted.

    Raises:
        ConfigError: There is none, or it is of another architecture.
        CheckpointError: It is damaged.
    """
    folder = _require_model(_UNET, "train.init_from")
    if problem := denoiser_problem(wanted, latent_shape, folder):
        raise ConfigError(
            f"the starting weights {DRAWN!r} do not fit: {problem}{folder_of_that_name()}",
            where="train.init_from",
            hint="give --preset demo-cpu and latents of an autoencoder begun from drawn, or leave --init-from out",
        )
    return folder


def denoiser_problem(wanted: UNetConfig, latent_shape: tuple[int, int, int], folder: Path) -> str:
    """Return how a denoiser differs from that of a model's folder, both named; empty where it fits.

    Args:
        wanted: Its architecture.
        latent_shape: ``(c, lh, lw)`` of the latents it is for.
        folder: Of the model.

    Raises:
        CheckpointError: The folder is damaged.
    """
    try:
        document = json.loads((folder / _UNET / _CONFIG_NAME).read_text(encoding="utf-8"))
        has = unet_architecture(document)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"the starting weights are damaged: {error}", where=str(folder)) from error
    asked = {**wanted.model_dump(mode="json"), "latents": list(latent_shape)}
    return ", ".join(f"{name} {asked[name]} (they have {has[name]})" for name in has if asked[name] != has[name])


def unet_architecture(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture that a config of diffusers' UNet2DConditionModel describes, by our names."""
    widths, heads = list(document["block_out_channels"]), document["attention_head_dim"]
    return {
        "latents": [document["in_channels"], document["sample_size"], document["sample_size"]],
        "block_out_channels": widths,
        "layers_per_block": document["layers_per_block"],
        "attention_levels": ["CrossAttn" in kind for kind in document["down_block_types"]],
        "attention_head_dim": widths[-1] // heads[-1],  # of diffusers, a number of heads
        "transformer_layers_per_block": document["transformer_layers_per_block"],
        "norm_num_groups": document["norm_num_groups"],
        "cross_attention_dim": document["cross_attention_dim"],
        "scale_shift_norm": document["resnet_time_scale_shift"] == "scale_shift",
    }
