"""Finding the noise of an image: the way of a deterministic sampler, from noise to the image and back.

A step of DDIM, or of Euler along a flow, is ``x' = keep * x + turn * v(x, t)`` with the velocity ``v``. Backwards ``x``
is found from ``x'`` by fixed-point iteration, so that the way back and forth under the same labels ends where it began.

Source: DDIM, Song et al. 2021 (arXiv 2010.02502), Eq. 12 with sigma = 0, and 4.3 for the way back; velocity, Salimans
and Ho 2022 (arXiv 2202.00512), Appendix D; fixed-point inversion, Pan et al. 2023 (arXiv 2309.04907).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from synfundus.diffusion.flow import shifted
from synfundus.diffusion.guidance import Denoiser, Guidance, check_guidance, guided_prediction, states_to_predict
from synfundus.diffusion.schedulers import TrailingDDIMScheduler, scheduler_for, usable_timesteps
from synfundus.errors import ConfigError

_ITERATIONS = 5
"""Of a step backwards. The error falls by a constant factor each: 5 leave less than the autoencoder's loss."""
Latents = Float[Tensor, "b c lh lw"]


@dataclass(frozen=True)
class Step:
    """A step towards the image.

    Attributes:
        timestep: What the network is told.
        keep: Factor of the latents.
        turn: Factor of the velocity.
        signal: Signal in the latents before the step.
        noise: Noise in them.
    """

    timestep: float
    keep: float
    turn: float
    signal: float
    noise: float


@dataclass(frozen=True)
class EditPath:
    """The steps from a noise level to the image.

    Attributes:
        steps: From the noisiest on.
        prediction_type: What the network predicts.
        num_timesteps: Of the training; a noise level as a share of the way is in units of it.
    """

    steps: tuple[Step, ...]
    prediction_type: str
    num_timesteps: int

    def denoised(self, denoise: Denoiser, x_t: Latents, states: Int[Tensor, "b k"], guidance: Guidance) -> Latents:
        """Return the normalised latents at the end of the path.

        Args:
            denoise: The network.
            x_t: Latents at its beginning.
            states: Label states.
            guidance: How predictions are joined.

        Raises:
            ConfigError: Guidance out of range.
        """
        check_guidance(guidance)
        wanted = states_to_predict(states, guidance)
        noisiest = self.num_timesteps - (self.prediction_type != "flow_velocity")
        for step in self.steps:
            rows = self._rows(step, x_t)
            if guidance.acts_at(1.0 - step.timestep / noisiest):
                prediction = guided_prediction(denoise, x_t, rows, wanted, guidance)
            else:
                prediction = denoise(x_t, rows, states).float()
            x_t = step.keep * x_t + step.turn * self._velocity(prediction, x_t, step)
        return x_t

    def inverted(self, denoise: Denoiser, x0: Latents, states: Int[Tensor, "b k"]) -> Latents:
        """Return the latents at the beginning of the path from which it leads to an image, without guidance.

        Args:
            denoise: The network.
            x0: Normalised latents of the image.
            states: Label states.
        """
        for step in reversed(self.steps):
            x_t = x0
            for _ in range(_ITERATIONS):
                velocity = self._velocity(denoise(x_t, self._rows(step, x_t), states).float(), x_t, step)
                x_t = (x0 - step.turn * velocity) / step.keep
            x0 = x_t
        return x0

    def _rows(self, step: Step, x_t: Latents) -> Tensor:
        kind = torch.float32 if self.prediction_type == "flow_velocity" else torch.int64
        return torch.full((len(x_t),), step.timestep, dtype=kind, device=x_t.device)

    def _velocity(self, prediction: Latents, x_t: Latents, step: Step) -> Latents:
        if self.prediction_type == "epsilon":
            return (prediction - step.noise * x_t) / step.signal
        if self.prediction_type == "sample":
            return (step.signal * x_t - prediction) / step.noise
        return prediction


def plan_path(settings: Mapping[str, Any], *, strength: float, num_steps: int) -> EditPath:
    """Return the path from a noise level to the image.

    Args:
        settings: The schedule of an export.
        strength: Noise level as a share of all timesteps, above 0; 1 is where `sample` begins.
        num_steps: Steps of the path.

    Raises:
        ConfigError: More steps than timesteps.
    """
    total = int(settings["num_timesteps"])
    if settings["prediction_type"] == "flow_velocity":
        return _flow_path(settings, strength=strength, num_steps=num_steps)
    scheduler = scheduler_for("ddim", settings)
    assert isinstance(scheduler, TrailingDDIMScheduler)
    usable = min(usable_timesteps(scheduler), round(strength * total))
    if not 1 <= num_steps <= usable:
        raise ConfigError(
            f"{num_steps} steps for {usable} timesteps: strength {strength:g} of {total}",
            where="edit.num_steps",
            hint="give fewer steps, or a larger --strength",
        )
    alphas = scheduler.alphas_cumprod.double()
    times = [round(usable - number * usable / num_steps) - 1 for number in range(num_steps)]
    levels = [(float(alphas[time].sqrt()), float((1 - alphas[time]).sqrt())) for time in times]
    steps = []
    for time, (signal, noise), (then_signal, then_noise) in zip(times, levels, [*levels[1:], (1.0, 0.0)], strict=True):
        keep = then_signal * signal + then_noise * noise
        steps.append(Step(time, keep, then_noise * signal - then_signal * noise, signal, noise))
    return EditPath(tuple(steps), str(settings["prediction_type"]), total)


def _flow_path(settings: Mapping[str, Any], *, strength: float, num_steps: int) -> EditPath:
    """Return the path along a flow, ``x_t = (1 - t) x0 + t noise``, its steps even before the shift."""
    total, shift = int(settings["num_timesteps"]), float(settings["shift"])
    first = strength / (shift - (shift - 1.0) * strength)
    times = shifted(np.linspace(first, 0.0, num_steps + 1), shift).tolist()
    steps = [Step(now * total, 1.0, then - now, 1.0 - now, now) for now, then in itertools.pairwise(times)]
    return EditPath(tuple(steps), "flow_velocity", total)
