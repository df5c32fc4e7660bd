import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from synfundus.errors import DataError
from synfundus.evaluation.fit import FitRecipe
from synfundus.evaluation.judge import (
    Judge,
    build_judge,
    evaluate_label_control,
    predict_labels,
    train_judge,
)
from synfundus.evaluation.label_control import (
    LabelPrediction,
    accuracy,
    agreement_table,
    confusion,
    headline,
    label_agreement,
    rank_auc,
    weighted_kappa,
)
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, LabelSpec
from synfundus.seeding import keyed_generator

SCHEMA = LabelSchema(
    (LabelSpec("dr_grade", 4, ordinal=True), LabelSpec("eye_side", 2), LabelSpec("camera", 3), LabelSpec("is_gc", 2))
)
SIZE_PX = 32


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs_in_order_with_ties_counting_half(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in pairs], dtype=np.float64)
    positive = np.array([flag for _, flag in pairs])
    if positive.all() or not positive.any():
        assert rank_auc(scores, positive) is None
        return
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[positive].tolist() for b in scores[~positive].tolist()
    ]
    assert rank_auc(scores, positive) == pytest.approx(np.mean(wins))


def test_kappa_of_agreement_is_one_of_reversal_negative_and_of_a_constant_zero() -> None:
    actual = np.array([0, 1, 2, 3, 4, 0, 4])
    assert weighted_kappa(confusion(actual, actual, 5)) == pytest.approx(1.0)
    assert (weighted_kappa(confusion(4 - actual, actual, 5)) or 0.0) < -0.9
    assert weighted_kappa(confusion(np.full(7, 2), actual, 5)) == pytest.approx(0.0)


def test_kappa_matches_a_table_worked_by_hand() -> None:
    # observed: (0,0) twice, (1,1), (1,2), (2,0); squared distances 0, 0, 0, 1, 4 -> 5
    # expected under independence: rows (2, 2, 1), columns (3, 1, 1) over 5 -> weights sum to 7.4
    actual, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 2, 0])
    expected = sum(r * c * (i - j) ** 2 for i, r in enumerate((2, 2, 1)) for j, c in enumerate((3, 1, 1))) / 5
    assert weighted_kappa(confusion(predicted, actual, 3)) == pytest.approx(1 - 5 / expected)


def test_kappa_without_room_for_disagreement_is_not_defined() -> None:
    assert weighted_kappa(confusion(np.array([1, 1]), np.array([1, 1]), 3)) is None
    assert accuracy(np.array([], dtype=np.int64), np.array([], dtype=np.int64)) is None


def _prediction(at_least: list[list[float]], values: list[int]) -> LabelPrediction:
    return LabelPrediction(np.array(at_least), np.array(values))


def test_unknown_labels_do_not_count() -> None:
    schema = LabelSchema((LabelSpec("is_gc", 2),))
    prediction = _prediction([[0.9], [0.8], [0.1]], [1, 1, 0])
    states = np.array([[2], [0], [1]])  # 1, unknown, 0
    figures = label_agreement([prediction], states, schema=schema)["is_gc"]
    assert (figures.num_known, figures.num_positive, figures.auc, figures.accuracy) == (2, 1, 1.0, 1.0)


def test_a_grade_is_ranked_at_two_or_more() -> None:
    schema = LabelSchema((LabelSpec("dr_grade", 5, ordinal=True),))
    # the column of "2 or more" ranks perfectly, the others do not
    prediction = _prediction([[0.1, 0.9, 0, 0], [0.9, 0.8, 0, 0], [0.5, 0.1, 0, 0]], [3, 1, 1])
    states = np.array([[4], [3], [2]])  # grades 3, 2, 1
    figures = label_agreement([prediction], states, schema=schema)["dr_grade"]
    assert (figures.auc, figures.num_positive) == (1.0, 2)
    assert figures.kappa is not None


def test_predictions_of_another_number_of_images_are_refused() -> None:
    schema = LabelSchema((LabelSpec("is_gc", 2),))
    with pytest.raises(DataError):
        label_agreement([_prediction([[0.5]], [1])], np.array([[1], [2]]), schema=schema)


def test_table_puts_the_headline_first_and_every_other_label_below() -> None:
    states = np.array([[1, 1, 1, 1], [3, 2, 2, 2], [4, 1, 3, 1]])
    predictions = [
        _prediction([[0.1, 0.1, 0.1], [0.9, 0.6, 0.4], [0.9, 0.9, 0.9]], [0, 2, 3]),
        _prediction([[0.2], [0.9], [0.3]], [0, 1, 0]),
        _prediction([[0.8, 0.1, 0.1]] * 3, [0, 0, 0]),
        _prediction([[0.2], [0.9], [0.3]], [0, 1, 0]),
    ]
    agreement = label_agreement(predictions, states, schema=SCHEMA)
    columns, rows = agreement_table({"real": agreement, "generated": agreement})
    assert columns == ["label", "real", "generated"]
    assert [row[0] for row in rows] == [
        "eye side, accuracy",
        "glaucoma, AUC",
        "DR 2 or more, AUC",
        "DR grade, kappa",
        "camera, accuracy",
    ]
    assert all(row[1] == row[2] for row in rows)
    assert headline(agreement)["is_pm_auc"] is None
    assert headline(agreement)["dr_kappa"] == pytest.approx(1.0)


def _drawings(count: int, *, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return pictures whose grade is the number of dots and whose side is where a bright disc lies."""
    pixels = np.zeros((count, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    states = np.zeros((count, len(SCHEMA.labels)), dtype=np.int64)
    for index in range(count):
        draws = keyed_generator(seed, "drawing", index=index)
        grade, side, camera = (int(draws.integers(n)) for n in (4, 2, 3))
        pixels[index, 3:29, 3:29] = 90 + 15 * camera
        column = 6 if side else 21
        pixels[index, 13:18, column : column + 5] = 230
        for _ in range(4 * grade):
            row, place = draws.integers(5, 26, size=2)
            pixels[index, row : row + 2, place : place + 2, 1:] = 0
        states[index] = (grade + 1, side + 1, camera + 1, 1 + (grade > 1))
        states[index, draws.integers(len(SCHEMA.labels))] = 0
    return pixels, states


def _train(*, seed: int, images: int, reconstructions: bool = True) -> Judge:
    pixels, states = _drawings(256, seed=1)
    return train_judge(
        pixels=pixels,
        reconstructions=pixels if reconstructions else None,
        states=states,
        schema=SCHEMA,
        image_size_px=SIZE_PX,
        recipe=FitRecipe(num_samples=images, batch_size=32, lr=6e-3, weight_decay=0.02),
        seed=seed,
        on_step=lambda images, loss: None,
    )


def test_judge_learns_side_and_grade_from_images_it_has_not_seen() -> None:
    pixels, states = _drawings(200, seed=2)
    agreement = evaluate_label_control(_train(seed=0, images=3200), pixels, states)
    assert (agreement["eye_side"].accuracy or 0) > 0.95, "side: mirrored in training, or blind to position"
    assert (agreement["dr_grade"].kappa or 0) > 0.6
    assert (agreement["is_gc"].auc or 0) > 0.85
    assert agreement["camera"].auc is None


def test_same_seed_gives_the_same_judge_and_touches_no_global_stream() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = _train(seed=0, images=96), _train(seed=0, images=96), _train(seed=1, images=96)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not torch.equal(first.head.weight, other.head.weight)


def test_reconstructions_take_part_in_training() -> None:
    with_them, without = _train(seed=0, images=96), _train(seed=0, images=96, reconstructions=False)
    assert torch.equal(with_them.head.weight, without.head.weight), "equal pixels must train equally"
    pixels, states = _drawings(64, seed=1)
    trained = [
        train_judge(
            pixels=pixels,
            reconstructions=given,
            states=states,
            schema=SCHEMA,
            image_size_px=SIZE_PX,
            recipe=FitRecipe(num_samples=64, batch_size=32, lr=6e-3, weight_decay=0.02),
            seed=0,
            on_step=lambda images, loss: None,
        )
        for given in (pixels, pixels // 2)
    ]
    assert not torch.equal(trained[0].head.weight, trained[1].head.weight)


def test_judge_stays_small() -> None:
    judge = build_judge(schema=DEFAULT_LABEL_SCHEMA, image_size_px=128, seed=0)
    assert sum(parameter.numel() for parameter in judge.parameters()) < 150_000


@settings(deadline=None, max_examples=3)
@given(st.sampled_from([16, 48, 64]))
def test_images_of_other_sizes_are_judged(size_px: int) -> None:
    judge = build_judge(schema=SCHEMA, image_size_px=SIZE_PX, seed=0).eval()
    pixels = np.zeros((3, size_px, size_px, 3), dtype=np.uint8)
    predictions = predict_labels(judge, pixels)
    assert [prediction.values.shape for prediction in predictions] == [(3,)] * 4
    assert [prediction.at_least.shape[1] for prediction in predictions] == [3, 1, 3, 1]


def test_training_on_nothing_or_on_states_of_other_images_is_refused() -> None:
    pixels, states = _drawings(8, seed=1)
    for bad_pixels, bad_states in ((pixels[:0], states[:0]), (pixels, states[:4])):
        with pytest.raises(DataError):
            train_judge(
                pixels=bad_pixels,
                reconstructions=None,
                states=bad_states,
                schema=SCHEMA,
                image_size_px=SIZE_PX,
                recipe=FitRecipe(num_samples=8, batch_size=4, lr=1e-3, weight_decay=0.02),
                seed=0,
                on_step=lambda images, loss: None,
            )


def test_a_label_that_is_never_known_teaches_the_judge_nothing() -> None:
    """Unknown is not a negative: what decides the label stays as it was drawn."""
    pixels = keyed_generator(3, "pixels").integers(0, 256, (16, SIZE_PX, SIZE_PX, 3)).astype(np.uint8)
    states = np.ones((16, 4), dtype=np.int64)
    states[::2, :3] = 2
    states[:, 3] = 0
    judge = train_judge(
        pixels=pixels,
        reconstructions=None,
        states=states,
        schema=SCHEMA,
        image_size_px=SIZE_PX,
        recipe=FitRecipe(num_samples=32, batch_size=8, lr=1e-2, weight_decay=0.0),
        seed=5,
        on_step=lambda images, loss: None,
    )
    before = build_judge(schema=SCHEMA, image_size_px=SIZE_PX, seed=5).head
    changed = (judge.head.weight != before.weight).any(dim=1) | (judge.head.bias != before.bias)
    assert changed.tolist() == [True] * 7 + [False], "four grades have three outputs, three cameras have three"
