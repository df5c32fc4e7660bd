"""Epsilon, velocity and sample say the same thing in three ways."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from diffusers import DDPMScheduler

from synfundus.diffusion.parametrisation import (
    NoisePrediction,
    check_prediction_type,
    to_epsilon,
    to_sample,
    to_velocity,
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
    for convert, wanted in ((to_sample, x0), (to_epsilon, noise), (to_velocity, velocity)):
        found = convert(
            prediction=given, x_t=x_t, timestep=TIMESTEP, schedule=schedule, prediction_type=prediction_type
        )
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_at_zero_snr_velocity_and_sample_predictions_still_convert(prediction_type: NoisePrediction) -> None:
    schedule = schedule_of(zero_terminal_snr=True)
    timestep = torch.tensor([999, 999])
    x0, noise = draws(2)
    x_t = schedule.add_noise(x0, noise, timestep)
    given = training_target(x0=x0, noise=noise, timestep=timestep, schedule=schedule, prediction_type=prediction_type)
    settings = {"x_t": x_t, "timestep": timestep, "schedule": schedule, "prediction_type": prediction_type}
    torch.testing.assert_close(to_sample(prediction=given, **settings), x0)  # type: ignore[arg-type]
    torch.testing.assert_close(to_epsilon(prediction=given, **settings), noise)  # type: ignore[arg-type]
    torch.testing.assert_close(to_velocity(prediction=given, **settings), -x0)  # type: ignore[arg-type]


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
