"""The weighted denoising loss."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from synfundus.diffusion.flow import FlowPath
from synfundus.diffusion.parametrisation import (
    NoisePrediction,
    denoising_loss,
    min_snr_weight,
    training_target,
    unweighted_start,
)
from synfundus.diffusion.schedule import build_schedule

SCHEDULE = build_schedule(
    kind="cosine", num_timesteps=1000, beta_start=0.00085, beta_end=0.012, zero_terminal_snr=False
)
ENDLESS = build_schedule(kind="cosine", num_timesteps=1000, beta_start=0.00085, beta_end=0.012, zero_terminal_snr=True)
TIMESTEP = torch.tensor([5, 100, 400, 600, 800])


def draws() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x0, noise, wrong = torch.randn(3, len(TIMESTEP), 2, 4, 4, generator=torch.Generator().manual_seed(5)).double()
    return x0, noise, wrong


def test_without_gamma_it_is_the_mean_squared_error() -> None:
    _, target, prediction = draws()
    each, mean = denoising_loss(
        prediction=prediction,
        target=target,
        timestep=TIMESTEP,
        schedule=SCHEDULE,
        prediction_type="epsilon",
        min_snr_gamma=None,
        weights=torch.ones(5),
    )
    torch.testing.assert_close(mean, torch.nn.functional.mse_loss(prediction.float(), target.float()))
    assert each.shape == (5,)


def test_min_snr_gives_every_prediction_type_the_same_loss_for_the_same_guess() -> None:
    x0, noise, guess = draws()
    x_t = SCHEDULE.add_noise(x0, noise, TIMESTEP)
    a, s = (scale(TIMESTEP)[:, None, None, None] for scale in (SCHEDULE.signal_scale, SCHEDULE.noise_scale))
    predictions = {"sample": guess, "epsilon": (x_t - a * guess) / s, "v_prediction": (a * x_t - guess) / s}
    losses = [
        denoising_loss(
            prediction=predictions[kind],
            target=training_target(x0=x0, noise=noise, timestep=TIMESTEP, schedule=SCHEDULE, prediction_type=kind),
            timestep=TIMESTEP,
            schedule=SCHEDULE,
            prediction_type=kind,
            min_snr_gamma=5.0,
            weights=torch.ones(5),
        )[0]
        for kind in get_args(NoisePrediction)
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", get_args(NoisePrediction))
def test_weights_are_finite_and_capped_at_every_timestep(kind: NoisePrediction) -> None:
    snr = ENDLESS.snr(torch.arange(1000))
    weight = min_snr_weight(snr, gamma=5.0, prediction_type=kind)
    assert bool(torch.isfinite(weight).all())
    assert float(weight.max()) <= 5.0
    assert float(weight.min()) >= 0.0


def test_epsilon_weight_is_one_below_gamma_and_falls_above() -> None:
    weight = min_snr_weight(torch.tensor([0.0, 1.0, 5.0, 50.0]), gamma=5.0, prediction_type="epsilon")
    torch.testing.assert_close(weight, torch.tensor([1.0, 1.0, 1.0, 0.1]))


def test_a_sample_of_weight_zero_changes_neither_loss_nor_gradient() -> None:
    _, target, prediction = draws()
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])
    means, gradients = [], []
    for spoiled in (0.0, 1e6):
        leaf = prediction.clone().requires_grad_()
        shifted = target.clone()
        shifted[1] += spoiled
        _, mean = denoising_loss(
            prediction=leaf,
            target=shifted,
            timestep=TIMESTEP,
            schedule=SCHEDULE,
            prediction_type="v_prediction",
            min_snr_gamma=5.0,
            weights=weights,
        )
        torch.autograd.backward(mean)
        assert leaf.grad is not None
        means.append(mean.detach())
        gradients.append(leaf.grad)
    torch.testing.assert_close(means[0], means[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_batch_of_empty_slots_has_loss_zero() -> None:
    _, target, prediction = draws()
    _, mean = denoising_loss(
        prediction=prediction,
        target=target,
        timestep=TIMESTEP,
        schedule=SCHEDULE,
        prediction_type="epsilon",
        min_snr_gamma=None,
        weights=torch.zeros(5),
    )
    assert float(mean) == 0.0


def test_the_error_is_taken_in_float32_whatever_the_network_computes_in() -> None:
    target = torch.full((1, 1, 2, 2), 1.0)
    prediction = torch.full((1, 1, 2, 2), 1.0078125, dtype=torch.bfloat16)
    _, mean = denoising_loss(
        prediction=prediction,
        target=target,
        timestep=torch.tensor([0]),
        schedule=SCHEDULE,
        prediction_type="epsilon",
        min_snr_gamma=None,
        weights=torch.ones(1),
    )
    assert float(mean) == pytest.approx(0.0078125**2, rel=1e-6)


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_a_start_without_weight_is_named(kind: NoisePrediction, zero: bool) -> None:
    schedule = build_schedule(
        kind="scaled_linear", num_timesteps=1000, beta_start=0.00085, beta_end=0.012, zero_terminal_snr=zero
    )
    doubt = unweighted_start(schedule=schedule, prediction_type=kind, min_snr_gamma=5.0)
    assert (doubt is not None) is zero
    assert doubt is None or "the weight 0" in doubt
    assert unweighted_start(schedule=schedule, prediction_type=kind, min_snr_gamma=None) is None


def test_a_flow_has_no_such_start() -> None:
    assert unweighted_start(schedule=FlowPath(1000), prediction_type="flow_velocity", min_snr_gamma=None) is None
