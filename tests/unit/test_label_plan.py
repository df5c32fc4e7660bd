from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synfundus.errors import ConfigError, DataError, SynfundusError
from synfundus.labels.csv_table import read_records, read_rows
from synfundus.labels.plan import LabelRow, label_table, plan_labels, plan_table, read_label_plan, read_plan
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, LabelSpec

SCHEMA = LabelSchema((LabelSpec("dr_grade", 5, ordinal=True), LabelSpec("is_gc", 2), LabelSpec("eye_side", 2)))


def _read(text: str) -> list[LabelRow]:
    return read_label_plan(text.encode(), SCHEMA, where="plan.csv")


def _plan(text: str | None, labels: Mapping[str, int | str | None], num_images: int | None) -> list[LabelRow]:
    plan = None if text is None else text.encode()
    return plan_labels(plan=plan, labels=labels, num_images=num_images, schema=SCHEMA, where="plan.csv")


def test_empty_cells_and_missing_columns_are_unknown() -> None:
    rows = _read("file,eye_side,dr_grade\na.png,1,\nb.png,unknown,4\n")
    assert rows == [
        {"dr_grade": None, "is_gc": None, "eye_side": 1},
        {"dr_grade": 4, "is_gc": None, "eye_side": None},
    ]


def test_byte_order_mark_and_blank_lines_do_not_matter() -> None:
    assert len(_read("\ufeffis_gc\n1\n\n0\n")) == 2


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("is_pm,is_gc\n1,0\n", ConfigError, r"is_pm; its labels are dr_grade, is_gc, eye_side"),
        ("is_gc\n0\n1\n7\n", DataError, "row 4"),
        ("is_gc\nperhaps\n", DataError, "row 2"),
        ("dr_grade\n-1\n", DataError, "row 2"),
        ("is_gc,eye_side\n1\n", DataError, "row 2"),
        ("is_gc,is_gc\n1,1\n", DataError, "twice"),
        ("is_gc\n", DataError, "no rows"),
        ("is_gc,eye_side\n1,0\n0,2\n7,0\n", DataError, "row 3"),
        ("is_gc,eye_side\n1,0\n7,0\n0,2,1\n", DataError, "row 3"),
        ("is_gc,seen\n1,yes\n0,often\n", DataError, "row 3"),
        ("", DataError, "no header"),
        ('is_gc\n"1\n', DataError, "not a CSV"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused_by_name(text: str, kind: type[SynfundusError], said: str) -> None:
    with pytest.raises(kind, match=r"plan\.csv") as caught:
        _read(text)
    assert caught.match(said)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(DataError, match="UTF-8"):
        read_label_plan(b"is_gc\n\xff\xfe\n", SCHEMA, where="plan.csv")


def test_without_labels_everything_is_unknown() -> None:
    rows = _plan(None, {}, 2)
    assert rows == [dict.fromkeys(SCHEMA.names)] * 2


def test_common_labels_join_the_plan() -> None:
    rows = _plan("is_gc\n1\n0\n1\n", {"eye_side": 1}, 2)
    assert rows == [{"dr_grade": None, "is_gc": 1, "eye_side": 1}, {"dr_grade": None, "is_gc": 0, "eye_side": 1}]


@pytest.mark.parametrize(
    ("labels", "num_images", "said"),
    [
        ({"is_gc": 1}, None, "both"),
        ({}, 4, "3 rows"),
        ({"is_pm": 1}, None, "is_pm; its labels are"),
        ({"eye_side": 2}, None, "0..1"),
    ],
)
def test_contradictions_are_refused(labels: dict[str, int | None], num_images: int | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        _plan("is_gc\n1\n0\n1\n", labels, num_images)


def test_no_number_and_no_plan_is_refused() -> None:
    with pytest.raises(ConfigError, match="no number of images"):
        _plan(None, {}, None)


def test_a_table_of_labels_is_read_as_it_was_written() -> None:
    rows: list[LabelRow] = [{"dr_grade": 1, "is_gc": None}, {"dr_grade": 0, "is_gc": 1}]
    table = label_table(rows, ["dr_grade", "is_gc"], file=["a,b.png", "c.png"])
    assert table == b'file,dr_grade,is_gc\n"a,b.png",1,\nc.png,0,1\n'
    for read, row in zip(_read(table.decode()), rows, strict=True):
        assert {name: value for name, value in read.items() if value is not None} == {
            name: value for name, value in row.items() if value is not None
        }


def test_labels_of_all_images_are_given_by_number_or_by_name() -> None:
    row = plan_labels(
        plan=None,
        labels={"dr_grade": "severe", "is_gc": "1", "eye_side": "left", "is_amd": None},
        num_images=1,
        schema=DEFAULT_LABEL_SCHEMA,
        where="plan.csv",
    )[0]
    assert {name: value for name, value in row.items() if value is not None} == {
        "dr_grade": 3,
        "is_gc": 1,
        "eye_side": 1,
    }
    with pytest.raises(ConfigError, match=r"dr_grade = 'sever' is not one of 0\.\.4 \(none, mild, moderate, severe, p"):
        plan_labels(
            plan=None, labels={"dr_grade": "sever"}, num_images=1, schema=DEFAULT_LABEL_SCHEMA, where="plan.csv"
        )


def test_a_label_that_is_nearly_one_of_the_models_is_named() -> None:
    with pytest.raises(ConfigError, match=r"has no label dr_grad \(did you mean dr_grade\?\), cat; its labels are dr_"):
        _plan(None, {"dr_grad": 1, "cat": 0}, 1)
    with pytest.raises(ConfigError, match="has no label DR-Grade") as caught:
        _plan(None, {"DR-Grade": 1}, 1)
    assert caught.value.hint == "write dr_grade for DR-Grade"


GEN_COND = Path(__file__).resolve().parents[1] / "fixtures" / "importers" / "synfundus1m_gen_cond.csv"


def test_the_conditions_of_synfundus_1m_are_a_plan_and_come_back_label_for_label() -> None:
    header = GEN_COND.read_text().splitlines()[0]
    draws = np.random.default_rng(0)
    values = np.stack([draws.integers(0, number, 500) for number in DEFAULT_LABEL_SCHEMA.num_values], axis=1)
    assert header.split(",") == ["idx", *DEFAULT_LABEL_SCHEMA.names]
    text = "\n".join([header, *(f"{idx}," + ",".join(map(str, row)) for idx, row in enumerate(values.tolist()))])
    plan = read_plan(text.encode(), DEFAULT_LABEL_SCHEMA, where="gen_cond.csv")
    assert (plan.states[plan.index] == values + 1).all()
    written = plan_table(plan.states, plan.index, ["yes"] * len(plan.states), DEFAULT_LABEL_SCHEMA)
    again = read_plan(written, DEFAULT_LABEL_SCHEMA, where="plan.csv")
    assert (again.states[again.index] == values + 1).all()
    assert set(again.marks) == {"yes"}
    rows = [dict(zip(DEFAULT_LABEL_SCHEMA.names, row, strict=True)) for row in values.tolist()]
    assert read_label_plan(written, DEFAULT_LABEL_SCHEMA, where="plan.csv") == rows


@pytest.mark.parametrize("text", ["", '"', "\n", "a", "a,b\n1", "a,b\n1,2,3\n", "sep=;\na;b\n1;2\n", "# c\na,b\n1,2\n"])
def test_a_table_in_any_form_is_read_like_its_records(text: str) -> None:
    compare(text)


@given(st.lists(st.lists(st.sampled_from(["1", "", " 2", "x y", '"', "#", "\r", "a;b"]), max_size=3), max_size=5))
@settings(max_examples=150, deadline=None)
def test_rows_are_the_records_of_the_table(table: list[list[str]]) -> None:
    compare("a,b,\n" + "\n".join(",".join(row) for row in table))


def compare(text: str) -> None:
    """Both readers of a CSV find the same, or refuse it with the same message."""

    def rows() -> object:
        header, records = read_rows(text.encode(), where="t.csv", what="label plan")
        return header, [(line, tuple(cells), fault) for line, cells, fault in records]

    def records() -> object:
        table = read_records(text.encode(), where="t.csv", what="label plan", blank_rows=True)
        return table.header, [(one.line, one.cells, one.fault) for one in table.records]

    found: list[object] = []
    for read in (rows, records):
        try:
            found.append(read())
        except DataError as error:
            found.append(error.message)
    assert found[0] == found[1]


def test_a_plan_of_one_unknown_label_keeps_its_rows() -> None:
    schema = LabelSchema((LabelSpec("is_gc", 2),))
    for table in (
        label_table([{"is_gc": None}, {"is_gc": 1}, {}], ["is_gc"]),
        plan_table(np.array([[0], [2]], dtype=np.int16), np.array([0, 1, 0]), None, schema),
    ):
        assert [row["is_gc"] for row in read_label_plan(table, schema, where="p")] == [None, 1, None]


def test_a_table_with_other_columns_is_a_source_of_rows_but_no_plan() -> None:
    table = b"file,patient_id,visit,dr_grade\na.png,P1,0,3\nb.png,P1,1,3\nc.png,,0,\n"
    with pytest.raises(ConfigError, match="no label visit"):
        read_plan(table, SCHEMA, where="p")
    read = read_plan(table, SCHEMA, where="p", strict=False)
    assert (read.unread, read.patients) == (("visit",), ("P1", "P1", ""))
    assert read.states[read.index].tolist() == [[4, 0, 0], [4, 0, 0], [0, 0, 0]]
    with pytest.raises(ConfigError, match="no label DR-Grade"):
        read_plan(b"DR-Grade,is_gc\n1,0\n", SCHEMA, where="p", strict=False)
    with pytest.raises(ConfigError, match="no label visit"):
        read_plan(b"file,visit\na.png,1\n", SCHEMA, where="p", strict=False)
