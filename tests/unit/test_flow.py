"""Flow matching: the straight way, the density of its times, and the options that go with it."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipeline import tiny_denoiser

from synfundus.config.diffusion import OF_SCHEDULES, DiffusionConfig
from synfundus.config.loader import list_presets, load_config
from synfundus.config.schema import RunConfig
from synfundus.diffusion.flow import FlowPath, FlowTime, TimeDensity, shifted
from synfundus.diffusion.parametrisation import check_prediction_type, denoising_loss, min_snr_weight, training_target
from synfundus.diffusion.schedule import build_schedule
from synfundus.errors import ConfigError
from synfundus.shards.reader import Arrays
from synfundus.stages import build
from synfundus.stages.train.foreign_unet import _read_scheduler, scheduler_differences
from synfundus.training.draws import DiffusionDraws
from synfundus.training.step import LatentDiffusionStep

PATH = FlowPath(1000)
TIMESTEP = torch.tensor([0.25, 10.0, 333.3, 500.0, 900.5, 999.75])
EVEN = (np.arange(200_000) + 0.5) / 200_000
"""Stands for the uniform density: means over it are integrals."""


def draws(count: int = len(TIMESTEP)) -> tuple[torch.Tensor, torch.Tensor]:
    x0, noise = torch.randn(2, count, 3, 4, 4, generator=torch.Generator().manual_seed(3)).double()
    return x0, noise


def time_of(density: TimeDensity = "logit_normal", **changes: float) -> FlowTime:
    values = {"location": 0.0, "scale": 1.0, "shift": 1.0, **changes}
    return FlowTime(density=density, **values)


def logit(time: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(np.log(time / (1.0 - time)))


def target_of(x0: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return training_target(x0=x0, noise=noise, timestep=timestep, schedule=PATH, prediction_type="flow_velocity")


def test_the_target_is_the_derivative_of_the_way() -> None:
    x0, noise = draws()
    step = 2.0**-3
    ahead, behind = (PATH.add_noise(x0, noise, TIMESTEP + sign * step) for sign in (1, -1))
    slope = (ahead - behind) / (2 * step / PATH.num_timesteps)
    torch.testing.assert_close(slope, target_of(x0, noise, TIMESTEP), rtol=1e-2, atol=1e-2)


def test_time_0_is_the_image_and_time_1_the_noise() -> None:
    x0, noise = draws(2)
    torch.testing.assert_close(PATH.add_noise(x0, noise, torch.zeros(2)), x0, rtol=0, atol=0)
    torch.testing.assert_close(PATH.add_noise(x0, noise, torch.full((2,), 1000.0)), noise, rtol=0, atol=0)


def test_a_perfect_prediction_of_any_kind_gives_back_sample_noise_and_velocity() -> None:
    x0, noise = draws()
    velocity = target_of(x0, noise, TIMESTEP)
    x_t = PATH.add_noise(x0, noise, TIMESTEP)
    a, s = (scale(TIMESTEP)[:, None, None, None] for scale in (PATH.signal_scale, PATH.noise_scale))
    torch.testing.assert_close(x_t - s * velocity, x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x_t + a * velocity, noise, rtol=1e-5, atol=1e-5)
    for back in ((x_t - x0) / s, (noise - x_t) / a):
        torch.testing.assert_close(back, velocity, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("timestep", [0.0, 1000.0])
def test_at_both_ends_the_velocity_still_gives_sample_and_noise(timestep: float) -> None:
    x0, noise = draws(2)
    ends = torch.full((2,), timestep)
    x_t, velocity = PATH.add_noise(x0, noise, ends), target_of(x0, noise, ends)
    a, s = (scale(ends)[:, None, None, None] for scale in (PATH.signal_scale, PATH.noise_scale))
    torch.testing.assert_close(x_t - s * velocity, x0)
    torch.testing.assert_close(x_t + a * velocity, noise)


def test_uniform_times_are_the_draws_and_logit_normal_ones_have_the_moments_of_their_logit() -> None:
    assert np.array_equal(time_of("uniform")(EVEN), EVEN)
    found = logit(time_of(location=0.4, scale=0.8)(EVEN))
    assert found.mean() == pytest.approx(0.4, abs=1e-6)
    assert found.std() == pytest.approx(0.8, rel=1e-3)
    # the third and fourth moments say that it is normal
    assert ((found - 0.4) ** 3).mean() == pytest.approx(0.0, abs=1e-6)
    assert ((found - 0.4) ** 4).mean() == pytest.approx(3 * 0.8**4, rel=2e-3)


def test_logit_normal_times_are_symmetric_without_location_and_have_the_density_of_the_paper() -> None:
    time = time_of()(EVEN)
    np.testing.assert_allclose(time + time[::-1], 1.0, atol=1e-12)
    # Esser et al. 2024, Eq. 19: the share in a thin slice is the density there
    for middle in (0.2, 0.5, 0.9):
        share = float((np.abs(time - middle) < 0.005).mean()) / 0.01
        odds = middle * (1 - middle)
        density = math.exp(-(math.log(middle / (1 - middle)) ** 2) / 2) / (math.sqrt(2 * math.pi) * odds)
        assert share == pytest.approx(density, rel=5e-3)


def test_a_larger_draw_is_a_later_time_and_the_ends_are_finite() -> None:
    ends = np.array([0.0, 2.0**-53, 0.5, 1.0 - 2.0**-53])
    for density in ("uniform", "logit_normal"):
        time = time_of(density, shift=3.0)(ends)
        assert bool(np.isfinite(time).all())
        assert bool((np.diff(time) > 0).all() or density == "uniform")
        assert time[0] >= 0.0
        assert time[-1] <= 1.0


def test_a_shift_adds_its_logarithm_to_the_logit_and_shifts_multiply() -> None:
    time = EVEN[::997]
    np.testing.assert_allclose(logit(shifted(time, 3.0)), logit(time) + math.log(3.0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(shifted(shifted(time, 3.0), 2.0), shifted(time, 6.0), rtol=1e-12)
    assert shifted(np.array([0.0, 1.0]), 3.0).tolist() == [0.0, 1.0]
    np.testing.assert_allclose(time_of(shift=3.0)(time), time_of(location=math.log(3.0))(time), rtol=1e-9)


def test_draws_of_a_flow_are_fractions_keyed_by_position_and_change_nothing_else() -> None:
    settings: dict[str, Any] = {
        "seed": 4,
        "num_timesteps": 1000,
        "label_drop_prob": 0.2,
        "single_label_drop_prob": 0.2,
        "flip": False,
        "eye_side_column": None,
    }
    arrays: Arrays = {
        "moments": np.zeros((300, 4, 2, 2), dtype=np.float16),
        "states": np.ones((300, 3), dtype=np.int64),
    }
    positions = np.arange(10**9, 10**9 + 300)
    discrete = DiffusionDraws(flow_time=None, **settings)(positions, arrays)
    uniform = DiffusionDraws(flow_time=time_of("uniform"), **settings)(positions, arrays)
    normal = pickle.loads(pickle.dumps(DiffusionDraws(flow_time=time_of(), **settings)))(positions, arrays)
    assert [str(drawn["timestep"].dtype) for drawn in (discrete, uniform)] == ["int64", "float32"]
    assert np.array_equal(np.floor(uniform["timestep"]).astype(np.int64), discrete["timestep"])
    np.testing.assert_array_equal(np.argsort(normal["timestep"]), np.argsort(uniform["timestep"]))
    assert logit(normal["timestep"].astype(np.float64) / 1000).std() == pytest.approx(1.0, abs=0.1)
    for name in discrete.keys() - {"timestep"}:
        assert np.array_equal(discrete[name], normal[name]), name
    alone = DiffusionDraws(flow_time=time_of(), **settings)(positions[7:8], {n: a[7:8] for n, a in arrays.items()})
    assert np.array_equal(alone["timestep"], normal["timestep"][7:8])


def test_prediction_types_are_kept_to_their_forward_process() -> None:
    schedule = build_schedule(kind="cosine", num_timesteps=10, beta_start=0.001, beta_end=0.02, zero_terminal_snr=False)
    check_prediction_type("flow_velocity", PATH)
    for kind, process in (("flow_velocity", schedule), ("v_prediction", PATH), ("epsilon", PATH)):
        with pytest.raises(ConfigError, match=f"{kind} does not fit"):
            check_prediction_type(kind, process)


def test_min_snr_weighting_of_a_flow_is_refused() -> None:
    zeros = torch.zeros(2, 1, 2, 2)
    with pytest.raises(ConfigError, match="min-SNR"):
        denoising_loss(
            prediction=zeros,
            target=zeros,
            timestep=torch.zeros(2),
            schedule=PATH,
            prediction_type="flow_velocity",
            min_snr_gamma=5.0,
            weights=torch.ones(2),
        )
    with pytest.raises(ConfigError, match="flow_velocity"):
        min_snr_weight(torch.ones(2), gamma=5.0, prediction_type="flow_velocity")


FLOW = "train.diffusion.prediction_type=flow_velocity"


@pytest.mark.parametrize(
    ("preset", "settings", "words"),
    [
        (None, [FLOW, "train.diffusion.zero_terminal_snr=true"], ["flow_velocity: zero_terminal_snr;", "snr=false"]),
        (None, [FLOW, "train.diffusion.min_snr_gamma=5"], ["flow_velocity: min_snr_gamma;", "gamma=null"]),
        (
            None,
            [FLOW, "train.diffusion.beta_schedule=cosine"],
            ["flow_velocity: beta_schedule;", "schedule=scaled_linear"],
        ),
        (None, [FLOW, "train.diffusion.beta_end=0.1"], ["flow_velocity: beta_end;", "train.diffusion.beta_end=0.012"]),
        (
            "fundus256",
            ["train.diffusion.zero_terminal_snr=true", FLOW],
            ["flow_velocity: zero_terminal_snr;", "zero_terminal_snr (--set)"],
        ),
        (None, ["train.diffusion.flow.shift=3"], ["prediction_type epsilon: flow.shift;"]),
        (
            None,
            ["train.diffusion.prediction_type=sample", "train.diffusion.flow.time_density=uniform"],
            ["flow.time_density;"],
        ),
        (
            None,
            [FLOW, "train.diffusion.flow.time_density=uniform", "train.diffusion.flow.scale=2"],
            ["uniform: scale;"],
        ),
        (None, [FLOW, "train.diffusion.flow.shift=0"], ["train.diffusion.flow.shift = '0'"]),
    ],
)
def test_what_means_nothing_to_the_objective_is_refused_with_both_keys(
    preset: str | None, settings: list[str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(preset=preset, file=None, settings=settings, flags=[])
    assert all(word in refusal.value.message for word in words), refusal.value.message
    assert "\n" not in refusal.value.message


@pytest.mark.parametrize("preset", list_presets())
def test_one_option_turns_any_preset_to_flow_matching_and_its_sampler_fits(preset: str) -> None:
    """The noise schedule of the preset goes; what the user wrote would be refused (above)."""
    loaded = load_config(preset=preset, file=None, settings=[FLOW], flags=[])
    section = loaded.config.train.diffusion
    assert section.prediction_type == "flow_velocity"
    assert not any(loaded.provenance[f"train.diffusion.{name}"].startswith("preset") for name in OF_SCHEDULES)
    assert loaded.provenance["train.diffusion.label_drop_prob"] == f"preset {preset}"
    build.check_sampler(build.sampler_settings(loaded.config.sample).sampler, section)
    kept = load_config(preset=preset, file=None, settings=[], flags=[])
    assert kept.config.train.diffusion.zero_terminal_snr


def test_a_flow_goes_through_the_values_a_refusal_names() -> None:
    undone = [
        "train.diffusion.zero_terminal_snr=false",
        "train.diffusion.min_snr_gamma=null",
        FLOW,
        "train.diffusion.flow.shift=2",
    ]
    section = load_config(preset="fundus256", file=None, settings=undone, flags=[]).config.train.diffusion
    assert (section.flow.time_density, section.flow.location, section.flow.scale) == ("logit_normal", 0.0, 1.0)
    again = RunConfig.model_validate({"train": {"diffusion": section.model_dump(mode="json")}})
    assert again.train.diffusion == section


def test_the_identity_of_a_run_without_flow_is_that_from_before_there_was_one() -> None:
    before = {
        *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "zero_terminal_snr", "prediction_type"),
        *("latent_scaling", "min_snr_gamma", "label_drop_prob", "single_label_drop_prob", "flip"),
    }
    assert set(DiffusionConfig(prediction_type="v_prediction").identity_document()) == before
    flows = [
        DiffusionConfig.model_validate({"prediction_type": "flow_velocity", "flow": {"shift": shift}})
        for shift in (1.0, 2.0)
    ]
    assert flows[0].identity_document() != flows[1].identity_document()
    assert set(flows[0].identity_document()) == before | {"flow"}


def test_a_foreign_flow_is_compared_by_what_a_flow_has() -> None:
    flow = DiffusionConfig(prediction_type="flow_velocity")
    there = {"prediction_type": "flow_velocity", "num_train_timesteps": 1000}
    assert scheduler_differences(there, flow) == []
    assert scheduler_differences({**there, "num_train_timesteps": 500}, flow) == [
        "num_train_timesteps 500 there, 1000 here"
    ]
    assert scheduler_differences(there, DiffusionConfig()) == ["prediction_type 'flow_velocity' there, 'epsilon' here"]
    noise = {"prediction_type": "epsilon", "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 0.1}
    assert scheduler_differences(noise, flow) == ["prediction_type 'epsilon' there, 'flow_velocity' here"]


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 500}, "flow_velocity"),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"}, "flow_velocity"),
        ({"_class_name": "DDIMScheduler"}, "epsilon"),
    ],
)
def test_a_foreign_scheduler_of_a_flow_is_known_by_its_class_or_by_what_it_predicts(
    document: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(document))
    found = _read_scheduler(str(tmp_path / "unet"))
    assert (found["prediction_type"], found["num_train_timesteps"]) == (kind, document.get("num_train_timesteps", 1000))


def test_losses_fall_into_quarters_of_time_the_ends_included_and_miss_none() -> None:
    step = LatentDiffusionStep(
        tiny_denoiser(),
        schedule=PATH,
        prediction_type="flow_velocity",
        min_snr_gamma=None,
        latent_mean=[0.0, 0.0],
        latent_std=[1.0, 1.0],
        channels_last=False,
    )
    timestep = torch.tensor([0.0, 249.9, 250.0, 600.0, 999.9, 1000.0])
    count = len(timestep)
    batch = {
        "moments": torch.zeros(count, 4, 8, 8),
        "noise": torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(1)),
        "posterior_noise": torch.zeros(count, 2, 8, 8),
        "timestep": timestep,
        "states": torch.zeros(count, 3, dtype=torch.int64),
        "weights": torch.ones(count),
    }
    loss, sums = step(batch, 0)
    assert [float(sums[f"images_t{number}"]) for number in range(4)] == [2.0, 1.0, 1.0, 2.0]
    torch.testing.assert_close(sum(sums[f"loss_t{number}"] for number in range(4)), sums["loss"])
    assert bool(torch.isfinite(loss))
