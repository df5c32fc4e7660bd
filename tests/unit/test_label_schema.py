"""Labels with an UNKNOWN state, as data."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from synfundus.errors import ConfigError, DataError
from synfundus.labels.schema import (
    DEFAULT_LABEL_SCHEMA,
    UNKNOWN_STATE,
    LabelSchema,
    LabelSpec,
    difference,
    label_differences,
)

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
    other = LabelSchema((LabelSpec("a", 2), LabelSpec("b", 4)))
    assert difference(left, other) == "b has 3 values in the first, 4 in the second"
    turned = LabelSchema((LabelSpec("b", 3), LabelSpec("a", 2)))
    assert difference(left, turned) == "another order: a, b in the first, b, a in the second"
    assert difference(left, LabelSchema((LabelSpec("a", 2, meaning="x"), LabelSpec("b", 3)))) == ""
    ordinal = LabelSchema((LabelSpec("a", 2), LabelSpec("b", 3, ordinal=True)))
    assert difference(left, ordinal) == "b is nominal in the first, ordinal in the second"


SIDED = LabelSchema((LabelSpec("side", 2, values=("right", "left")), LabelSpec("a", 2)))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (LabelSpec("side", 2, values=("left", "right")), ["side = 0 is right in the first, left in the second"]),
        (LabelSpec("side", 2, values=("right", "other")), ["side = 1 is left in the first, other in the second"]),
        (LabelSpec("side", 2, values=("Right", "LEFT")), []),
        (LabelSpec("side", 2), []),
        (LabelSpec("side", 3), ["side has 2 values in the first, 3 in the second"]),
        (LabelSpec("side", 2, ordinal=True), ["side is nominal in the first, ordinal in the second"]),
        (LabelSpec("b", 2, values=("left", "right")), []),
    ],
)
def test_labels_of_one_name_differ_by_what_a_value_means(spec: LabelSpec, expected: list[str]) -> None:
    assert label_differences(SIDED, LabelSchema((LabelSpec("c", 5), spec))) == expected


def test_schemas_with_other_names_of_values_differ() -> None:
    mirrored = LabelSchema((LabelSpec("side", 2, values=("left", "right")), LabelSpec("a", 2)))
    assert difference(SIDED, mirrored) == "side = 0 is right in the first, left in the second"
    assert difference(SIDED, LabelSchema((LabelSpec("side", 2), LabelSpec("a", 2)))) == ""


def test_the_known_names_of_the_default_labels_count() -> None:
    mirrored = LabelSchema((LabelSpec("eye_side", 2, values=("left", "right")),))
    assert label_differences(mirrored, DEFAULT_LABEL_SCHEMA) == [
        "eye_side = 0 is left in the first, right in the second"
    ]


NAMED = LabelSpec("dr", 3, ordinal=True, values=("None", "some", "much"))


def test_values_have_names_in_requests_and_documents() -> None:
    schema = LabelSchema((NAMED, LabelSpec("other", 2)))
    assert [schema.check_value("dr", value) for value in ("MUCH", "none", "1", "2.0", 2, None)] == [2, 0, 1, 2, 2, None]
    assert schema.to_document()[0]["values"] == ["None", "some", "much"]
    assert LabelSchema.from_document(schema.to_document()) == schema
    assert LabelSchema.from_document([{"name": "dr", "values": ["None", "some", "much"]}]).num_values == (3,)
    for value in ("more", "3", "-1", "1.5", 3):
        with pytest.raises(DataError, match=r"is not one of 0\.\.2 \(None, some, much\)"):
            schema.check_value("dr", value)
    with pytest.raises(DataError, match=r"other = 'some' is not one of 0\.\.1$"):
        schema.check_value("other", "some")


def test_a_document_without_names_is_as_it_was() -> None:
    document = DEFAULT_LABEL_SCHEMA.to_document()
    assert all(set(entry) == {"name", "num_values", "ordinal", "meaning"} for entry in document)
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    assert (
        digest == "e831d0c7bcafb8ae2c105c8e221885f68e58d20e09f4e826adcd4c6454708289"
    )  # identities of older sets depend on it
    assert DEFAULT_LABEL_SCHEMA.check_value("dr_grade", "severe") == 3
    assert LabelSchema.from_document(document).check_value("eye_side", "left") == 1
    with pytest.raises(DataError):  # a grade of the user's own may count the other way round
        LabelSchema((LabelSpec("dr_grade", 5, meaning="4 none, 0 blind"),)).check_value("dr_grade", "severe")


def test_the_default_schema_can_be_printed_copied_and_read() -> None:
    text = DEFAULT_LABEL_SCHEMA.to_yaml()
    copy = LabelSchema.from_document(yaml.safe_load(text))
    assert [(spec.name, spec.num_values, spec.ordinal, spec.meaning) for spec in copy.labels] == [
        (spec.name, spec.num_values, spec.ordinal, spec.meaning) for spec in DEFAULT_LABEL_SCHEMA.labels
    ]
    assert copy["dr_grade"].values == ("none", "mild", "moderate", "severe", "proliferative")
    assert copy["is_gc"].values == ("no", "yes")


@pytest.mark.parametrize(
    "values",
    [["a", "b"], ["a", "A", "b"], ["0", "1", "2"], ["a", "", "b"], ["a", "unknown", "c"], [1, 2, 3], "abc"],
)
def test_names_of_values_that_cannot_be_meant_are_refused(values: object) -> None:
    with pytest.raises(ConfigError):
        LabelSchema.from_document([{"name": "dr", "num_values": 3, "values": values}])
