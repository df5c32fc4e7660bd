"""Samplers give the latents of diffusers' own classes in a plain loop, with the same network and noise."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tiny_pipeline import SCHEDULE, SCHEMA, tiny_denoiser
from torch import Tensor

from synfundus.diffusion.flow_schedulers import FLOW_SAMPLERS, plan_flow_steps
from synfundus.diffusion.sampling import Guidance, SamplerName, sample_latents, scheduler_for
from synfundus.seeding import keyed_normal, keyed_normal_series

STEPS, IMAGES, SHAPE = 10, range(2), (2, 8, 8)
FLOW = {"prediction_type": "flow_velocity", "num_timesteps": 1000, "shift": 3.0}
SCALE = 2.5
CLASSES: dict[SamplerName, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpmpp": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
}
FLOW_CLASSES: dict[SamplerName, tuple[str, dict[str, Any]]] = {
    "dpmpp": CLASSES["dpmpp"],
    "unipc": CLASSES["unipc"],
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
}


def drawn() -> tuple[Tensor, Tensor]:
    """Return noise and label states."""
    rows = [{"dr_grade": 3, "is_gc": 1}, {"eye_side": 0}]
    return torch.from_numpy(keyed_normal(5, "sample", IMAGES, SHAPE)), torch.tensor(
        [SCHEMA.encode(row) for row in rows]
    )


@torch.no_grad()
def ours(sampler: SamplerName, schedule: dict[str, Any], num_steps: int = STEPS) -> Tensor:
    noise, states = drawn()
    return sample_latents(
        tiny_denoiser(),
        initial_noise=noise,
        scheduler=scheduler_for(sampler, schedule),
        num_steps=num_steps,
        states=states,
        guidance=Guidance(SCALE),
        step_noise=map(torch.from_numpy, keyed_normal_series(5, "sample-noise", IMAGES, SHAPE)),
    )


@torch.no_grad()
def their_loop(scheduler: Any) -> Tensor:
    """What diffusers' pipelines do with a scheduler whose steps are planned."""
    network, (noise, states) = tiny_denoiser(), drawn()
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    more = keyed_normal_series(5, "sample-noise", IMAGES, SHAPE)
    for timestep in scheduler.timesteps:
        both = torch.cat([latents] * 2)
        both = scheduler.scale_model_input(both, timestep) if hasattr(scheduler, "scale_model_input") else both
        predicted = network(both, timestep.expand(len(both)), torch.cat([torch.zeros_like(states), states]))
        unconditional, conditional = predicted.chunk(2)
        guided = unconditional + SCALE * (conditional - unconditional)
        extra = {"variance_noise": torch.from_numpy(next(more))} if "sde" in str(scheduler.config) else {}
        latents = scheduler.step(guided, timestep, latents, return_dict=False, **extra)[0]
    return latents


@pytest.mark.parametrize("sampler", CLASSES)
def test_a_noise_schedules_sampler_gives_diffusers_latents(sampler: SamplerName) -> None:
    name, settings = CLASSES[sampler]
    if sampler == "heun":  # it has no zero-terminal SNR: its noise levels are capped
        settings = settings | {"trained_betas": scheduler_for(sampler, SCHEDULE).config.trained_betas}
    else:
        settings = settings | {"rescale_betas_zero_snr": True}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array__ implementation")
        theirs = getattr(diffusers, name)(
            **settings,
            num_train_timesteps=SCHEDULE["num_timesteps"],
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            timestep_spacing="trailing",
        )
        theirs.set_timesteps(STEPS)
    wanted = their_loop(theirs)
    assert float(wanted.std()) > 0.1
    torch.testing.assert_close(ours(sampler, SCHEDULE), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampler", FLOW_SAMPLERS)
def test_a_flows_sampler_gives_diffusers_latents_for_the_same_times(sampler: SamplerName) -> None:
    """Their classes, with the times of our plan: their own plans apply the shift twice, or round timesteps."""
    name, settings = FLOW_CLASSES[sampler]
    if "Flow" in name:
        settings = settings | {"shift": FLOW["shift"]}
    else:
        flow = {"use_flow_sigmas": True, "flow_shift": FLOW["shift"], "prediction_type": "flow_prediction"}
        settings = settings | flow
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array__ implementation")
        theirs = getattr(diffusers, name)(**settings, num_train_timesteps=FLOW["num_timesteps"])
        plan_flow_steps(theirs, STEPS)
    torch.testing.assert_close(ours(sampler, FLOW), their_loop(theirs), rtol=1e-5, atol=1e-5)


def test_fresh_noise_goes_on_where_the_first_draw_ends_and_belongs_to_its_image() -> None:
    series = keyed_normal_series(5, "sample-noise", [3, 8], SHAPE)
    first, second = next(series), next(series)
    assert np.array_equal(first, keyed_normal(5, "sample-noise", [3, 8], SHAPE))
    assert not np.array_equal(first, second)
    alone = keyed_normal_series(5, "sample-noise", [8], SHAPE)
    assert [np.array_equal(next(alone)[0], drawn[1]) for drawn in (first, second)] == [True, True]
