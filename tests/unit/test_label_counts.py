from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synfundus.errors import ConfigError, DataError
from synfundus.labels.counts import count_labels
from synfundus.labels.schema import LabelSchema, LabelSpec

SCHEMA = LabelSchema((LabelSpec("dr_grade", 3, ordinal=True), LabelSpec("is_gc", 2), LabelSpec("is_amd", 2)))


def test_values_unknowns_and_findings_together_are_counted() -> None:
    rows: list[dict[str, int | None]]
    rows = [{"dr_grade": 2, "is_gc": 1}, {"dr_grade": 1, "is_gc": None, "is_amd": 1}, {"dr_grade": 0, "is_gc": 1}, {}]
    counts = count_labels(rows, SCHEMA)
    assert counts.num_samples == 4
    assert counts.values == {
        "dr_grade": {"0": 1, "1": 1, "2": 1, "unknown": 1},
        "is_gc": {"0": 0, "1": 2, "unknown": 2},
        "is_amd": {"0": 0, "1": 1, "unknown": 3},
    }
    assert counts.co_occurrence == {
        "dr_grade": {"dr_grade": 2, "is_gc": 1, "is_amd": 1},
        "is_gc": {"dr_grade": 1, "is_gc": 2, "is_amd": 0},
        "is_amd": {"dr_grade": 1, "is_gc": 0, "is_amd": 1},
    }
    assert counts.num_known("is_gc") == 2


def test_the_table_shows_every_label() -> None:
    counts = count_labels([{"dr_grade": 2, "is_gc": 0}, {"dr_grade": 1, "is_amd": 1}], SCHEMA)
    assert counts.value_rows() == [
        ["label", "0", "1", "2", "unknown"],
        ["dr_grade", "0", "1", "1", "0"],
        ["is_gc", "1", "0", "", "1"],
        ["is_amd", "0", "1", "", "1"],
    ]


def test_no_samples_give_zeros() -> None:
    counts = count_labels([], SCHEMA)
    assert counts.num_samples == 0
    assert {sum(of_label.values()) for of_label in counts.values.values()} == {0}


def test_the_document_is_json_and_a_copy() -> None:
    counts = count_labels(iter([{"is_gc": 1}]), SCHEMA)
    document = counts.to_document()
    assert json.loads(json.dumps(document)) == document
    document["values"]["is_gc"]["1"] = 99
    assert counts.values["is_gc"]["1"] == 1


def test_what_the_schema_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown label 'is_pm'"):
        count_labels([{"is_pm": 1}], SCHEMA)
    with pytest.raises(DataError, match="dr_grade = 3"):
        count_labels([{"dr_grade": 3}], SCHEMA)


ROW = st.fixed_dictionaries(
    {}, optional={spec.name: st.none() | st.integers(0, spec.num_values - 1) for spec in SCHEMA.labels}
)


@given(st.lists(ROW, max_size=20))
def test_counts_add_up_and_the_matrix_is_symmetric(rows: list[dict[str, int | None]]) -> None:
    counts = count_labels(rows, SCHEMA)
    for name in SCHEMA.names:
        assert sum(counts.values[name].values()) == len(rows)
        positives = sum(number for value, number in counts.values[name].items() if value not in ("0", "unknown"))
        assert counts.co_occurrence[name][name] == positives
        for other in SCHEMA.names:
            assert counts.co_occurrence[name][other] == counts.co_occurrence[other][name] <= positives
