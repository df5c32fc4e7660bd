from __future__ import annotations

from collections.abc import Mapping

import pytest

from synfundus.errors import ConfigError, DataError, SynfundusError
from synfundus.labels.plan import LabelRow, label_table, plan_labels, read_label_plan
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
