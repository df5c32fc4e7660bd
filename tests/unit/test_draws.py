"""What is drawn for a training sample depends on its position in the run and on nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synfundus.shards.reader import Arrays
from synfundus.training.draws import AutoencoderDraws, DiffusionDraws

EYE_SIDE = 2


def draws(**changes: Any) -> DiffusionDraws:
    settings: dict[str, Any] = {
        "seed": 4,
        "num_timesteps": 100,
        "flow_time": None,
        "label_drop_prob": 0.0,
        "single_label_drop_prob": 0.0,
        "flip": False,
        "eye_side_column": EYE_SIDE,
    }
    return DiffusionDraws(**(settings | changes))


def batch(count: int) -> Arrays:
    moments = np.arange(1, count + 1, dtype=np.float16)[:, None, None, None] * np.ones((1, 4, 2, 2), dtype=np.float16)
    states = np.tile(np.array([[3, 1, 1], [0, 2, 2], [5, 0, 0]]), (count // 3 + 1, 1))[:count]
    return {"moments": moments, "states": states, "flip": -moments}


@given(start=st.integers(0, 10**12), world=st.sampled_from([1, 2, 3, 4]))
def test_every_world_size_draws_the_same_for_the_same_position(start: int, world: int) -> None:
    drawer = draws(label_drop_prob=0.2, single_label_drop_prob=0.2, flip=True)
    positions = np.arange(start, start + 12)
    arrays = batch(12)
    whole = drawer(positions, arrays)
    for rank in range(world):
        part = drawer(positions[rank::world], {name: array[rank::world] for name, array in arrays.items()})
        for name, array in whole.items():
            assert np.array_equal(part[name], array[rank::world]), name


def test_shapes_and_types_are_what_the_step_needs() -> None:
    drawn = draws()(np.arange(6), batch(6))
    assert {name: (array.shape, str(array.dtype)) for name, array in drawn.items()} == {
        "moments": ((6, 4, 2, 2), "float32"),
        "states": ((6, 3), "int64"),
        "noise": ((6, 2, 2, 2), "float32"),
        "posterior_noise": ((6, 2, 2, 2), "float32"),
        "timestep": ((6,), "int64"),
    }
    assert not np.array_equal(drawn["noise"], drawn["posterior_noise"])


def test_another_seed_draws_other_numbers() -> None:
    one, other = draws()(np.arange(6), batch(6)), draws(seed=5)(np.arange(6), batch(6))
    assert not np.array_equal(one["noise"], other["noise"])
    assert not np.array_equal(one["timestep"], other["timestep"])


def test_the_arrays_that_came_in_are_left_alone() -> None:
    arrays = batch(6)
    before = {name: array.copy() for name, array in arrays.items()}
    draws(label_drop_prob=1.0, flip=True)(np.arange(6), arrays)
    assert all(np.array_equal(arrays[name], before[name]) for name in before)


def test_timesteps_cover_the_whole_schedule_evenly() -> None:
    timesteps = draws(num_timesteps=10)(np.arange(5000), batch(5000))["timestep"]
    counts = np.bincount(timesteps, minlength=10)
    assert len(counts) == 10
    assert counts.min() > 400
    assert counts.max() < 600


@pytest.mark.parametrize(("whole", "single"), [(0.3, 0.0), (0.0, 0.3), (0.0, 0.0), (1.0, 0.0)])
def test_labels_are_dropped_as_often_as_asked(whole: float, single: float) -> None:
    arrays = batch(3000)
    arrays["states"] = np.ones((3000, 3), dtype=np.int64)
    states = draws(label_drop_prob=whole, single_label_drop_prob=single)(np.arange(3000), arrays)["states"]
    all_gone = (states == 0).all(axis=1).mean()
    each_gone = (states == 0).mean(axis=0)
    assert all_gone == pytest.approx(whole + (1 - whole) * single**3, abs=0.03)
    assert each_gone == pytest.approx([1 - (1 - whole) * (1 - single)] * 3, abs=0.03)


def test_a_flip_takes_the_mirrored_moments_and_the_other_eye_together() -> None:
    arrays = batch(600)
    drawn = draws(flip=True)(np.arange(600), arrays)
    mirrored = drawn["moments"][:, 0, 0, 0] < 0
    expected_side = np.where(
        mirrored & (arrays["states"][:, 2] > 0), 3 - arrays["states"][:, 2], arrays["states"][:, 2]
    )
    assert np.array_equal(drawn["states"][:, EYE_SIDE], expected_side)
    assert np.array_equal(drawn["states"][:, :2], arrays["states"][:, :2])
    assert 0.4 < mirrored.mean() < 0.6


def test_a_flip_without_an_eye_side_in_the_schema_leaves_the_labels_alone() -> None:
    arrays = batch(60)
    drawn = draws(flip=True, eye_side_column=None)(np.arange(60), arrays)
    assert np.array_equal(drawn["states"], arrays["states"])


def test_the_autoencoder_gets_pixels_and_posterior_noise() -> None:
    pixels = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    drawer = AutoencoderDraws(seed=1, latent_shape=(4, 2, 2))
    drawn = drawer(np.arange(4), {"pixels": pixels, "states": np.zeros((4, 3))})
    assert set(drawn) == {"pixels", "posterior_noise"}
    assert drawn["posterior_noise"].shape == (4, 4, 2, 2)
    again = drawer(np.array([2]), {"pixels": pixels[2:3], "states": np.zeros((1, 3))})
    assert np.array_equal(drawn["posterior_noise"][2:3], again["posterior_noise"])


def test_all_labels_are_those_before_any_is_dropped_and_nothing_else_changes() -> None:
    settings: dict[str, Any] = {"label_drop_prob": 0.5, "single_label_drop_prob": 0.5, "flip": True}
    plain, told = (
        draws(**settings)(np.arange(64), batch(64)),
        draws(**settings, all_labels=True)(np.arange(64), batch(64)),
    )
    states = told.pop("all_states")
    assert all(np.array_equal(plain[name], told[name]) for name in plain)
    assert np.array_equal(states, draws(flip=True)(np.arange(64), batch(64))["states"])
    assert (plain["states"] != states).any()
