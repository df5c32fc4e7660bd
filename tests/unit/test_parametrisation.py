"""Epsilon, velocity and sample say the same thing in three ways."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from diffusers import DDPMScheduler

from synfundus.diffusion.parametrisation import (
    NoisePrediction,
    check_prediction_type,
    training_target,
)
from synfundus.diffusion.schedule import NoiseSchedule, build_schedule
from synfundus.errors import ConfigError

TIMESTEP = torch.tensor([0, 1, 250, 500, 750, 998])


def schedule_of(*, zero_terminal_snr: bool) -> NoiseSchedule:
    return build_schedule(
        kind="scaled_linear",
        num_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        zero_terminal_snr=zero_terminal_snr,
    )


def draws(count: int = len(TIMESTEP)) -> tuple[torch.Tensor, torch.Tensor]:
    x0, noise = torch.randn(2, count, 3, 4, 4, generator=torch.Generator().manual_seed(3)).double()
    return x0, noise


def scales(schedule: NoiseSchedule, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``a`` and ``s`` of ``x_t = a x0 + s noise``."""
    return schedule.signal_scale(timestep)[:, None, None, None], schedule.noise_scale(timestep)[:, None, None, None]


def origins(
    kind: NoisePrediction, given: torch.Tensor, x_t: torch.Tensor, a: torch.Tensor, s: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve ``x_t = a x0 + s noise`` and ``v = a noise - s x0`` for (x0, noise), with one of the three given."""
    if kind == "epsilon":
        return (x_t - s * given) / a, given
    if kind == "sample":
        return given, (x_t - a * given) / s
    return a * x_t - s * given, s * x_t + a * given


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("prediction_type", get_args(NoisePrediction))
def test_a_perfect_prediction_of_any_kind_gives_back_sample_noise_and_velocity(
    prediction_type: NoisePrediction, zero_terminal_snr: bool
) -> None:
    schedule = schedule_of(zero_terminal_snr=zero_terminal_snr)
    x0, noise = draws()
    x_t = schedule.add_noise(x0, noise, TIMESTEP)
    given = training_target(x0=x0, noise=noise, timestep=TIMESTEP, schedule=schedule, prediction_type=prediction_type)
    velocity = training_target(x0=x0, noise=noise, timestep=TIMESTEP, schedule=schedule, prediction_type="v_prediction")
    a, s = scales(schedule, TIMESTEP)
    sample, epsilon = origins(prediction_type, given, x_t, a, s)
    for found, wanted in ((sample, x0), (epsilon, noise), (a * epsilon - s * sample, velocity)):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_at_zero_snr_velocity_and_sample_predictions_still_convert(prediction_type: NoisePrediction) -> None:
    schedule = schedule_of(zero_terminal_snr=True)
    timestep = torch.tensor([999, 999])
    x0, noise = draws(2)
    x_t = schedule.add_noise(x0, noise, timestep)
    given = training_target(x0=x0, noise=noise, timestep=timestep, schedule=schedule, prediction_type=prediction_type)
    a, s = scales(schedule, timestep)
    sample, epsilon = origins(prediction_type, given, x_t, a, s)
    torch.testing.assert_close(sample, x0)
    torch.testing.assert_close(epsilon, noise)
    torch.testing.assert_close(a * epsilon - s * sample, -x0)


def test_the_velocity_target_equals_that_of_diffusers() -> None:
    theirs = DDPMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    x0, noise = (part.float() for part in draws())
    ours = training_target(
        x0=x0,
        noise=noise,
        timestep=TIMESTEP,
        schedule=schedule_of(zero_terminal_snr=False),
        prediction_type="v_prediction",
    )
    torch.testing.assert_close(ours, theirs.get_velocity(x0, noise, TIMESTEP), rtol=1e-4, atol=1e-5)


def test_epsilon_with_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(ConfigError, match="zero-terminal SNR") as refusal:
        check_prediction_type("epsilon", schedule_of(zero_terminal_snr=True))
    assert "v_prediction" in refusal.value.hint


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_the_other_kinds_are_accepted_with_zero_terminal_snr(prediction_type: str) -> None:
    check_prediction_type(prediction_type, schedule_of(zero_terminal_snr=True))


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown prediction type 'noise'"):
        check_prediction_type("noise", schedule_of(zero_terminal_snr=False))
