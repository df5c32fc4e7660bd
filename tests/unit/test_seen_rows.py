"""Who has which labels: by patients, never too many of them, and every row that nobody has is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synfundus.errors import ConfigError
from synfundus.labels.plan import plan_requests, plan_table
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, LabelSpec
from synfundus.labels.seen import (
    FEW,
    NEVER,
    NEVER_TOGETHER,
    YES,
    SeenRows,
    States,
    distinct_rows,
    mark_rows,
    never_seen,
)
from synfundus.labels.unseen import check_unseen, unseen_in

SCHEMA = LabelSchema((LabelSpec("a", 3), LabelSpec("b", 2), LabelSpec("c", 12)))


def patients_with(row: list[int], states: States, patients: list[str]) -> int:
    """Count who has a photograph whose known labels are those of a row."""
    return len(
        {
            patient
            for patient, photograph in zip(patients, states.tolist(), strict=True)
            if all(asked in (0, has) for asked, has in zip(row, photograph, strict=True))
        }
    )


def case(seed: int, each: int = 25) -> tuple[States, list[str]]:
    draws = np.random.default_rng(seed)
    number = int(draws.integers(1, 120))
    states = draws.integers(0, [4, 3, int(draws.integers(2, 14))], (number, 3)).astype(np.int16)
    return np.minimum(states, [3, 2, 12]).astype(np.int16), [f"p{one}" for one in draws.integers(0, each, number)]


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_marks_are_those_of_counting_patients_one_by_one(seed: int) -> None:
    states, patients = case(seed)
    rows = distinct_rows(np.random.default_rng(seed).integers(0, [4, 3, 13], (60, 3)).astype(np.int16))[0]
    rows = rows[np.random.default_rng(seed + 1).permutation(len(rows))]
    marks = mark_rows(rows, SeenRows.of(states, patients), SCHEMA.num_values)
    each = mark_rows(rows, SeenRows.of(states), SCHEMA.num_values)
    for row, mark, of_photographs in zip(rows.tolist(), marks, each, strict=True):
        number = patients_with(row, states, patients)
        unseen = any(state and not (states[:, at] == state).any() for at, state in enumerate(row))
        assert (mark == NEVER) == unseen
        assert (mark == NEVER_TOGETHER) == (number == 0 and not unseen)
        assert mark != YES or number >= 20, "never more patients than there are"
        photographs = patients_with(row, states, list(map(str, range(len(states)))))
        assert unseen or of_photographs == (YES if photographs >= 20 else FEW if photographs else NEVER_TOGETHER)


def test_patients_count_and_not_their_photographs() -> None:
    row = np.array([[1, 2, 3]], dtype=np.int16)
    for number, mark in ((19, FEW), (20, YES)):
        visits = [f"p{one}" for one in range(number)] * 3
        seen = SeenRows.of(np.repeat(row, len(visits), axis=0), visits)
        assert mark_rows(row, seen, SCHEMA.num_values).tolist() == [mark]
    eyes = np.array([[1, 1, 1], [2, 1, 1]] * 20, dtype=np.int16)
    seen = SeenRows.of(eyes, [f"p{one // 2}" for one in range(40)])
    asked = np.array([[0, 1, 1], [1, 1, 1]], dtype=np.int16)
    assert mark_rows(asked, seen, SCHEMA.num_values).tolist() == [YES, YES], "20 patients with two rows each"
    seen = SeenRows.of(eyes[:38], [f"p{one // 2}" for one in range(38)])
    assert mark_rows(asked, seen, SCHEMA.num_values).tolist() == [FEW, FEW]


def test_an_unknown_label_of_a_photograph_proves_nothing() -> None:
    seen = SeenRows.of(np.array([[1, 0, 1], [2, 1, 1]] * 30, dtype=np.int16))
    asked = np.array([[1, 1, 1], [1, 0, 1], [1, 2, 0], [0, 0, 0]], dtype=np.int16)
    assert mark_rows(asked, seen, SCHEMA.num_values).tolist() == [NEVER_TOGETHER, YES, NEVER, YES]


def test_a_thousand_of_a_thousand_planted_rows_are_found() -> None:
    draws = np.random.default_rng(0)
    schema = DEFAULT_LABEL_SCHEMA
    columns = [1 + (draws.random(5000) < 0.12) * draws.integers(1, n, 5000) for n in schema.num_values]
    states: States = np.stack(columns, axis=1).astype(np.int16)
    states[states[:, 0] == 5, 0] = 4  # nobody has grade 4
    states[(states[:, 1] == 2) & (states[:, 7] == 2), 7] = 1  # nor is_amd with is_gc
    rows = states[draws.integers(0, 5000, 20_000)]
    places = draws.choice(20_000, 1000, replace=False)
    rows[places[:500], 0] = 5
    rows[places[500:], 1] = rows[places[500:], 7] = 2
    found, row_of = distinct_rows(rows)
    seen = SeenRows.of(states)
    marks = mark_rows(found, seen, schema.num_values)[row_of]
    assert set(np.flatnonzero(np.isin(marks, [NEVER, NEVER_TOGETHER])).tolist()) == set(places.tolist())
    assert set(marks[places[:500]]) == {NEVER}
    assert set(marks[places[500:]]) == {NEVER_TOGETHER}
    never = {"photographs": {"never": never_seen(seen, schema)}}
    told = [bool(unseen_in(never, schema.decode(row))) for row in found.tolist()]
    assert set(np.flatnonzero(np.array(told)[row_of]).tolist()) == set(places.tolist()), "a model knows as much"


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_a_document_keeps_the_counts_and_a_patient_who_leaves_is_taken_out(seed: int) -> None:
    states, patients = case(seed, each=8)
    seen = SeenRows.of(states, patients)
    read = SeenRows.of_document(seen.to_document(), 3)
    stays = np.array([patient != "p3" for patient in patients])
    left = read.without(states[~stays])
    again = SeenRows.of(states[stays], [one for one in patients if one != "p3"])
    for found, expected in ((read, seen), (left, again)):
        assert found.states.tolist() == expected.states.tolist()
        assert found.patients.tolist() == expected.patients.tolist()
        assert np.allclose(found.shares, expected.shares, atol=1e-6)


def test_values_and_pairs_that_nobody_has_are_summed_up() -> None:
    seen = SeenRows.of(np.array([[1, 1, 0], [2, 0, 1], [0, 2, 1]], dtype=np.int16))
    never = never_seen(seen, SCHEMA)
    assert never["values"] == {"a": [2], "c": list(range(1, 12))}
    assert never["pairs"] == {"a=0": ["b=1", "c=0"], "a=1": ["b=0", "b=1"], "b=0": ["c=0"]}


def asked(text: str, **given: int) -> list[str]:
    requests = plan_requests(plan=text.encode(), labels=given, num_images=None, schema=SCHEMA, where="plan.csv")
    return check_unseen(requests, {"photographs": {}}, allowed=False, where="plan.csv")


def test_marked_rows_are_refused_by_number_place_and_values() -> None:
    with pytest.raises(ConfigError, match=r"3 of 5 images .* row 3: a=1, c=11 \(each of these values occurs") as caught:
        asked("a,b,c,seen\n1,,2,yes\n1,,11,never_together\n2,,,never\n1,,11,never_together\n0,,,few\n")
    assert "--allow-unseen" in caught.value.hint
    warnings = asked("a,b,c,seen\n1,,2,yes\n0,,,few\n0,,,few\n0,1,,\n")
    assert [line.partition(" images")[0] for line in warnings] == ["2 of 4"]
    requests = plan_requests(plan=b"a,seen\n1,never\n2,yes\n", labels={}, num_images=1, schema=SCHEMA, where="p")
    (warning,) = check_unseen(requests, {"photographs": {}}, allowed=True, where="p")
    assert warning.startswith("1 of 1 images")
    requests = plan_requests(plan=b"a,seen\n1,yes\n2,never\n", labels={}, num_images=1, schema=SCHEMA, where="p")
    assert check_unseen(requests, {"photographs": {}}, allowed=False, where="p") == [], "rows that are not drawn"


def test_without_marks_the_model_is_asked_and_one_that_does_not_know_says_so() -> None:
    never = {"photographs": {"never": {"values": {"c": [4]}, "pairs": {"a=1": ["b=1", "c=0"]}}}}
    assert unseen_in(never, {"a": 1, "b": 0, "c": 4}) == "c=4"
    assert unseen_in(never, {"a": 1, "b": 1, "c": None}) == "a=1 together with b=1"
    assert unseen_in(never, {"a": 1, "b": None, "c": None}) == unseen_in(never, {"a": 0, "b": 1, "c": 0}) == ""
    earlier = {"photographs": {"positives": {"b": "0", "a": "none known", "c": "7"}}}
    assert [unseen_in(earlier, {"a": a, "b": b}) for a, b in ((0, 0), (1, 0), (None, 1))] == ["", "a=1", "b=1"]
    for labels, number in (({"a": 1}, 1), ({}, 0)):
        requests = plan_requests(plan=None, labels=labels, num_images=3, schema=SCHEMA, where="p")
        assert len(check_unseen(requests, {}, allowed=False, where="p")) == number


def test_a_million_rows_are_marked_and_written_by_their_distinct_rows() -> None:
    """Not timed: that all of it works on distinct rows is what makes it fast."""
    states = np.array([[1, 1, 1], [2, 2, 12]], dtype=np.int16)
    index = np.zeros(1_000_000, dtype=np.int64)
    index[-1] = 1
    table = plan_table(states, index, mark_rows(states, SeenRows.of(states), SCHEMA.num_values), SCHEMA)
    assert table.startswith(b"a,b,c,seen\n0,0,0,few\n")
    assert table.endswith(b"\n1,1,11,few\n")
    assert table.count(b"\n") == 1_000_001
