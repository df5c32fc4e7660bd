"""The rows of the demo's picture, for tables that have only some of the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, DISEASES, READABLE, LabelSchema, LabelSpec
from synfundus.phantoms.clinic import exam_of, recorded_labels_of, true_labels_of
from synfundus.stages.demo.conditions import UNCONDITIONAL, Condition, conditions_of, known_conditions
from synfundus.stages.demo.plan import IMAGES_PER_CONDITION, plan_generation

HEALTHY = {**dict.fromkeys(DISEASES, 0), **dict.fromkeys(READABLE, 1)}
Table = Sequence[Mapping[str, int | None]]


def _states(table: Table, schema: LabelSchema = DEFAULT_LABEL_SCHEMA) -> NDArray[np.int64]:
    return np.array([schema.encode(row) for row in table], dtype=np.int64)


def _rows(table: Table, schema: LabelSchema = DEFAULT_LABEL_SCHEMA) -> dict[str, Condition]:
    return {row.title: row for row in known_conditions(schema, _states(table, schema))}


GRADES = [{"dr_grade": number % 5, "eye_side": number % 2} for number in range(30)]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (GRADES, {"dr_grade": {0, 1, 2, 3, 4}}),
        ([{"is_gc": number % 2} for number in range(8)], {"is_gc": {0, 1}}),
        ([{"eye_side": number % 2} for number in range(8)], {"eye_side": {0, 1}}),
        ([{"is_optic_disc_readable": number % 2} for number in range(8)], {"is_optic_disc_readable": {1}}),
    ],
)
def test_a_table_gets_rows_for_the_labels_it_has_and_for_no_other(table: Table, expected: dict[str, set[int]]) -> None:
    states = _states(table)
    plan = plan_generation(
        held_out_states=states, known_states=states, schema=DEFAULT_LABEL_SCHEMA, num_control=4, seed=0
    )
    assert len(plan.rows) == 4 + IMAGES_PER_CONDITION * len(plan.conditions)
    known = {name for row in table for name in row}
    for row in plan.rows:
        assert {name for name, value in row.items() if value is not None} == known
    for name, values in expected.items():
        assert {row[name] for row in plan.rows[4:]} == values


def test_two_sets_in_one_table_are_each_asked_for_what_they_have() -> None:
    table = [{"dr_grade": n % 5} for n in range(50)] + [{**HEALTHY, "is_gc": n % 2, "eye_side": 0} for n in range(90)]
    rows = _rows(table)
    assert rows["diabetic retinopathy, proliferative (4)"].requested == {"dr_grade": 4}
    assert rows["glaucoma"].requested == {**HEALTHY, "is_gc": 1}
    assert rows["glaucoma"].sides
    assert rows["healthy, right eye"].requested == {**HEALTHY, "eye_side": 0}
    assert "healthy, left eye" not in rows


def test_only_what_is_known_to_be_healthy_is_called_so() -> None:
    titles = list(_rows([{"dr_grade": n % 5, "is_dme": 0} for n in range(20)] + [{"is_gc": 0}] * 9))
    assert titles[:2] == ["DR 0", "no glaucoma"]
    assert not any("healthy" in title for title in titles)


def test_a_finding_beside_no_grade_is_not_asked_for_with_one() -> None:
    rows = _rows([{"is_dme": n % 2} for n in range(10)] + GRADES)
    assert rows["diabetic macular edema"].requested == {"is_dme": 1}


def test_unreadable_photographs_stand_for_no_finding() -> None:
    rows = _rows([{"is_gc": 1, "is_fundus": 0}, {"is_gc": 0, "is_fundus": 1}])
    assert "glaucoma" not in rows
    assert rows["unreadable photograph"].requested == {"is_fundus": 0}


def test_labels_of_ones_own_have_rows_beside_the_named_ones() -> None:
    schema = LabelSchema((*DEFAULT_LABEL_SCHEMA.labels, LabelSpec("stage", 3)))
    rows = _rows([{"dr_grade": n % 5} for n in range(10)] + [{"stage": n % 3} for n in range(9)], schema)
    assert [title for title in rows if title.startswith("stage")] == ["stage = 0", "stage = 1", "stage = 2"]
    assert rows["stage = 1"].requested == {"stage": 1}


def test_without_any_known_label_images_are_unconditional_and_that_is_said() -> None:
    rows = _rows([{}] * 4)
    assert list(rows) == [UNCONDITIONAL]
    assert not rows[UNCONDITIONAL].requested


@pytest.mark.parametrize("seed", [0, 1])
def test_phantoms_have_the_rows_of_the_schema_with_all_their_labels(seed: int) -> None:
    exams = [exam_of(seed, number) for number in range(2000)]
    rows = known_conditions(
        DEFAULT_LABEL_SCHEMA, _states([recorded_labels_of(seed, one, true_labels_of(seed, one)) for one in exams])
    )
    named = conditions_of(DEFAULT_LABEL_SCHEMA)
    assert [(row.title, row.defining, row.requested) for row in rows] == [
        (row.title, row.defining, row.requested) for row in named
    ]
    # nobody records the side of a photograph that shows no eye
    assert [row.title for row in rows if not row.sides] == [*(row.title for row in named[:2]), named[-1].title]
