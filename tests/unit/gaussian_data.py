"""Data that are normal, so that what a sampler should make of them is known, and drawing with any sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from synfundus.diffusion.sampling import Denoiser, Guidance, Scheduler, sample_latents
from synfundus.seeding import keyed_normal_series

MEAN, STD = 0.7, 0.5
UNGUIDED = Guidance()


def draw(
    denoise: Denoiser,
    scheduler: Scheduler,
    noise: Tensor,
    *,
    states: Tensor | None = None,
    num_steps: int = 24,
    guidance: Guidance = UNGUIDED,
    first: int = 0,
) -> Tensor:
    """Draw samples; ``first`` is the number of the first, by which a sampler that draws noise gets its own."""
    series = keyed_normal_series(0, "sample-noise", range(first, first + len(noise)), tuple(noise.shape[1:]))
    return sample_latents(
        denoise,
        initial_noise=noise,
        scheduler=scheduler,
        num_steps=num_steps,
        states=torch.zeros(len(noise), 1, dtype=torch.int64) if states is None else states,
        guidance=guidance,
        step_noise=map(torch.from_numpy, series),
    )


def noise_of(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
