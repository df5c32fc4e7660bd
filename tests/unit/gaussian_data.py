"""Data that are normal, so that what a sampler should make of them is known, and drawing with any sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from synfundus.diffusion.sampling import Denoiser, Scheduler, sample_latents

MEAN, STD = 0.7, 0.5


def draw(
    denoise: Denoiser,
    scheduler: Scheduler,
    noise: Tensor,
    *,
    states: Tensor | None = None,
    num_steps: int = 24,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
) -> Tensor:
    return sample_latents(
        denoise,
        initial_noise=noise,
        scheduler=scheduler,
        num_steps=num_steps,
        states=torch.zeros(len(noise), 1, dtype=torch.int64) if states is None else states,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
        guidance_rescale=0.0,
    )


def noise_of(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
