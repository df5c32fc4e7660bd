"""One eye as a disease advances: the same noise, and label states between two values.

States on the way are packed as ``[b, 3k]``: the lower state of each label, the upper one, and the share of the way in
`UNITS`. A row of zeros stays the unconditional input of guidance, so that samplers and guidance need not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from synfundus.artifacts.model import Model, decode_images, guidance_of
from synfundus.diffusion.guidance import Guidance
from synfundus.diffusion.sampling import SamplerSettings, sample_latents, scheduler_for
from synfundus.errors import ConfigError
from synfundus.labels.schema import UNKNOWN_STATE, LabelSchema
from synfundus.models.unet import ConditionalDenoiser
from synfundus.seeding import keyed_normal, keyed_normal_series

UNITS = 2**20
"""Parts of the way from one value to the next: a share is a whole number of them."""


@dataclass(frozen=True)
class Course:
    """Values of labels from the first frame to the last.

    Attributes:
        first: Value of each label in the first frame; None is unknown.
        last: In the last frame.
    """

    first: Mapping[str, int | None]
    last: Mapping[str, int | None]

    @property
    def moved(self) -> tuple[str, ...]:
        """Labels that change."""
        return tuple(name for name, value in self.first.items() if value != self.last[name])

    def values(self, frame: int, num_frames: int) -> dict[str, float | None]:
        """Return the value of each label in a frame, between two whole numbers on the way."""
        share = frame / max(num_frames - 1, 1)
        return {
            name: None if value is None else value + share * ((self.last[name] or 0) - value)
            for name, value in self.first.items()
        }


def packed_states(values: Mapping[str, float | None], schema: LabelSchema) -> list[int]:
    """Return the packed states ``[3k]`` of values that may lie between two whole numbers."""
    low, high, share = [], [], []
    for name in schema.names:
        value = values.get(name)
        floor = UNKNOWN_STATE if value is None else int(value) + 1
        units = 0 if value is None else round((value - int(value)) * UNITS)
        low.append(floor)
        high.append(floor + (units > 0))
        share.append(units)
    return [*low, *high, *share]


@dataclass(frozen=True)
class BetweenStates:
    """A network that takes packed states.

    Attributes:
        denoiser: The network.
    """

    denoiser: ConditionalDenoiser

    def __call__(
        self, x_t: Float[Tensor, "b c lh lw"], timestep: Tensor, packed: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b c lh lw"]:
        """Predict as the network."""
        low, high, units = packed.chunk(3, dim=1)
        tokens, pooled = self.denoiser.conditioner.between(low, high, units.float() / UNITS)
        return self.denoiser.predict(x_t, timestep, tokens, pooled)


def packed_guidance(settings: SamplerSettings, schema: LabelSchema) -> Guidance:
    """Return the guidance that settings ask for, of packed states.

    Raises:
        ConfigError: Weights of single labels, which have no meaning between two values.
    """
    if settings.guidance_weight:
        raise ConfigError("guidance_weight has no meaning between two values", hint="leave guidance_weight out")
    guidance = guidance_of(settings, schema)
    if not guidance.negative:
        return guidance
    return replace(guidance, negative=[*guidance.negative, *guidance.negative, *[0] * len(guidance.negative)])


@torch.no_grad()
def generate_frames(
    model: Model,
    course: Course,
    *,
    num_frames: int,
    image: int,
    batch_size: int,
    seed: int,
    settings: SamplerSettings,
    device: torch.device,
) -> NDArray[np.uint8]:
    """Return the frames of an eye, uint8 ``[n, h, w, 3]``: all from the noise of one image of `generate_batch`.

    Args:
        model: The model.
        course: What changes.
        num_frames: At least 2.
        image: Number of the image whose noise it is.
        batch_size: Frames at a time; the last ones are padded.
        seed: Seed of the noise.
        settings: Sampler, steps, guidance.
        device: Where to compute; the networks are there.

    Raises:
        ConfigError: Weights of single labels, which have no meaning between two values.
    """
    guidance = packed_guidance(settings, model.label_schema)
    rows = [packed_states(course.values(frame, num_frames), model.label_schema) for frame in range(num_frames)]
    frames: list[NDArray[np.uint8]] = []
    for first in range(0, num_frames, batch_size):
        states = np.zeros((batch_size, len(rows[0])), dtype=np.int64)
        part = np.array(rows[first : first + batch_size], dtype=np.int64)
        states[: len(part)] = part
        images = [image] * batch_size
        noise = keyed_normal(seed, "sample", images, model.latent_shape)
        series = keyed_normal_series(seed, "sample-noise", images, model.latent_shape)
        latents = sample_latents(
            BetweenStates(model.denoiser),
            initial_noise=torch.from_numpy(noise).to(device),
            scheduler=scheduler_for(settings.sampler, model.schedule_settings),
            num_steps=settings.num_steps,
            states=torch.from_numpy(states).to(device),
            guidance=guidance,
            step_noise=(torch.from_numpy(drawn).to(device) for drawn in series),
        )
        frames.append(decode_images(model, latents, tile_px=settings.decode_tile_px)[: len(part)])
    return np.concatenate(frames)
