"""The judge that sees only the field of view and the mean colour, and what its figures warn of."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from synfundus.evaluation.camera import camera_features, fit_linear, shortcuts, source_features
from synfundus.evaluation.intervals import auc_interval, share_interval
from synfundus.evaluation.label_control import (
    LabelAgreement,
    LabelPrediction,
    agreement_table,
    label_agreement,
    not_told,
)
from synfundus.labels.schema import LabelSchema, LabelSpec
from synfundus.seeding import keyed_generator

SCHEMA = LabelSchema(
    (LabelSpec("dr_grade", 3, ordinal=True), LabelSpec("is_gc", 2), LabelSpec("camera", 3), LabelSpec("is_fundus", 2))
)


def _photographs(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return photographs cut at the top where the grade is high, lit by camera, with a glaucoma nobody can see."""
    draws = keyed_generator(seed, "photographs")
    grade, glaucoma, camera = draws.integers(0, 3, count), draws.integers(0, 2, count), draws.integers(0, 3, count)
    pixels = np.zeros((count, 32, 32, 3), dtype=np.uint8)
    for number in range(count):
        pixels[number, 2 * grade[number] : 30, 4:28] = (90 + 40 * camera[number], 120, 200 - 40 * camera[number])
    return pixels, np.stack([grade + 1, glaucoma + 1, camera + 1, np.full(count, 2)], axis=1).astype(np.int64)


def test_it_tells_what_the_mask_and_the_colour_tell_and_nothing_else() -> None:
    pixels, states = _photographs(300, 0)
    unseen, truth = _photographs(200, 1)
    blind = fit_linear(camera_features(pixels), states, SCHEMA).agreement(camera_features(unseen), truth)
    assert (blind["dr_grade"].auc or 0) > 0.95
    assert (blind["camera"].accuracy or 0) > 0.95
    assert abs((blind["is_gc"].auc or 0) - 0.5) < 0.12
    moved = unseen[:, :, ::-1].copy()
    moved[:, 10:20, 10:20] = moved[:, 10:20, 10:20][:, ::-1]
    assert np.allclose(camera_features(moved), camera_features(unseen)), "it sees what is inside the field of view"


def test_a_label_that_goes_with_a_collection_is_told_by_its_name() -> None:
    sources = ("a", "b") * 50
    states = np.array([[3 if source == "a" else 1, 1 + number % 4 // 2, 0, 0] for number, source in enumerate(sources)])
    judge = fit_linear(source_features(sources, ["a", "b"]), states, SCHEMA)
    figures = judge.agreement(source_features(sources, ["a", "b"]), states)
    assert figures["dr_grade"].auc == 1.0
    assert figures["is_gc"].auc == pytest.approx(0.5)
    assert [text.split()[0] for text in shortcuts(figures, figures, states, SCHEMA)] == ["dr_grade"]


@pytest.mark.parametrize(
    ("blind", "judged", "warned"),
    [(0.9, 0.99, True), (0.7, 0.74, True), (0.7, 0.9, False), (0.5, 0.52, False), (0.7, None, True)],
)
def test_it_warns_where_it_comes_close_or_is_high(blind: float, judged: float | None, warned: bool) -> None:
    schema = LabelSchema((LabelSpec("is_gc", 2),))
    states = np.array([[1], [2]] * 100)

    def agreement(auc: float | None) -> dict[str, LabelAgreement]:
        bounds = None if auc is None else auc_interval(auc, 100, 100)
        return {"is_gc": LabelAgreement(200, 100, auc, 0.5, None, auc_interval=bounds)}

    assert bool(shortcuts(agreement(blind), agreement(judged), states, schema)) == warned
    few = {"is_gc": LabelAgreement(8, 4, blind, 0.5, None, auc_interval=(0.4, 1.0))}
    assert not shortcuts(few, agreement(judged), states, schema), "what may be chance is no warning"


@pytest.mark.parametrize(
    ("auc", "right", "count", "unsure"),
    [(0.9, 0.9, 200, ""), (0.9, 0.9, 6, "is_gc camera"), (0.52, 0.9, 200, "is_gc"), (0.9, 0.53, 200, "camera")],
)
def test_labels_that_the_judge_itself_does_not_tell(auc: float, right: float, count: int, unsure: str) -> None:
    schema = LabelSchema((LabelSpec("is_gc", 2), LabelSpec("camera", 3)))
    half, interval = count // 2, share_interval(round(right * count), count)
    judged = {
        "is_gc": LabelAgreement(count, half, auc, 0.5, None, auc_interval=auc_interval(auc, half, half)),
        "camera": LabelAgreement(count, 0, None, right, None, accuracy_interval=interval),
    }
    found = not_told(judged, np.array([[1, 2], [2, 3]] * half), schema)
    assert [text.split()[0] for text in found] == unsure.split()


def test_of_one_value_there_is_no_figure() -> None:
    states = np.array([[1, 2, 1, 1]] * 5)
    predictions = [
        LabelPrediction(np.full((5, spec.num_values - (spec.name != "camera")), 0.1), np.zeros(5, int))
        for spec in SCHEMA.labels
    ]
    agreement = label_agreement(predictions, states, schema=SCHEMA)
    assert all((one.auc, one.accuracy, one.kappa) == (None, None, None) for one in agreement.values())
    assert agreement["is_gc"].to_document()["accuracy"] is None
    assert all(cell == "-" for row in agreement_table({"real": agreement})[1] for cell in row[1:])


def test_intervals_hold_the_values_of_their_papers_and_are_open_where_agreement_is_perfect() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", Table I, method 3: 81/263, 15/148
    assert share_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert share_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    # at 1/2 the deviation is that of the Mann-Whitney statistic without ties: (m + n + 1) / (12 m n)
    low, high = auc_interval(0.5, 4000, 4000)
    assert high - low == pytest.approx(2 * 1.96 * (8001 / (12 * 4000 * 4000)) ** 0.5, rel=0.01)
    low, high = auc_interval(1.0, 8, 8)
    assert low < 0.85
    assert high == 1.0
