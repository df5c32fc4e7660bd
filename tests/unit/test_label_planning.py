"""Plans have the frequencies that were asked for, from rows that exist."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from synfundus.errors import ConfigError
from synfundus.labels.planning import PlanRequest, plan_rows
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, LabelSpec
from synfundus.labels.seen import States, distinct_rows

SCHEMA = LabelSchema((LabelSpec("dr_grade", 5), LabelSpec("is_gc", 2), LabelSpec("is_fundus", 2), LabelSpec("eye", 2)))
FUNDUS = 2


def clinic(seed: int, number: int, *, unknown: float = 0.1, schema: LabelSchema = SCHEMA) -> States:
    """Return label states of photographs, whose labels are of uneven frequency and depend on each other."""
    draws = np.random.default_rng(seed)
    common = draws.random(number)
    columns = []
    for values in schema.num_values:
        frequent = draws.dirichlet(np.full(values, 0.6)).cumsum()
        mixed = np.where(draws.random(number) < 0.5, common, draws.random(number))
        columns.append(1 + np.minimum(np.searchsorted(frequent, mixed), values - 1))
    states = np.stack(columns, axis=1)
    states[draws.random(states.shape) < unknown] = 0
    return states.astype(np.int16)


def plan(states: States, seed: int = 0, *, schema: LabelSchema = SCHEMA, **asked: object) -> tuple[States, list[str]]:
    rows, row_of = distinct_rows(states)
    request = PlanRequest(**{"num_images": 0, **asked})  # type: ignore[arg-type]
    made, index, notes = plan_rows(rows, np.bincount(row_of), request, schema, seed=seed)
    return made[index], notes


def shares(states: States, at: int) -> NDArray[np.float64]:
    return np.bincount(states[:, at], minlength=31) / len(states)


def rows_of(states: States) -> set[tuple[int, ...]]:
    return set(map(tuple, states.tolist()))


@given(st.integers(0, 10**6), st.integers(20, 3000), st.integers(1000, 4000), st.booleans())
@settings(max_examples=25, deadline=None)
def test_each_label_is_as_frequent_as_in_the_set(seed: int, photographs: int, number: int, independent: bool) -> None:
    states = clinic(seed, photographs, schema=DEFAULT_LABEL_SCHEMA)
    made, _ = plan(states, seed, schema=DEFAULT_LABEL_SCHEMA, num_images=number, independent=independent)
    assert len(made) == number
    for at in range(states.shape[1]):
        assert np.abs(shares(made, at) - shares(states, at)).max() < 0.01
    if not independent:
        assert rows_of(made) <= rows_of(states), "only rows that exist"


@given(st.integers(0, 10**6), st.integers(1000, 3000), st.booleans())
@settings(max_examples=15, deadline=None)
def test_every_value_of_a_balanced_label_is_equally_frequent(seed: int, number: int, independent: bool) -> None:
    states = clinic(seed, 2000)
    made, notes = plan(states, seed, num_images=number, balance=("dr_grade",), independent=independent)
    values = np.flatnonzero(shares(states, 0)[1:]) + 1
    assert np.abs(shares(made, 0)[values] - 1 / len(values)).max() < 0.01
    assert shares(made, 0)[0] == 0, "nor is it unknown"
    assert bool(notes) == (len(values) < 5), "values that nobody has are named"
    if not independent:
        assert rows_of(made) <= rows_of(states)


def test_two_labels_are_balanced_at_once_though_they_depend_on_each_other() -> None:
    draws = np.random.default_rng(0)
    grade = 1 + draws.choice(5, 4000, p=[0.6, 0.2, 0.1, 0.07, 0.03])
    glaucoma = 1 + (draws.random(4000) < 0.05 + 0.1 * (grade > 3))
    states = np.stack([grade, glaucoma, np.full(4000, 2), np.full(4000, 1)], axis=1).astype(np.int16)
    made, notes = plan(states, num_images=1000, balance=("dr_grade", "is_gc"))
    assert notes == []
    assert np.abs(shares(made, 0)[1:6] - 0.2).max() <= 0.001
    assert np.abs(shares(made, 1)[1:3] - 0.5).max() <= 0.001
    never_mixed = np.where(glaucoma == 2, 5, 1 + grade % 4)
    made, notes = plan(
        np.stack([never_mixed, glaucoma, states[:, 2], states[:, 3]], axis=1).astype(np.int16),
        num_images=1000,
        balance=("dr_grade", "is_gc"),
    )
    assert "no mixture of the real rows" in notes[0], "grade 4 is a fifth, and glaucoma a half"


@pytest.mark.parametrize("independent", [False, True])
def test_a_fraction_is_unreadable_from_real_rows_or_else_by_setting_it(independent: bool) -> None:
    states = clinic(3, 2000)
    states[:, FUNDUS] = np.where(np.arange(2000) < 40, 1, 2)
    states[:40, 0] = 0  # of an unreadable photograph nobody knows the grade
    made, _ = plan(states, num_images=1000, unreadable=0.25, balance=("is_gc",), independent=independent)
    assert (made[:, FUNDUS] == 1).sum() == 250
    if not independent:
        assert not made[made[:, FUNDUS] == 1, 0].any()
    states[:, FUNDUS] = 2
    made, _ = plan(states, num_images=1000, unreadable=0.25, independent=independent)
    assert (made[:, FUNDUS] == 1).sum() == 250
    assert (made[:500, FUNDUS] == 1).sum() < 200, "not all at the start"


@given(st.integers(0, 10**6), st.integers(20, 500))
@settings(max_examples=15, deadline=None)
def test_a_set_is_filled_up_to_a_number_of_each_value(seed: int, least: int) -> None:
    states = clinic(seed, 800)
    wanted = {name: least + 7 * at for at, name in enumerate(SCHEMA.names)}
    made, _ = plan(states, seed, fill=wanted)
    together = np.concatenate([states, made])
    for at, spec in enumerate(SCHEMA.labels):
        for state in range(1, spec.num_values + 1):
            had, has = (states[:, at] == state).sum(), (together[:, at] == state).sum()
            assert has >= wanted[spec.name] or had == 0
    assert rows_of(made) <= rows_of(states)


def test_only_the_named_labels_are_filled_and_there_may_be_nothing_to_fill() -> None:
    states = clinic(5, 500, unknown=0)
    counts = np.bincount(states[:, 1], minlength=3)[1:]
    made, _ = plan(states, fill={"is_gc": int(counts.max())})
    assert len(made) == counts.max() - counts.min()
    assert not len(plan(states, fill={"is_gc": 1})[0])


def test_matched_rows_are_as_many_of_every_value_so_that_being_planned_tells_nothing() -> None:
    states = clinic(6, 800)
    made, _ = plan(states, fill={"dr_grade": 400}, matched=True)
    added = np.bincount(made[:, 0], minlength=6)[1:]
    had = np.bincount(states[:, 0], minlength=6)[1:]
    assert set(added[had > 0].tolist()) == {400 - had[had > 0].min()}
    assert not len(plan(states, fill={"dr_grade": 1}, matched=True)[0])


def test_the_same_request_gives_the_same_rows_and_another_seed_others() -> None:
    states = clinic(1, 900)
    first, again, other = (plan(states, seed, num_images=700)[0] for seed in (7, 7, 8))
    assert (first == again).all()
    assert (first != other).any()
    assert (np.diff(distinct_rows(first)[1]) < 0).sum() > 200, "in no order"


def test_a_plan_smaller_than_the_set_has_rare_rows_too() -> None:
    """Largest remainders alone would take the most frequent rows first."""
    states = np.array([[1, 1, 2, 1]] * 600 + [[2, 2, 2, 1 + one % 2] for one in range(400)], dtype=np.int16)
    states[600:, 0] = 2 + np.arange(400) % 4
    made, _ = plan(states, num_images=10)
    assert (made[:, 1] == 2).sum() == 4


def test_labels_that_no_row_knows_cannot_be_balanced() -> None:
    states = clinic(2, 100)
    states[:50, 0] = 0
    states[50:, 1] = 0
    with pytest.raises(ConfigError, match="knows dr_grade, is_gc") as caught:
        plan(states, num_images=10, balance=("dr_grade", "is_gc"))
    assert caught.value.hint == "name fewer labels, or add --independent"
    assert len(plan(states, num_images=10, balance=("dr_grade",))[0]) == 10
    assert len(plan(states, num_images=10, balance=("dr_grade", "is_gc"), independent=True)[0]) == 10
    without = LabelSchema((LabelSpec("dr_grade", 5), LabelSpec("is_gc", 2)))
    with pytest.raises(ConfigError, match="no label is_fundus") as caught:
        plan(states[:, :2], num_images=10, unreadable=0.1, schema=without)
    assert caught.value.hint == "leave --unreadable out"
