"""Labels with an UNKNOWN state, as data."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synfundus.errors import ConfigError, DataError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, UNKNOWN_STATE, LabelSchema, LabelSpec, difference

names = st.text("abcdefgh_", min_size=1, max_size=8)
schemas = st.lists(
    st.builds(LabelSpec, name=names, num_values=st.integers(2, 9), ordinal=st.booleans(), meaning=st.text(max_size=9)),
    min_size=1,
    max_size=6,
    unique_by=lambda spec: spec.name,
).map(lambda specs: LabelSchema(tuple(specs)))


@given(schema=schemas, data=st.data())
def test_decode_is_the_inverse_of_encode(schema: LabelSchema, data: st.DataObject) -> None:
    labels = {
        spec.name: data.draw(st.none() | st.integers(0, spec.num_values - 1), label=spec.name) for spec in schema.labels
    }
    states = schema.encode(labels)
    assert schema.decode(states) == labels
    assert all((state == UNKNOWN_STATE) == (labels[name] is None) for name, state in zip(labels, states, strict=True))


@given(schema=schemas)
def test_a_schema_comes_back_from_its_document(schema: LabelSchema) -> None:
    assert LabelSchema.from_document(schema.to_document()) == schema
    assert difference(schema, schema) == ""


def test_the_default_is_the_fifteen_annotations_and_the_eye_side() -> None:
    assert DEFAULT_LABEL_SCHEMA.names == (
        *("dr_grade", "is_amd", "is_aon", "is_crp", "is_dm", "is_dme", "is_em", "is_gc", "is_htr", "is_pm", "is_rvo"),
        *("is_fundus", "is_optic_disc_readable", "is_macular_readable", "is_retinal_region_readable", "eye_side"),
    )
    assert DEFAULT_LABEL_SCHEMA.num_values == (5, *[2] * 15)
    assert DEFAULT_LABEL_SCHEMA.ordinal == (True, *[False] * 15)


def test_a_missing_label_and_null_are_unknown_and_not_zero() -> None:
    states = DEFAULT_LABEL_SCHEMA.encode({"dr_grade": 0, "is_gc": None})
    assert states[0] == 1
    assert set(states[1:]) == {UNKNOWN_STATE}


@pytest.mark.parametrize("value", [-1, 5, 100])
def test_a_value_the_label_does_not_have_is_refused(value: int) -> None:
    with pytest.raises(DataError, match=re.escape(f"dr_grade = {value} is not one of 0..4")):
        DEFAULT_LABEL_SCHEMA.encode({"dr_grade": value})


def test_an_unknown_name_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(ConfigError, match="unknown label 'is_cat'") as caught:
        DEFAULT_LABEL_SCHEMA.encode({"is_cat": 1})
    assert "dr_grade" in caught.value.hint


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(DataError, match="3 label states for a schema of 16"):
        DEFAULT_LABEL_SCHEMA.decode([0, 0, 0])


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"dr": 5}, "is a list"),
        (None, "is a list"),
        ([], "at least one label"),
        (["dr"], "without a name"),
        ([{"num_values": 2}], "without a name"),
        ([{"name": 3}], "without a name"),
        ([{"name": "a", "vals": 2}], "unknown keys: \\['vals'\\]"),
        ([{"name": "a", "num_values": "2"}], "must be an integer"),
        ([{"name": "a", "num_values": True}], "must be an integer"),
        ([{"name": "a", "num_values": 1}], "has 1 values"),
        ([{"name": "a"}, {"name": "a"}], "twice"),
    ],
)
def test_a_malformed_schema_is_refused_with_its_reason(document: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LabelSchema.from_document(document, where="labels.yaml")


def test_a_difference_names_both_sides() -> None:
    left = LabelSchema((LabelSpec("a", 2), LabelSpec("b", 3)))
    right = LabelSchema((LabelSpec("a", 2), LabelSpec("c", 3)))
    assert difference(left, right) == "only in the first: b; only in the second: c"
    assert "other values" in difference(left, LabelSchema((LabelSpec("a", 2), LabelSpec("b", 4))))
    assert "another order" in difference(left, LabelSchema((LabelSpec("b", 3), LabelSpec("a", 2))))
    assert difference(left, LabelSchema((LabelSpec("a", 2, meaning="x"), LabelSpec("b", 3)))) == ""
    ordinal = LabelSchema((LabelSpec("a", 2), LabelSpec("b", 3, ordinal=True)))
    assert difference(left, ordinal) == "b is nominal in the first, ordinal in the second"
