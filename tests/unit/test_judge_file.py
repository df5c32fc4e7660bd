from __future__ import annotations

import numpy as np
import pytest
import torch

from synfundus.errors import DataError
from synfundus.evaluation.fit import FitRecipe
from synfundus.evaluation.judge import Judge, train_judge
from synfundus.evaluation.judge_file import contradicted, measure_doubts, pack_judge, probability_of, unpack_judge
from synfundus.evaluation.label_control import LabelPrediction
from synfundus.labels.schema import LabelSchema, LabelSpec
from synfundus.seeding import keyed_generator

SCHEMA = LabelSchema((LabelSpec("bright", 2), LabelSpec("chance", 2)))


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bright and dark images; the second label is drawn by lot."""
    draw = keyed_generator(seed, "test")
    values = draw.integers(0, 2, (count, 2))
    pixels = draw.integers(0, 60, (count, 32, 32, 3)) + 120 * values[:, :1, None, None]
    return pixels.astype(np.uint8), values + 1


@pytest.fixture(scope="module")
def judge() -> Judge:
    pixels, states = images(128, 0)
    return train_judge(
        pixels=pixels,
        reconstructions=None,
        states=states,
        schema=SCHEMA,
        image_size_px=32,
        recipe=FitRecipe(num_samples=512, batch_size=16, lr=5e-3, weight_decay=0.02),
        seed=0,
        on_step=lambda _images, _loss: None,
    )


def test_a_judge_contradicts_what_it_can_tell_and_nothing_else(judge: Judge) -> None:
    pixels, states = images(200, 1)
    doubts = measure_doubts(judge, pixels, states)
    assert doubts.keys() == {"bright"}  # the other is no better than a guess
    new, truth = images(40, 2)
    rows = [SCHEMA.decode(states.tolist()) for states in truth]
    assert contradicted(judge, doubts, new, rows) == [()] * 40
    wrong = [row | {"bright": 1 - (row["bright"] or 0)} for row in rows]
    assert contradicted(judge, doubts, new, wrong) == [("bright",)] * 40
    assert contradicted(judge, doubts, new, [{"bright": None, "another": 1}] * 40) == [()] * 40


def test_a_saved_judge_judges_alike_and_a_damaged_one_is_refused(judge: Judge) -> None:
    data = pack_judge(judge, {"bright": 0.25})
    assert data == pack_judge(judge, {"bright": 0.25})
    back, doubts = unpack_judge(data, where="label-judge.safetensors")
    pixels = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(back(pixels), judge(pixels), rtol=0, atol=0)
    assert (back.schema, doubts) == (SCHEMA, {"bright": 0.25})
    for damaged in (data[:-8], b"", data.replace(b"synfundus-judge-weights", b"synfundus-judge-wreckage")):
        with pytest.raises(DataError, match="no judge"):
            unpack_judge(damaged, where="label-judge.safetensors")


def test_probabilities_of_the_values_of_a_grade_sum_to_one() -> None:
    spec = LabelSpec("grade", 3, ordinal=True)
    prediction = LabelPrediction(np.array([[0.9, 0.2], [0.3, 0.6]]), np.array([1, 1]))
    each = np.array([probability_of(prediction, spec, np.full(2, state)) for state in (1, 2, 3)])
    np.testing.assert_allclose(each.sum(axis=0), 1)
    np.testing.assert_allclose(each[:, 0], [0.1, 0.7, 0.2])
    np.testing.assert_array_equal(probability_of(prediction, spec, np.zeros(2, dtype=np.int64)), [1, 1])
