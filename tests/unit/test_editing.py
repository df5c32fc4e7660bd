"""The way from noise to an image and back: it begins where `sample` begins, and ends where it began."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from tiny_pipeline import SCHEDULE, tiny_denoiser
from torch import Tensor

from synfundus.diffusion.editing import plan_path
from synfundus.diffusion.flow_schedulers import FLOW_SAMPLERS
from synfundus.diffusion.guidance import Denoiser, Guidance
from synfundus.diffusion.sampling import SamplerName, edit_latents, sample_latents, scheduler_for
from synfundus.errors import ConfigError

FLOW: dict[str, Any] = {"prediction_type": "flow_velocity", "num_timesteps": 1000, "shift": 3.0}
STATES = torch.tensor([[3, 1, 2], [1, 2, 0]])


def drawn(seed: int) -> Tensor:
    return torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def schedule(prediction_type: str) -> dict[str, Any]:
    if prediction_type == "flow_velocity":
        return FLOW
    return {**SCHEDULE, "prediction_type": prediction_type, "zero_terminal_snr": prediction_type != "epsilon"}


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "flow_velocity"])
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(scale=2.5, interval=(0.15, 0.85))])
@torch.no_grad()
def test_a_path_from_pure_noise_is_the_one_of_sample(prediction_type: str, guidance: Guidance) -> None:
    network, settings = tiny_denoiser(), schedule(prediction_type)
    path = plan_path(settings, strength=1.0, num_steps=7)
    noise = drawn(0)
    sampler: SamplerName = "euler" if prediction_type == "flow_velocity" else "ddim"
    wanted = sample_latents(
        network,
        initial_noise=noise,
        scheduler=scheduler_for(sampler, settings),
        num_steps=7,
        states=STATES,
        guidance=guidance,
    )
    found = path.denoised(network, noise, STATES, guidance)
    assert torch.allclose(found, wanted, atol=1e-4)


SOLVERS = [("v_prediction", name) for name in get_args(SamplerName)] + [
    ("flow_velocity", name) for name in FLOW_SAMPLERS
]


@pytest.mark.parametrize(("prediction_type", "sampler"), SOLVERS)
@torch.no_grad()
def test_full_strength_is_sample_and_less_of_it_keeps_more_of_the_image(
    prediction_type: str, sampler: SamplerName
) -> None:
    """A solver that begins just before pure noise leaves a thousandth of the image; Heun, at sigma 80, an eightieth."""
    network, settings, image, noise = tiny_denoiser(), schedule(prediction_type), drawn(1), drawn(0)
    scheduler = scheduler_for(sampler, settings)

    def edited(strength: float, num_steps: int = 5) -> Tensor:
        return edit_latents(
            network,
            x0=image,
            noise=noise,
            strength=strength,
            scheduler=scheduler,
            num_steps=num_steps,
            states=STATES,
            guidance=Guidance(scale=2.0),
            step_noise=iter([drawn(10 + step) for step in range(60)]),
        )

    plain = sample_latents(
        network,
        initial_noise=noise,
        scheduler=scheduler,
        num_steps=5,
        states=STATES,
        guidance=Guidance(scale=2.0),
        step_noise=iter([drawn(10 + step) for step in range(60)]),
    )
    left = 0.02 if sampler == "heun" and prediction_type == "v_prediction" else 0.001
    assert (edited(1.0) - plain).abs().max() < left * (image.abs().max() + plain.abs().max())
    kept = [float((edited(strength) - image).abs().mean()) for strength in (0.1, 0.4, 0.8)]
    assert kept == sorted(kept)


@pytest.mark.parametrize(("prediction_type", "sampler"), SOLVERS)
@pytest.mark.parametrize("strength", [0.3, 0.6])
def test_an_edited_image_begins_at_its_noise_level_with_the_steps_asked_for(
    prediction_type: str, sampler: SamplerName, strength: float
) -> None:
    settings, seen = schedule(prediction_type), list[float]()
    total = settings["num_timesteps"]

    def denoise(x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        del states
        seen.append(float(timestep[0]))
        return torch.zeros_like(x_t)

    edit_latents(
        denoise,
        x0=drawn(1),
        noise=drawn(0),
        strength=strength,
        scheduler=scheduler_for(sampler, settings),
        num_steps=10,
        states=STATES,
        guidance=Guidance(),
        step_noise=iter([drawn(10 + step) for step in range(60)]),
    )
    assert seen[0] == pytest.approx(strength * total, abs=0.05 * total)
    levels = len(dict.fromkeys(seen))
    assert abs(levels - 10) <= (5 if sampler == "heun" else 1)


def ideal(settings: dict[str, Any]) -> Denoiser:
    """Return the best network for images that are normal around a mean of their labels, with deviation 0.7."""
    kind = settings["prediction_type"]

    def denoise(x_t: Tensor, timestep: Tensor, states: Tensor) -> Tensor:
        if kind == "flow_velocity":
            noise = timestep[:, None, None, None] / FLOW["num_timesteps"]
            signal = 1 - noise
        else:
            scheduler = scheduler_for("ddim", settings)
            share = scheduler.alphas_cumprod[timestep][:, None, None, None]
            signal, noise = share.sqrt(), (1 - share).sqrt()
        mean = states.float().mean(dim=1)[:, None, None, None]
        x0 = mean + signal * 0.49 / (signal**2 * 0.49 + noise**2) * (x_t - signal * mean)
        drawn_noise = (x_t - signal * x0) / noise
        found: dict[str, Tensor] = {"sample": x0, "epsilon": drawn_noise, "flow_velocity": drawn_noise - x0}
        velocity: Tensor = signal * drawn_noise - noise * x0
        return found.get(kind, velocity)

    return denoise


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "epsilon", "flow_velocity"])
@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_back_and_forth_under_the_same_labels_is_the_same_image_and_other_labels_change_it(
    prediction_type: str, strength: float
) -> None:
    settings, image = schedule(prediction_type), drawn(2)
    network = ideal(settings)
    path = plan_path(settings, strength=strength, num_steps=10)
    there = path.inverted(network, image, STATES)
    assert (there - image).abs().mean() > 0.05
    same = path.denoised(network, there, STATES, Guidance())
    other = path.denoised(network, there, STATES.flip(0), Guidance())
    assert (same - image).abs().max() < 1e-2
    assert (other - same).abs().min() > 0.05


@pytest.mark.parametrize("prediction_type", ["v_prediction", "flow_velocity"])
@torch.no_grad()
def test_a_way_back_ends_nearer_to_the_image_with_more_steps(prediction_type: str) -> None:
    settings, image, network = schedule(prediction_type), drawn(4), tiny_denoiser()
    errors = []
    for steps in (2, 5, 20):
        path = plan_path(settings, strength=0.8, num_steps=steps)
        back = path.denoised(network, path.inverted(network, image, STATES), STATES, Guidance())
        errors.append(float((back - image).abs().max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5


@torch.no_grad()
def test_noise_found_for_an_image_that_sample_drew_is_that_of_the_image() -> None:
    network, noise = tiny_denoiser(), drawn(3)
    path = plan_path(schedule("v_prediction"), strength=1.0, num_steps=20)
    image = path.denoised(network, noise, STATES, Guidance())
    assert (path.inverted(network, image, STATES) - noise).abs().max() < 0.02


def test_the_levels_fall_from_the_strength_to_the_image() -> None:
    path = plan_path(schedule("v_prediction"), strength=0.5, num_steps=5)
    assert [step.timestep for step in path.steps] == [24, 19, 14, 9, 4]
    for step in path.steps:
        assert step.signal**2 + step.noise**2 == pytest.approx(1.0)
    flow = plan_path(FLOW, strength=0.5, num_steps=5)
    times = [step.timestep for step in flow.steps]
    assert times == sorted(times, reverse=True)
    assert len(times) == 5
    assert times[0] == pytest.approx(500)


def test_more_steps_than_there_are_levels_are_refused_and_the_hint_helps() -> None:
    with pytest.raises(ConfigError, match="10 steps for 5 timesteps") as caught:
        plan_path(schedule("v_prediction"), strength=0.1, num_steps=10)
    assert caught.value.hint == "give fewer steps, or a larger --strength"
    assert len(plan_path(schedule("v_prediction"), strength=0.1, num_steps=5).steps) == 5
