"""The forward process against diffusers, the papers' equations, and its own limits."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from diffusers import DDPMScheduler

from synfundus.diffusion.schedule import NoiseSchedule, ScheduleKind, build_schedule, rescale_to_zero_terminal_snr
from synfundus.errors import ConfigError

DIFFUSERS_KIND = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def schedule_of(kind: ScheduleKind, *, zero_terminal_snr: bool = False, num_timesteps: int = 1000) -> NoiseSchedule:
    return build_schedule(
        kind=kind,
        num_timesteps=num_timesteps,
        beta_start=0.00085,
        beta_end=0.012,
        zero_terminal_snr=zero_terminal_snr,
    )


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("kind", get_args(ScheduleKind))
def test_betas_equal_those_of_diffusers(kind: ScheduleKind, zero_terminal_snr: bool) -> None:
    theirs = DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule=DIFFUSERS_KIND[kind],
        rescale_betas_zero_snr=zero_terminal_snr,
    )
    ours = schedule_of(kind, zero_terminal_snr=zero_terminal_snr)
    # diffusers works in float32; rescaling divides differences of nearly equal numbers.
    torch.testing.assert_close(ours.betas.float(), theirs.betas, rtol=2e-3 if zero_terminal_snr else 1e-4, atol=2e-6)
    torch.testing.assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", get_args(ScheduleKind))
def test_add_noise_equals_diffusers(kind: ScheduleKind) -> None:
    theirs = DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule=DIFFUSERS_KIND[kind]
    )
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 8, 4, 2, 2, generator=generator)
    timestep = torch.tensor([0, 1, 10, 100, 500, 900, 998, 999])
    ours = schedule_of(kind).add_noise(x0, noise, timestep)
    torch.testing.assert_close(ours, theirs.add_noise(x0, noise, timestep), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", get_args(ScheduleKind))
def test_signal_and_noise_shares_of_the_variance_add_up_to_one(kind: ScheduleKind) -> None:
    schedule = schedule_of(kind)
    timestep = torch.arange(1000)
    total = schedule.signal_scale(timestep) ** 2 + schedule.noise_scale(timestep) ** 2
    torch.testing.assert_close(total, torch.ones(1000))


@pytest.mark.parametrize("kind", get_args(ScheduleKind))
def test_snr_falls_with_every_timestep(kind: ScheduleKind) -> None:
    snr = schedule_of(kind).snr(torch.arange(1000))
    assert bool((snr[1:] < snr[:-1]).all())


@pytest.mark.parametrize("kind", get_args(ScheduleKind))
def test_zero_terminal_snr_keeps_the_first_step_and_empties_the_last(kind: ScheduleKind) -> None:
    plain, rescaled = schedule_of(kind), schedule_of(kind, zero_terminal_snr=True)
    assert rescaled.has_zero_terminal_snr
    assert not plain.has_zero_terminal_snr
    torch.testing.assert_close(rescaled.alphas_cumprod[0], plain.alphas_cumprod[0])
    x_t = rescaled.add_noise(torch.full((1, 1, 1, 1), 1e6), torch.full((1, 1, 1, 1), 2.0), torch.tensor([999]))
    assert float(x_t) == 2.0


def test_rescaling_twice_changes_nothing_more() -> None:
    once = schedule_of("scaled_linear", zero_terminal_snr=True).betas
    torch.testing.assert_close(rescale_to_zero_terminal_snr(once), once)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "sigmoid"}, "unknown noise schedule 'sigmoid'"),
        ({"num_timesteps": 1}, "1 timesteps"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "0.5 and 0.1"),
        ({"beta_start": 0.0}, "0.0 and"),
        ({"beta_end": 1.0}, "and 1.0"),
    ],
)
def test_impossible_schedules_are_refused_with_their_values(settings: dict[str, object], words: str) -> None:
    known: dict[str, object] = {
        "kind": "linear",
        "num_timesteps": 10,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "zero_terminal_snr": False,
    }
    with pytest.raises(ConfigError) as refusal:
        build_schedule(**(known | settings))  # type: ignore[arg-type]
    assert words in refusal.value.message
