"""Construction: a section of the config becomes an object. Shared by all jobs: each thing is built in one way."""

from __future__ import annotations

from typing import Any

import torch

from synfundus.config.machine import LaunchConfig
from synfundus.config.precision import definite
from synfundus.config.training import AutoencoderConfig, Precision
from synfundus.distributed.agreement import together
from synfundus.distributed.tensor_cores import set_tf32
from synfundus.distributed.world import World, torch_device
from synfundus.errors import ConfigError
from synfundus.models.attention import agreed_attention, apply_attention, choose_attention, head_dims
from synfundus.models.autoencoder import LatentAutoencoder, build_autoencoder
from synfundus.seeding import derive_key
from synfundus.telemetry.console import Console


def require(value: str | None, *, flag: str, key: str) -> str:
    """Return a path the verb cannot do without.

    Raises:
        ConfigError: It was not given.
    """
    if value is None:
        raise ConfigError(f"{flag} is missing", where=key, hint=f"give {flag}, or set {key} in the config")
    return value


def torch_dtype(precision: Precision) -> torch.dtype:
    """Return the working type of a precision.

    Raises:
        ConfigError: It is ``auto``, see `definite`.
    """
    return torch.bfloat16 if definite(precision) == "bf16" else torch.float32


def autoencoder(section: AutoencoderConfig, *, image_size_px: int, seed: int) -> LatentAutoencoder:
    """Build an autoencoder with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(seed, "init", "codec") % 2**63)
        return build_autoencoder(
            image_size_px=image_size_px,
            latent_channels=section.latent_channels,
            block_out_channels=section.block_out_channels,
            block_size_px=section.block_size_px,
            layers_per_block=section.layers_per_block,
            norm_num_groups=section.norm_num_groups,
            mid_block_attention=section.mid_block_attention,
            linear_path=section.linear_path,
        )


def attention(model: Any, config: LaunchConfig, *, dtype: torch.dtype, world: World, console: Console) -> None:  # noqa: ANN401 - a diffusers model
    """Choose the attention kernel of a model, the same on all ranks, install it and say which. Collective.

    Raises:
        ConfigError: On every rank when one cannot use the kernel that was asked for.
    """
    widths = head_dims(model)
    if not widths:
        return
    with together(world):
        device = torch_device(world)
        # the backward pass of xformers adds in an order that depends on timing
        exact = config.attention == "auto" and torch.are_deterministic_algorithms_enabled()
        requested = "sdpa" if exact else config.attention
        if requested == "xformers" and torch.are_deterministic_algorithms_enabled():
            console.warning("launch.attention=xformers may give other bits each time, also with deterministic=true")
        choice = choose_attention(requested=requested, head_dims=widths, dtype=dtype, device=device)
    choice = agreed_attention(world.all_gather(choice))
    apply_attention(model, choice)
    console.message(f"attention of {type(model).__name__}: {choice.backend} ({choice.reason})")


def tensor_cores(wanted: bool, world: World, console: Console, *, option: str = "") -> None:
    """Settle how a GPU multiplies fp32 numbers and say it; on a CPU there is nothing to settle or to say."""
    settled = set_tf32(wanted, device=world.device, option=option)
    if settled is not None:
        console.message(settled)
