"""From noise and label states to pixels: the arithmetic that `sample` and the preview grids share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synfundus.config.schema import SampleConfig
from synfundus.diffusion.sampling import sample_latents, scheduler_for
from synfundus.jobs.pixels import tensor_to_pixels
from synfundus.models.autoencoder import LatentCodec
from synfundus.models.unet import ConditionalDenoiser

_DECODED_PIXELS = 2**22
"""Pixels that are decoded at a time: four images of 1,024 px, for which fp32 activations are 4 GiB a layer."""


@torch.no_grad()
def generate_images(
    *,
    denoiser: ConditionalDenoiser,
    codec: LatentCodec,
    schedule_settings: dict[str, Any],
    latent_mean: Sequence[float],
    latent_std: Sequence[float],
    initial_noise: NDArray[np.float32],
    states: NDArray[np.int64],
    settings: SampleConfig,
    device: torch.device,
) -> NDArray[np.uint8]:
    """Return one image for each row of noise.

    Args:
        denoiser: The network.
        codec: Decodes latents to pixels, fp32.
        schedule_settings: The training schedule (`build.schedule_settings`).
        latent_mean: Per-channel mean of the latent set, ``[c]``.
        latent_std: Per-channel standard deviation of the latent set, ``[c]``.
        initial_noise: ``[b, c, lh, lw]``.
        states: Label states, ``[b, k]``.
        settings: Sampler, steps, guidance.
        device: Where to compute.

    Returns:
        uint8 ``[b, h, w, 3]``.
    """
    latents = sample_latents(
        denoiser,
        initial_noise=torch.from_numpy(initial_noise).to(device),
        scheduler=scheduler_for(settings.sampler, schedule_settings),
        num_steps=settings.num_steps,
        states=torch.from_numpy(states).to(device),
        guidance_scale=settings.guidance_scale,
        guidance_interval=settings.guidance_interval,
        guidance_rescale=settings.guidance_rescale,
    )
    mean = torch.tensor(latent_mean, dtype=torch.float32, device=device)[None, :, None, None]
    std = torch.tensor(latent_std, dtype=torch.float32, device=device)[None, :, None, None]
    scaled = latents.float() * std + mean
    edge = codec.downsample_factor * latents.shape[-1]
    pieces = torch.split(scaled, max(1, _DECODED_PIXELS // edge**2))
    return np.concatenate([tensor_to_pixels(codec.decode(piece)) for piece in pieces])
