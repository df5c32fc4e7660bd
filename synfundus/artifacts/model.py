"""A model: denoiser, autoencoder and settings, and how it turns noise and label states into pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from synfundus.diffusion.guidance import Guidance, plan_label_weights
from synfundus.diffusion.sampling import SamplerSettings, sample_latents, scheduler_for
from synfundus.labels.schema import LabelSchema
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.pixels import tensor_to_pixels
from synfundus.models.tiled_decoding import decode_in_tiles
from synfundus.models.unet import ConditionalDenoiser
from synfundus.seeding import keyed_normal, keyed_normal_series

CPU_BATCH_SIZE = 16
"""Images that a CPU computes at once: another number may round otherwise, and is hardly faster."""

_DECODED_PIXELS = 2**22
"""Pixels to decode at a time: four images of 1,024 px, with fp32 activations of 4 GiB per layer."""


@dataclass(frozen=True, kw_only=True)
class ModelSetup:
    """All that a denoiser needs to generate images; constant during a run.

    Attributes:
        autoencoder: The autoencoder of the latent set.
        schedule_settings: Settings for `scheduler_for`.
        label_schema: Labels of the latent set.
        latent_mean: Per channel, ``[c]``: model latents are ``(latents - mean) / std``.
        latent_std: Per channel, ``[c]``.
        image_size_px: Width and height of the images.
        latent_set_identity: Identity of the latent set.
        autoencoder_fingerprint: sha256 over the autoencoder, as recorded in the latent set.
        recommended_sampling: How to draw images from it, as its run was configured; None where it was not recorded.
    """

    autoencoder: LatentAutoencoder
    schedule_settings: dict[str, Any]
    label_schema: LabelSchema
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    image_size_px: int
    latent_set_identity: str
    autoencoder_fingerprint: str
    recommended_sampling: SamplerSettings | None = None


@dataclass(frozen=True, kw_only=True)
class Model(ModelSetup):
    """A loaded model, ready to sample from, in evaluation mode.

    Attributes:
        denoiser: U-Net and conditioner.
        latent_shape: ``(c, lh, lw)``.
        fingerprint: sha256 over U-Net and conditioner; empty outside a pipeline folder.
        training_summary: Figures of the training run.
        folder: Where it was loaded from.
    """

    denoiser: ConditionalDenoiser
    latent_shape: tuple[int, int, int]
    fingerprint: str
    training_summary: dict[str, Any]
    folder: str


def canonical_batch_size(batch_size: int, *, device: str) -> int:
    """Return how many images are computed at once: on a GPU as many as asked for, on a CPU always as many."""
    return CPU_BATCH_SIZE if device == "cpu" else batch_size


@torch.no_grad()
def generate_images(
    setup: ModelSetup,
    denoiser: ConditionalDenoiser,
    *,
    initial_noise: NDArray[np.float32],
    states: NDArray[np.int64],
    settings: SamplerSettings,
    device: torch.device,
    step_noise: Iterator[NDArray[np.float32]] | None = None,
    guide: ConditionalDenoiser | None = None,
) -> NDArray[np.uint8]:
    """Return one image for each row of noise.

    Args:
        setup: The model, or its setup alone; the autoencoder decodes in fp32.
        denoiser: The network, the model's or one in training.
        initial_noise: ``[b, c, lh, lw]``.
        states: Label states, ``[b, k]``.
        settings: Sampler, steps, guidance.
        device: Where to compute; the networks are there.
        step_noise: `keyed_normal_series` of the images, for a sampler that draws noise at each step.
        guide: A weaker network to lead away from.

    Returns:
        uint8 ``[b, h, w, 3]``.
    """
    latents = sample_latents(
        denoiser,
        initial_noise=torch.from_numpy(initial_noise).to(device),
        scheduler=scheduler_for(settings.sampler, setup.schedule_settings),
        num_steps=settings.num_steps,
        states=torch.from_numpy(states).to(device),
        guidance=guidance_of(settings, setup.label_schema, guide=guide),
        step_noise=None if step_noise is None else _on_device(step_noise, device),
    )
    return decode_images(setup, latents, tile_px=settings.decode_tile_px)


@torch.no_grad()
def decode_images(setup: ModelSetup, latents: Float[Tensor, "b c lh lw"], *, tile_px: int = 0) -> NDArray[np.uint8]:
    """Return the images of normalised latents, uint8 ``[b, h, w, 3]``; the autoencoder decodes in fp32.

    Args:
        setup: Autoencoder and normalisation.
        latents: Normalised.
        tile_px: Edge of the tiles to decode; 0: images as a whole.
    """
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=latents.device)[None, :, None, None]
        for values in (setup.latent_mean, setup.latent_std)
    )
    scaled = latents.float() * std + mean
    edge = setup.autoencoder.downsample_factor * latents.shape[-1]
    pieces = torch.split(scaled, max(1, _DECODED_PIXELS // edge**2))
    decode = partial(decode_in_tiles, setup.autoencoder, tile_px=tile_px) if tile_px else setup.autoencoder.decode
    return np.concatenate([tensor_to_pixels(decode(piece)) for piece in pieces])


def generate_batch(
    model: Model,
    rows: Sequence[Mapping[str, int | None]],
    batch: int,
    *,
    batch_size: int,
    seed: int,
    settings: SamplerSettings,
    device: torch.device,
    guide: Model | None = None,
) -> NDArray[np.uint8]:
    """Return all images of a canonical batch: image i is slot ``i % B`` of batch ``i // B``.

    An image depends on (seed, i, its labels) and on the size of the batch; slots after the last row are padding, noise
    of their own index with all labels unknown.

    Args:
        model: The model.
        rows: Labels of all images.
        batch: Number of the batch.
        batch_size: Slots of a batch.
        seed: Seed of the noise.
        settings: Sampler, steps, guidance.
        device: Where to compute; the networks are there.
        guide: A weaker model to lead away from.

    Returns:
        uint8 ``[B, h, w, 3]``.
    """
    images = range(batch * batch_size, (batch + 1) * batch_size)
    return _generate(model, rows, images, "sample", seed=seed, settings=settings, device=device, guide=guide)


def generate_again(
    model: Model,
    rows: Sequence[Mapping[str, int | None]],
    image: int,
    attempt: int,
    *,
    seed: int,
    settings: SamplerSettings,
    device: torch.device,
    guide: Model | None = None,
) -> NDArray[np.uint8]:
    """Return an image drawn from the noise of a later attempt, alone: uint8 ``[h, w, 3]``.

    Args:
        model: The model.
        rows: Labels of all images.
        image: Number of the image.
        attempt: 1 is the first after the one of `generate_batch`.
        seed: Seed of the noise.
        settings: Sampler, steps, guidance.
        device: Where to compute; the networks are there.
        guide: A weaker model to lead away from.
    """
    purpose = noise_purpose(attempt)
    (drawn,) = _generate(model, rows, [image], purpose, seed=seed, settings=settings, device=device, guide=guide)
    return np.asarray(drawn)


def noise_purpose(attempt: int) -> str:
    """Return the purpose by which the noise of an attempt is keyed; attempt 0 is the first drawing."""
    if attempt < 0:
        raise ValueError(f"attempts are counted from 0, this is {attempt}")
    return f"sample-redraw.{attempt}" if attempt else "sample"


def _generate(
    model: Model,
    rows: Sequence[Mapping[str, int | None]],
    images: Sequence[int],
    purpose: str,
    *,
    seed: int,
    settings: SamplerSettings,
    device: torch.device,
    guide: Model | None,
) -> NDArray[np.uint8]:
    states = [model.label_schema.encode(rows[image] if image < len(rows) else {}) for image in images]
    return generate_images(
        model,
        model.denoiser,
        initial_noise=keyed_normal(seed, purpose, images, model.latent_shape),
        states=np.array(states, dtype=np.int64),
        settings=settings,
        device=device,
        step_noise=keyed_normal_series(seed, f"{purpose}-noise", images, model.latent_shape),
        guide=None if guide is None else guide.denoiser,
    )


def guidance_of(
    settings: SamplerSettings, schema: LabelSchema, *, guide: ConditionalDenoiser | None = None
) -> Guidance:
    """Return the guidance that settings ask for, for the states of a label schema.

    Raises:
        ConfigError: A label that the schema does not have.
    """
    for name in settings.guidance_weight:
        schema[name]
    scale, weights = plan_label_weights(schema.names, settings.guidance_weight, scale=settings.guidance_scale)
    return Guidance(
        scale=scale,
        interval=settings.guidance_interval,
        rescale=settings.guidance_rescale,
        label_weights=weights,
        negative=schema.encode(settings.negative_label) if settings.negative_label else (),
        guide=guide,
    )


def _on_device(series: Iterator[NDArray[np.float32]], device: torch.device) -> Iterator[Tensor]:
    """Yield arrays as tensors; what is copied to a GPU is pinned, so that no step waits for it."""
    for array in series:
        drawn = torch.from_numpy(array)
        yield drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn


def denoiser_latent_shape(denoiser: ConditionalDenoiser) -> tuple[int, int, int]:
    """Return the shape ``(c, lh, lw)`` of the latents a network takes."""
    config = denoiser.unet.config
    return int(config.in_channels), int(config.sample_size), int(config.sample_size)
