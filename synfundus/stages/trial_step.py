"""A step of the diffusion training on random latents, to measure speed and memory."""

from __future__ import annotations

import torch
from torch import Tensor

from synfundus.config.auto import assumed_channels_last
from synfundus.config.diffusion import DiffusionConfig, TrainConfig
from synfundus.config.training import AutoencoderConfig
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.models.unet import ConditionalDenoiser
from synfundus.stages import build
from synfundus.training.step import LatentDiffusionStep


def latent_shape(section: AutoencoderConfig, *, image_size_px: int) -> tuple[int, int, int]:
    """Return the shape ``(c, lh, lw)`` of an autoencoder's latents of square images."""
    halvings = len(section.block_out_channels) - 1
    edge = (image_size_px // section.block_size_px) >> halvings
    return (section.latent_channels, edge, edge)


def training_step(
    section: TrainConfig, shape: tuple[int, int, int], device: torch.device, *, seed: int
) -> LatentDiffusionStep:
    """Build the section's step for normalised latents ``(c, lh, lw)`` and the default labels."""
    denoiser = build.denoiser(section.unet, seed=seed, schema=DEFAULT_LABEL_SCHEMA, latent_shape=shape)
    return step_of(section, denoiser.to(device=device), shape)


def step_of(section: TrainConfig, denoiser: ConditionalDenoiser, shape: tuple[int, int, int]) -> LatentDiffusionStep:
    """Return the section's step of a network for normalised latents ``(c, lh, lw)``, in the section's precision."""
    return LatentDiffusionStep(
        denoiser.to(dtype=build.torch_dtype(section.loop.precision)),
        schedule=build.forward_process(section.diffusion),
        prediction_type=section.diffusion.prediction_type,
        min_snr_gamma=section.diffusion.min_snr_gamma,
        latent_mean=[0.0] * shape[0],
        latent_std=[1.0] * shape[0],
        channels_last=assumed_channels_last(section.loop),
    )


def random_batch(
    section: DiffusionConfig,
    count: int,
    shape: tuple[int, int, int],
    device: torch.device,
    *,
    num_labels: int = len(DEFAULT_LABEL_SCHEMA.labels),
) -> dict[str, Tensor]:
    """Draw a batch of ``count`` samples with all labels unknown; the same at every call."""
    generator = torch.Generator().manual_seed(0)

    def draw(channels: int) -> Tensor:
        return torch.randn(count, channels, *shape[1:], generator=generator).to(device)

    return {
        "moments": draw(2 * shape[0]),
        "noise": draw(shape[0]),
        "posterior_noise": draw(shape[0]),
        "timestep": _timesteps(section, count, generator).to(device),
        "states": torch.zeros(count, num_labels, dtype=torch.int64, device=device),
        "weights": torch.ones(count, device=device),
    }


def _timesteps(section: DiffusionConfig, count: int, generator: torch.Generator) -> Tensor:
    """Draw uniform timesteps: integers, or fractions for a flow."""
    end = section.num_train_timesteps
    if section.prediction_type == "flow_velocity":
        return torch.rand(count, generator=generator) * end
    return torch.randint(end, (count,), generator=generator)
