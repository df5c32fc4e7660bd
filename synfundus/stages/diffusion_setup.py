"""The diffusion model as the config describes it: objective, network, what it needs around it, how it is sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from synfundus.artifacts.model import ModelSetup
from synfundus.config.diffusion import DiffusionConfig, UNetConfig
from synfundus.config.generation import SampleConfig
from synfundus.diffusion.flow import FlowPath, ForwardProcess
from synfundus.diffusion.flow_time import FlowTime
from synfundus.diffusion.sampling import SamplerName, SamplerSettings, scheduler_for
from synfundus.diffusion.schedule import build_schedule
from synfundus.errors import DataError
from synfundus.labels.schema import LabelSchema
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.conditioner import LabelConditioner
from synfundus.models.unet import ConditionalDenoiser, build_unet
from synfundus.seeding import derive_key
from synfundus.storage.manifest import ShardSet


def forward_process(section: DiffusionConfig) -> ForwardProcess:
    """Build the noise schedule, or the flow, of the diffusion section."""
    if section.prediction_type == "flow_velocity":
        return FlowPath(section.num_train_timesteps)
    return build_schedule(
        kind=section.beta_schedule,
        num_timesteps=section.num_train_timesteps,
        beta_start=section.beta_start,
        beta_end=section.beta_end,
        zero_terminal_snr=section.zero_terminal_snr,
    )


def flow_time(section: DiffusionConfig) -> FlowTime | None:
    """Return how a flow's times are drawn; None on a noise schedule."""
    if section.prediction_type != "flow_velocity":
        return None
    flow = section.flow
    return FlowTime(density=flow.time_density, location=flow.location, scale=flow.scale, shift=flow.shift)


def latent_statistics(section: DiffusionConfig, properties: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Return the mean and spread that training takes from and divides latents by, each ``[c]``.

    ``global`` divides all channels by the root mean square of their standard deviations, so that a channel that says
    little stays small and does not claim as much of the loss as one that says much.

    Args:
        section: The objective.
        properties: Properties of the latent set.
    """
    mean = [float(value) for value in properties["latent_mean"]]
    std = [float(value) for value in properties["latent_std"]]
    if section.latent_scaling == "global":
        std = [math.sqrt(sum(value**2 for value in std) / len(std))] * len(std)
    return mean, std


def schedule_settings(section: DiffusionConfig) -> dict[str, Any]:
    """Return what an exported pipeline needs to rebuild the noise schedule or the flow."""
    if section.prediction_type == "flow_velocity":
        return {
            "prediction_type": section.prediction_type,
            "num_timesteps": section.num_train_timesteps,
            "shift": section.flow.shift,
        }
    return {
        "schedule_kind": section.beta_schedule,
        "num_timesteps": section.num_train_timesteps,
        "beta_start": section.beta_start,
        "beta_end": section.beta_end,
        "zero_terminal_snr": section.zero_terminal_snr,
        "prediction_type": section.prediction_type,
    }


def check_sampler(sampler: SamplerName, section: DiffusionConfig) -> None:
    """Make sure that a sampler can draw from the model of an objective, before hours go by.

    Raises:
        ConfigError: It cannot.
    """
    scheduler_for(sampler, schedule_settings(section))


def denoiser(
    section: UNetConfig, *, seed: int, schema: LabelSchema, latent_shape: Sequence[int]
) -> ConditionalDenoiser:
    """Build the U-Net and its conditioner with random weights that depend on the seed alone.

    Args:
        section: Architecture.
        seed: Of the run.
        schema: Labels to condition on.
        latent_shape: ``(c, lh, lw)``.
    """
    channels, height, width = latent_shape
    if height != width:
        raise DataError(f"latents of {height} x {width} are not square")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(seed, "init", "denoiser") % 2**63)
        unet = build_unet(
            sample_size=height,
            latent_channels=channels,
            block_out_channels=section.block_out_channels,
            layers_per_block=section.layers_per_block,
            attention_levels=section.attention_levels,
            attention_head_dim=section.attention_head_dim,
            cross_attention_dim=section.cross_attention_dim,
            pooled_dim=section.cross_attention_dim,
            norm_num_groups=section.norm_num_groups,
            transformer_layers_per_block=section.transformer_layers_per_block,
            dropout=section.dropout,
            scale_shift_norm=section.scale_shift_norm,
        )
        conditioner = LabelConditioner(
            num_values=schema.num_values,
            ordinal=schema.ordinal,
            token_dim=section.cross_attention_dim,
            pooled_dim=section.cross_attention_dim,
        )
    return ConditionalDenoiser(unet=unet, conditioner=conditioner)


def model_setup(section: DiffusionConfig, latents: ShardSet, autoencoder: LatentAutoencoder) -> ModelSetup:
    """Return what the network of a run will need around it."""
    mean, std = latent_statistics(section, latents.properties)
    return ModelSetup(
        autoencoder=autoencoder,
        schedule_settings=schedule_settings(section),
        label_schema=latents.label_schema,
        latent_mean=tuple(mean),
        latent_std=tuple(std),
        image_size_px=int(latents.properties["image_size_px"]),
        latent_set_identity=latents.identity,
        autoencoder_fingerprint=str(latents.properties["autoencoder_fingerprint"]),
    )


def sampler_settings(section: SampleConfig) -> SamplerSettings:
    """Return how images are drawn."""
    return SamplerSettings(
        sampler=section.sampler,
        num_steps=section.num_steps,
        guidance_scale=section.guidance_scale,
        guidance_interval=section.guidance_interval,
        guidance_rescale=section.guidance_rescale,
    )
