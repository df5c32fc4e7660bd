"""Samplers of a flow against velocities known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from gaussian_data import MEAN, STD, draw, noise_of
from torch import Tensor

from synfundus.diffusion.flow import FlowPath, shifted
from synfundus.diffusion.flow_schedulers import follows_flow
from synfundus.diffusion.parametrisation import training_target
from synfundus.diffusion.sampling import FLOW_SAMPLERS, Denoiser, Guidance, SamplerName, Scheduler, scheduler_for
from synfundus.errors import ConfigError

SAMPLERS: tuple[SamplerName, ...] = ("dpmpp", "euler", "heun", "unipc")
COUNT = 1000


def scheduler_of(sampler: SamplerName, *, shift: float = 1.0) -> Scheduler:
    return scheduler_for(sampler, {"prediction_type": "flow_velocity", "num_timesteps": COUNT, "shift": shift})


def gaussian_velocity(
    mean_of: Callable[[Tensor], Tensor] = lambda states: torch.full((len(states),), MEAN), *, std: float = STD
) -> Denoiser:
    """Return the expected velocity for data that are normal around a mean that may depend on the label."""

    def denoise(x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        time = (timestep.double() / COUNT)[:, None, None, None]
        mean = mean_of(states)[:, None, None, None]
        variance = (1 - time) ** 2 * std**2 + time**2
        deviation = x_t - (1 - time) * mean
        x0 = mean + (1 - time) * std**2 / variance * deviation
        return (time / variance * deviation - x0).float()

    return denoise


@pytest.mark.parametrize("time", [0.05, 0.4, 0.8, 1.0])
def test_training_on_a_gaussian_leads_to_the_velocity_the_samplers_are_shown(time: float) -> None:
    """The best guess of the target from ``x_t`` is linear for normal data: fit it, and compare."""
    x0, noise = torch.randn(2, 400_000, 1, 1, 1, generator=torch.Generator().manual_seed(2)).double()
    x0, timestep = MEAN + STD * x0, torch.full((len(noise),), time * COUNT)
    x_t = FlowPath(COUNT).add_noise(x0, noise, timestep)
    target = training_target(
        x0=x0, noise=noise, timestep=timestep, schedule=FlowPath(COUNT), prediction_type="flow_velocity"
    )
    fitted = np.polynomial.Polynomial.fit(x_t.flatten().numpy(), target.flatten().numpy(), 1)
    probe = torch.tensor([-1.0, 0.0, 1.5])[:, None, None, None]
    wanted = gaussian_velocity()(probe, timestep[:3], torch.zeros(3, 1))
    np.testing.assert_allclose(fitted(probe.flatten().numpy()), wanted.flatten().numpy(), atol=0.02)


def test_the_names_are_the_agreed_ones() -> None:
    assert SAMPLERS == FLOW_SAMPLERS
    assert all(follows_flow(scheduler_of(sampler)) for sampler in SAMPLERS)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_follows_the_gaussians_flow_to_its_end(sampler: SamplerName, shift: float) -> None:
    """The flow of a Gaussian is affine: it takes each noise to mean + std * noise."""
    noise = noise_of(4)
    wanted = MEAN + STD * noise
    scheduler = scheduler_of(sampler, shift=shift)
    errors = [
        float((draw(gaussian_velocity(), scheduler, noise, num_steps=steps) - wanted).abs().max()) for steps in (20, 80)
    ]
    assert errors[1] < {"euler": 0.08, "dpmpp": 0.02, "heun": 0.001, "unipc": 0.02}[sampler]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("num_steps", [1, 2, 7, 30, 33])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_noise_is_left_for_any_number_of_steps(sampler: SamplerName, num_steps: int) -> None:
    """Data at one point: the way is straight, and every solver exact."""
    samples = draw(gaussian_velocity(std=0.0), scheduler_of(sampler), noise_of(4), num_steps=num_steps)
    torch.testing.assert_close(samples, torch.full_like(samples, MEAN), rtol=0, atol=2e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_network_is_told_the_time_it_is_at(sampler: SamplerName) -> None:
    """Data at zero: ``x_t`` is time times noise, which shows the time the sampler is really at."""
    noise, seen = noise_of(2), []

    def watching(x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        seen.append((float((x_t / noise).mean()), float(timestep[0]) / COUNT))
        return noise

    draw(watching, scheduler_of(sampler, shift=2.0), noise, num_steps=9)
    at, told = np.array(seen).T
    np.testing.assert_allclose(told, at, atol=1.1 / COUNT)  # DPM-Solver++ takes noise for time 1 - 1 / COUNT
    assert told[0] == pytest.approx(1.0, abs=1.0 / COUNT)
    assert len(told) == (17 if sampler == "heun" else 9)
    assert bool((np.diff(told) <= 0).all())


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_steps_are_even_before_the_shift_which_is_applied_once(shift: float) -> None:
    plans = {}
    for sampler in SAMPLERS:
        seen: list[float] = []

        def watching(x_t: Tensor, timestep: Tensor, states: Tensor, seen: list[float] = seen) -> Tensor:
            seen.append(float(timestep[0]) / COUNT)
            return x_t

        draw(watching, scheduler_of(sampler, shift=shift), noise_of(1), num_steps=10)
        plans[sampler] = list(dict.fromkeys(seen))
    even = np.arange(10, 0, -1) / 10
    np.testing.assert_allclose(plans["euler"], shifted(even, shift), rtol=1e-5)
    np.testing.assert_allclose(plans["dpmpp"], shifted(even * (1 - 1 / COUNT), shift), rtol=1e-5)
    np.testing.assert_allclose(plans["unipc"], shifted(np.linspace(1, 1 / COUNT, 11)[:-1], shift), rtol=1e-5)
    np.testing.assert_allclose(plans["heun"], shifted(np.linspace(1, 1 / COUNT, 10), shift), rtol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_depends_neither_on_its_batch_nor_on_the_global_generator(sampler: SamplerName) -> None:
    scheduler, noise = scheduler_of(sampler, shift=3.0), noise_of(6)
    before = torch.random.get_rng_state()
    together = draw(gaussian_velocity(), scheduler, noise)
    alone = torch.cat([draw(gaussian_velocity(), scheduler, row) for row in noise.chunk(6)])
    assert torch.equal(together, alone)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_guidance_acts_within_its_part_of_the_way_and_extrapolates() -> None:
    states, batches = torch.ones(2, 1, dtype=torch.int64), []
    inner = gaussian_velocity(lambda given: given[:, 0].float())

    def counting(x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        batches.append(len(x_t))
        return inner(x_t, timestep, states)

    scheduler = scheduler_of("euler")
    draw(
        counting,
        scheduler,
        noise_of(2),
        states=states,
        num_steps=10,
        guidance=Guidance(2.0, (0.25, 0.75)),
    )
    assert batches == [2, 2, 2, 4, 4, 4, 4, 4, 2, 2]
    many = torch.ones(64, 1, dtype=torch.int64)
    guided = draw(inner, scheduler_of("dpmpp"), noise_of(64), states=many, guidance=Guidance(2.0))
    assert float(guided.mean()) == pytest.approx(2.0, abs=0.05)


def test_ddim_is_refused_with_those_that_can() -> None:
    with pytest.raises(ConfigError, match=r"'ddim'.*flow_velocity") as refusal:
        scheduler_of("ddim")
    assert all(name in refusal.value.hint for name in SAMPLERS)


def test_an_exported_scheduler_opens_in_diffusers_with_its_shift(tmp_path: Path) -> None:
    scheduler_of("euler", shift=3.0).save_pretrained(tmp_path)
    theirs = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    assert (theirs.config.num_train_timesteps, theirs.config.shift) == (COUNT, 3.0)
