"""Sampling of latents: a sampler's steps along guided predictions; independent of the network.

A sample depends on its own noise and labels, never on its batch: samplers are deterministic maps from the noise, and
``dpmpp_sde`` is given more of it, a draw for each sample and step. From an image they start at a noise level on the way
(SDEdit).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from synfundus.diffusion.flow_schedulers import FLOW_SAMPLERS, follows_flow
from synfundus.diffusion.guidance import Denoiser, Guidance, check_guidance, guided_prediction, states_to_predict
from synfundus.diffusion.sampler_settings import SamplerName, SamplerSettings
from synfundus.diffusion.schedulers import (
    Scheduler,
    begin_near,
    draws_noise,
    noise_level,
    plan_steps,
    scheduler_for,
    share_of_steps,
)
from synfundus.errors import ConfigError

__all__ = [
    "FLOW_SAMPLERS",
    "Denoiser",
    "Guidance",
    "SamplerName",
    "SamplerSettings",
    "Scheduler",
    "edit_latents",
    "sample_latents",
    "scheduler_for",
]


def sample_latents(
    denoise: Denoiser,
    *,
    initial_noise: Float[Tensor, "b c lh lw"],
    scheduler: Scheduler,
    num_steps: int,
    states: Int[Tensor, "b k"],
    guidance: Guidance,
    step_noise: Iterator[Tensor] | None = None,
) -> Float[Tensor, "b c lh lw"]:
    """Turn standard normal noise into normalised latents.

    Args:
        denoise: The network: noisy latents, timestep, label states -> prediction of the scheduler's type.
        initial_noise: One keyed draw per sample, unit variance.
        scheduler: From `scheduler_for`; not changed.
        num_steps: Sampler steps.
        states: Label states; UNKNOWN = 0 is the unconditional input of guidance.
        guidance: How predictions for these and other states are joined.
        step_noise: Keyed draws per sample for each step, ``[b c lh lw]`` each, in order; `draws_noise` tells which
            schedulers need it.

    Raises:
        ConfigError: Steps or guidance out of range.
    """
    scheduler = _planned(scheduler, num_steps)
    flow = follows_flow(scheduler)
    x_t = initial_noise.float() if flow else initial_noise.float() * float(scheduler.init_noise_sigma)
    return _followed(denoise, x_t, 0, scheduler, states, guidance, step_noise)


def edit_latents(
    denoise: Denoiser,
    *,
    x0: Float[Tensor, "b c lh lw"],
    noise: Float[Tensor, "b c lh lw"],
    strength: float,
    scheduler: Scheduler,
    num_steps: int,
    states: Int[Tensor, "b k"],
    guidance: Guidance,
    step_noise: Iterator[Tensor] | None = None,
) -> Float[Tensor, "b c lh lw"]:
    """Add noise to the normalised latents of an image, and take it away again under label states.

    Args:
        denoise: As of `sample_latents`.
        x0: Latents of the image.
        noise: Unit variance.
        strength: Share of all timesteps that is noised, above 0; at 1 only a noise schedule without zero-terminal SNR
            leaves a trace of the image.
        scheduler: From `scheduler_for`; not changed.
        num_steps: Steps from there; of ``heun``, which spaces them in sigma, about as many.
        states: Label states.
        guidance: How predictions are joined.
        step_noise: As of `sample_latents`.

    Raises:
        ConfigError: Steps or guidance out of range.

    Source: Meng et al. 2022 (arXiv 2108.01073), Alg. 1, with the sampler's own steps.
    """
    total = int(scheduler.config.num_train_timesteps)
    all_steps = max(num_steps, round(num_steps / share_of_steps(scheduler, strength)))
    scheduler = _planned(scheduler, min(total, all_steps))
    first = begin_near(scheduler, strength)
    signal, level = noise_level(scheduler, first)
    x_t = signal * x0.float() + level * noise.float()
    return _followed(denoise, x_t, first, scheduler, states, guidance, step_noise)


def _planned(scheduler: Scheduler, num_steps: int) -> Scheduler:
    """Return a copy of a scheduler that has planned its steps."""
    if not 1 <= num_steps <= scheduler.config.num_train_timesteps:
        raise ConfigError(f"{num_steps} sampler steps: 1 to {scheduler.config.num_train_timesteps} are possible")
    scheduler = copy.deepcopy(scheduler)
    plan_steps(scheduler, num_steps)
    return scheduler


def _followed(
    denoise: Denoiser,
    x_t: Float[Tensor, "b c lh lw"],
    first: int,
    scheduler: Scheduler,
    states: Int[Tensor, "b k"],
    guidance: Guidance,
    step_noise: Iterator[Tensor] | None,
) -> Float[Tensor, "b c lh lw"]:
    """Take the planned steps of a scheduler, from the ``first`` one on."""
    check_guidance(guidance)
    wanted = states_to_predict(states, guidance)
    flow = follows_flow(scheduler)
    noisiest = scheduler.config.num_train_timesteps - (0 if flow else 1)
    more = {}
    for timestep in scheduler.timesteps[first:]:
        model_input = x_t if flow else scheduler.scale_model_input(x_t, timestep)
        rows = torch.full((len(x_t),), timestep.item(), dtype=timestep.dtype, device=x_t.device)
        progress = 1.0 - float(timestep) / noisiest
        if guidance.acts_at(progress):
            prediction = guided_prediction(denoise, model_input, rows, wanted, guidance)
        else:
            prediction = denoise(model_input, rows, states).float()
        if draws_noise(scheduler):
            assert step_noise is not None, "this sampler draws noise at each step"
            more["variance_noise"] = next(step_noise)
        x_t = scheduler.step(prediction, timestep, x_t, return_dict=False, **more)[0]
    return x_t
