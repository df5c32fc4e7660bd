"""Sampling of latents: a sampler's steps along guided predictions; independent of the network.

A sample depends on its own noise and labels, never on its batch: samplers are deterministic maps from the noise, and
``dpmpp_sde`` is given more of it, a draw for each sample and step.
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
from synfundus.diffusion.schedulers import Scheduler, draws_noise, plan_steps, scheduler_for
from synfundus.errors import ConfigError

__all__ = [
    "FLOW_SAMPLERS",
    "Denoiser",
    "Guidance",
    "SamplerName",
    "SamplerSettings",
    "Scheduler",
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
    if not 1 <= num_steps <= scheduler.config.num_train_timesteps:
        raise ConfigError(f"{num_steps} sampler steps: 1 to {scheduler.config.num_train_timesteps} are possible")
    check_guidance(guidance)
    scheduler = copy.deepcopy(scheduler)
    plan_steps(scheduler, num_steps)
    wanted = states_to_predict(states, guidance)
    flow = follows_flow(scheduler)
    x_t = initial_noise.float() if flow else initial_noise.float() * float(scheduler.init_noise_sigma)
    noisiest = scheduler.config.num_train_timesteps - (0 if flow else 1)
    more = {}
    for timestep in scheduler.timesteps:
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
