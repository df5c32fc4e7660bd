"""Samplers against a denoiser whose answer is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from gaussian_data import MEAN, STD, draw, noise_of
from torch import Tensor

from synfundus.diffusion.flow_schedulers import build_flow_scheduler
from synfundus.diffusion.guidance import rescaled
from synfundus.diffusion.parametrisation import NoisePrediction
from synfundus.diffusion.sampling import Denoiser, Guidance, SamplerName, Scheduler
from synfundus.diffusion.schedule import ScheduleKind
from synfundus.diffusion.schedulers import build_scheduler
from synfundus.errors import ConfigError

SAMPLERS = get_args(SamplerName)
CASES: list[tuple[NoisePrediction, ScheduleKind, bool]] = [
    ("epsilon", "scaled_linear", False),
    ("epsilon", "cosine", False),
    ("v_prediction", "scaled_linear", False),
    ("v_prediction", "scaled_linear", True),
    ("v_prediction", "cosine", True),
    ("sample", "linear", True),
]


def scheduler_of(
    sampler: SamplerName,
    prediction_type: NoisePrediction = "v_prediction",
    kind: ScheduleKind = "cosine",
    zero_terminal_snr: bool = True,
) -> Scheduler:
    return build_scheduler(
        sampler=sampler,
        schedule_kind=kind,
        num_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        zero_terminal_snr=zero_terminal_snr,
        prediction_type=prediction_type,
    )


def gaussian_denoiser(
    scheduler: Scheduler, mean_of: Callable[[Tensor], Tensor] = lambda states: torch.full((len(states),), MEAN)
) -> Denoiser:
    """Return the ideal network for data that are normal around a mean that may depend on the label."""
    log_sigmas = 0.5 * np.log((1 / scheduler.alphas_cumprod.double().clamp(min=1e-12).numpy()) - 1)

    def denoise(x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        sigma = math.exp(float(np.interp(float(timestep[0]), np.arange(len(log_sigmas)), log_sigmas)))
        signal, noise = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
        mean = mean_of(states)[:, None, None, None]
        x0 = mean + signal * STD**2 / (signal**2 * STD**2 + noise**2) * (x_t - signal * mean)
        epsilon = (x_t - signal * x0) / noise
        kinds = {"sample": x0, "epsilon": epsilon, "v_prediction": signal * epsilon - noise * x0}
        return kinds[scheduler.config.prediction_type]

    return denoise


@pytest.mark.parametrize(("prediction_type", "kind", "zero_terminal_snr"), CASES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_reaches_the_mean_and_spread_of_the_data(
    sampler: SamplerName, prediction_type: NoisePrediction, kind: ScheduleKind, zero_terminal_snr: bool
) -> None:
    scheduler = scheduler_of(sampler, prediction_type, kind, zero_terminal_snr)
    samples = draw(gaussian_denoiser(scheduler), scheduler, noise_of(64), num_steps=40)
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.05)
    assert float(samples.std()) == pytest.approx(STD, rel=0.1)


@pytest.mark.parametrize("num_steps", [7, 12, 15, 30, 33])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_noise_is_left_for_any_number_of_steps(sampler: SamplerName, num_steps: int) -> None:
    """A sampler that stops one timestep early leaves noise on data that have none."""
    scheduler = scheduler_of(sampler)

    def denoise(x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        share = float(timestep[0])
        low = int(share)
        log_sigmas = 0.5 * torch.log(1 / scheduler.alphas_cumprod.double().clamp(min=1e-12) - 1)
        high = min(low + 1, 999)
        sigma = math.exp(float(log_sigmas[low] + (share - low) * (log_sigmas[high] - log_sigmas[low])))
        signal, noise = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
        return (signal * x_t - MEAN) / noise

    samples = draw(denoise, scheduler, noise_of(4), num_steps=num_steps)
    assert float(samples.std()) < 1e-2
    assert float(samples.mean()) == pytest.approx(MEAN, abs=1e-2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(sampler: SamplerName) -> None:
    scheduler = scheduler_of(sampler)
    denoise = gaussian_denoiser(scheduler)
    noise = noise_of(6)
    together = draw(denoise, scheduler, noise)
    alone = torch.cat([draw(denoise, scheduler, row, first=at) for at, row in enumerate(noise.chunk(6))])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_neither_reads_nor_moves_the_global_generator_and_leaves_the_scheduler_alone(
    sampler: SamplerName,
) -> None:
    scheduler = scheduler_of(sampler)
    denoise = gaussian_denoiser(scheduler)
    before = torch.random.get_rng_state()
    first = draw(denoise, scheduler, noise_of(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    second = draw(denoise, scheduler, noise_of(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "heun"])
def test_without_guidance_the_network_is_called_once_a_step_on_the_batch_itself(sampler: SamplerName) -> None:
    scheduler = scheduler_of(sampler)
    inner, batches = gaussian_denoiser(scheduler), []

    def counting(x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        batches.append(len(x_t))
        return inner(x_t, timestep, states)

    draw(counting, scheduler, noise_of(3), num_steps=10)
    assert batches == [3] * 10


def test_the_first_call_is_at_the_last_timestep_with_pure_noise() -> None:
    for sampler in SAMPLERS[:-1]:
        scheduler = scheduler_of(sampler)
        inner = gaussian_denoiser(scheduler)
        seen: list[Tensor] = []

        def watching(
            x_t: Tensor, timestep: Tensor, states: Tensor, inner: Denoiser = inner, seen: list[Tensor] = seen
        ) -> Tensor:
            seen.extend([x_t, timestep])
            return inner(x_t, timestep, states)

        noise = noise_of(2)
        draw(watching, scheduler, noise, num_steps=4)
        assert seen[1].tolist() == [999, 999]
        torch.testing.assert_close(seen[0], noise, rtol=1e-3, atol=1e-3)


def test_guidance_extrapolates_from_unknown_to_the_label() -> None:
    """With linear predictions, guidance of scale g moves the mean to unknown + g (label - unknown)."""
    scheduler = scheduler_of("dpmpp")
    denoise = gaussian_denoiser(scheduler, mean_of=lambda states: states[:, 0].float())
    states = torch.ones(64, 1, dtype=torch.int64)
    means = {
        scale: float(draw(denoise, scheduler, noise_of(64), states=states, guidance=Guidance(scale)).mean())
        for scale in (0.0, 1.0, 2.0)
    }
    assert means[0.0] == pytest.approx(0.0, abs=0.05)
    assert means[1.0] == pytest.approx(1.0, abs=0.05)
    assert means[2.0] == pytest.approx(2.0, abs=0.05)


def test_outside_its_interval_guidance_costs_no_second_branch() -> None:
    scheduler = scheduler_of("dpmpp")
    inner, batches = gaussian_denoiser(scheduler), []

    def counting(x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        batches.append(len(x_t))
        return inner(x_t, timestep, states)

    draw(counting, scheduler, noise_of(2), num_steps=10, guidance=Guidance(2.0, (0.25, 0.75)))
    assert batches == [2, 2, 2, 4, 4, 4, 4, 4, 2, 2]


def test_full_rescale_gives_the_guided_prediction_the_conditional_spread() -> None:
    conditional, guided = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    full = rescaled(3.0 * guided, conditional, share=1.0)
    torch.testing.assert_close(full.std(dim=(1, 2, 3)), conditional.std(dim=(1, 2, 3)))
    assert torch.equal(rescaled(guided, conditional, share=0.0), guided)


@pytest.mark.parametrize(
    ("num_steps", "guidance", "words"),
    [
        (0, Guidance(), "0 sampler steps"),
        (1001, Guidance(), "1001 sampler steps"),
        (5, Guidance(-1.0), "-1.0"),
        (5, Guidance(rescale=1.5), "1.5"),
        (5, Guidance(interval=(0.8, 0.2)), r"\(0.8, 0.2\)"),
        (5, Guidance(label_weights={0: -2.0}), "-2.0"),
        (5, Guidance(negative=[1], guide=lambda x_t, timestep, states: x_t), "exclude each other"),
    ],
)
def test_impossible_settings_are_refused(num_steps: int, guidance: Guidance, words: str) -> None:
    scheduler = scheduler_of("ddim")
    with pytest.raises(ConfigError, match=words):
        draw(gaussian_denoiser(scheduler), scheduler, noise_of(1), num_steps=num_steps, guidance=guidance)


def test_an_unknown_sampler_and_epsilon_at_zero_snr_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown sampler 'plms'"):
        scheduler_of("plms")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="zero-terminal SNR"):
        scheduler_of("ddim", prediction_type="epsilon")


@pytest.mark.parametrize(
    "scheduler", [scheduler_of("ddim"), build_flow_scheduler(sampler="euler", num_timesteps=1000, shift=1)]
)
def test_the_interval_of_guidance_begins_at_the_noise(scheduler: Scheduler) -> None:
    calls: list[tuple[float, bool]] = []

    def recording(x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        calls.append((float(timestep[0]), len(x_t) == 2))
        return torch.zeros_like(x_t)

    draw(recording, scheduler, noise_of(1), num_steps=10, guidance=Guidance(2.0, (0.0, 0.35)))
    assert [guided for _, guided in calls] == [True] * 4 + [False] * 6
    assert min(timestep for timestep, guided in calls if guided) > 600
    calls.clear()
    draw(recording, scheduler, noise_of(1), num_steps=10, guidance=Guidance(2.0, (0.75, 1.0)))
    assert [guided for _, guided in calls] == [False] * 8 + [True] * 2


def test_guidance_leads_away_from_the_unlabelled_prediction() -> None:
    def by_label(x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        return states[:, :1, None, None].float().expand_as(x_t).clone()

    states = torch.ones(1, 1, dtype=torch.int64)
    for scale in (1.0, 3.0):
        guidance = Guidance(scale)
        found = draw(
            by_label, scheduler_of("ddim", "sample"), noise_of(1), num_steps=5, guidance=guidance, states=states
        )
        torch.testing.assert_close(found, torch.full_like(found, scale))
