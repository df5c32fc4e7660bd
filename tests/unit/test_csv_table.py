"""One reader for label tables (`prepare`) and label plans (`sample --labels`): each case is tried on both."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synfundus.errors import ConfigError, DataError, SynfundusError
from synfundus.labels.csv_table import encoding_of, near_misses, read_records
from synfundus.labels.plan import read_label_plan
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, LabelSpec
from synfundus.photographs.label_mapping import TableMapping, default_mapping
from synfundus.photographs.label_table import read_label_table

SCHEMA = LabelSchema(
    (
        LabelSpec("grade", 4, ordinal=True, values=("none", "early", "late", "very late")),
        LabelSpec("is_gc", 2),
        LabelSpec("eye_side", 2),
    )
)
Rows = list[dict[str, int | None]]
Reader = Callable[..., Rows]


def _of_table(data: bytes, schema: LabelSchema = SCHEMA) -> Rows:
    table = read_label_table(data, schema, None, where="t.csv")
    if table.rejected:
        raise DataError(f"line {table.rejected[0].line}: {table.rejected[0].detail}", where="t.csv")
    return [dict(row.labels) for row in table.rows]


def _of_plan(data: bytes, schema: LabelSchema = SCHEMA) -> Rows:
    return read_label_plan(data, schema, where="t.csv")


both = pytest.mark.parametrize("read", [_of_table, _of_plan], ids=["table", "plan"])


def _row(grade: int | None = None, is_gc: int | None = None, eye_side: int | None = None) -> dict[str, int | None]:
    return {"grade": grade, "is_gc": is_gc, "eye_side": eye_side}


@both
@pytest.mark.parametrize(
    "text",
    [
        "file,grade,is_gc\na,2,1\nb,,0\n",
        "file;grade;is_gc\na;2;1\nb;;0\n",
        "file\tgrade\tis_gc\na\t2\t1\nb\t\t0\n",
        "sep=;\nfile;grade;is_gc\na;2;1\nb;;0\n",
        '"sep=\t"\r\nfile\tgrade\tis_gc\r\na\t2\t1\r\nb\t\t0\r\n',
        "sep=|\nfile|grade|is_gc\na|2|1\nb||0\n",
        "# made by a program, 2024\n#\nfile;grade;is_gc\na;2;1\nb;;0\n",
        "\ufefffile,grade,is_gc\na,2.0,1.0\nb,,0.0\n",
        "file,grade,is_gc\na,2,1\nb,NA,0\n",
        "file,grade,is_gc\na,2,1\nb,nan,0\n",
        "file,grade,is_gc\na,2,1\nb,unknown,0\n",
        "file,grade,is_gc\na,2,1\nb,#N/A,0\n",
        ",file,grade,is_gc\n0,a,2,1\n1,b,,0\n",
        "Unnamed: 0,file,grade,is_gc\n0,a,2,1\n1,b,,0\n",
        ",Unnamed: 0,file,grade,is_gc,\n0,0,a,2,1,\n1,1,b,,0,\n",
        "file,grade,is_gc,,\na,2,1,,\nb,,0,,\n",
        "file,grade,is_gc\na,2,1,,\nb,,0,\n",
        'file, "grade", "is_gc"\na, "2", "1"\nb, , "0"\n',
        "file,grade,is_gc\na,late,1\nb,,0\n",
        "file,grade,is_gc\na,LATE,1\nb,,0\n",
    ],
)
def test_what_programs_write_is_read_alike(read: Reader, text: str) -> None:
    assert read(text.encode()) == [_row(2, 1), _row(None, 0)]


@both
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_of_any_width_is_recognised(read: Reader, encoding: str) -> None:
    assert read("file;grade\nBäume.png;3\n".encode(encoding)) == [_row(3)]


@both
@pytest.mark.parametrize(
    ("text", "said"), [("file,grade\na,1\nb,7\n", "7"), ("file,grade\na,1\nb\n", "1 cells under 2")]
)
def test_what_cannot_be_meant_is_named_with_its_line(read: Reader, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read(text.encode())
    assert "line 3" in str(caught.value) or "row 3" in str(caught.value)


@both
def test_a_name_that_spells_a_missing_value_counts_beside_other_names_only(read: Reader) -> None:
    assert read(b"file,grade\na,none\nb,early\nc,\n") == [_row(0), _row(1), _row()]
    assert read(b"file,grade\na,none\nb,1\n") == [_row(), _row(1)]


@both
def test_the_names_of_the_default_schema(read: Reader) -> None:
    rows = read(b"file,dr_grade,is_gc,eye_side\na,Severe,yes,left\nb,none,no,right\n", DEFAULT_LABEL_SCHEMA)
    assert [(row["dr_grade"], row["is_gc"], row["eye_side"]) for row in rows] == [(3, 1, 1), (0, 0, 0)]


@both
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"sep=;\n", "is empty"),
        (b"PK\x03\x04", "spreadsheet"),
        (b"file,grade\n\xe4,1\n", r"not UTF-8 \(byte 11\)"),
        ("file,grade\nä,1\n".encode("utf-16")[:-1], "not UTF-16"),
        (b'file,grade\n"a,1\n', "not a CSV"),
        (b"grade,file,grade\n1,a,2\n", "2 times|twice"),
    ],
)
def test_what_is_no_table_is_refused(read: Reader, data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(data)


@both
def test_a_column_that_is_nearly_a_label_is_named(read: Reader) -> None:
    data = b"file,Grade,is gc\na,1,1\n"
    if read is _of_plan:
        with pytest.raises(ConfigError, match="write grade for Grade, is_gc for is gc"):
            read(data)
        return
    warnings = read_label_table(data, SCHEMA, None, where="t.csv").warnings
    assert [text.partition(",")[0] for text in warnings[:2]] == [
        "column 'Grade' is not read: rename it to 'grade'",
        "column 'is gc' is not read: rename it to 'is_gc'",
    ]


def test_near_misses_are_of_names_that_are_no_column() -> None:
    assert near_misses(["File ", "DR-Grade", "grade"], ["file", "dr_grade", "grade"]) == {
        "File ": "file",
        "DR-Grade": "dr_grade",
    }
    with pytest.raises(DataError, match="rename 'File' to 'file', or give it in a --mapping"):
        default_mapping(("File", "grade"), SCHEMA, where="t.csv")
    with pytest.raises(ConfigError, match="'Level' for 'level'"):
        read_label_table(b"file,Level\na,1\n", SCHEMA, TableMapping("level", None), where="t.csv")


def test_a_plan_may_ask_for_images_without_labels() -> None:
    assert _of_plan(b"grade,is_gc\n1,\n,\n\n2,0\n") == [_row(1), _row(), _row(2, 0)]
    assert _of_plan(b'is_gc\n1\n""\n\n') == [_row(None, 1), _row()]


def test_a_table_of_prepare_is_a_plan() -> None:
    assert _of_plan(b"image,patient_id,grade\na.png,P1,1\nb.png,P2,\n") == [_row(1), _row()]


styles = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from([",", ";", "\t"]),
        "encoding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "latin-1"]),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
        "newline": st.sampled_from(["\n", "\r\n", "\r"]),
        "missing": st.sampled_from(["", "NA", "nan", "NaN", "N/A", "<NA>", "NULL", "None", "unknown", " "]),
        "number": st.sampled_from(["{}", "{}.0", " {} ", "0{}"]),
        "index": st.booleans(),
        "trailing": st.integers(0, 2),
        "stated": st.booleans(),
        "last": st.booleans(),
    }
)
label = st.none() | st.integers(0, 1)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(label, label), min_size=1, max_size=5), styles)
def test_rows_do_not_depend_on_how_a_program_writes_them(rows: list[tuple[int | None, int | None]], style: Any) -> None:
    header = ["file", "is_gc", "eye_side"]
    cells = [
        [f"Bär, {at}.png", *(style["missing"] if one is None else style["number"].format(one) for one in row)]
        for at, row in enumerate(rows)
    ]
    lines = [[*line, *[""] * style["trailing"]] for line in [header, *cells]]
    if style["index"]:
        lines = [[""] + lines[0], *([str(at), *line] for at, line in enumerate(lines[1:]))]
    stream = io.StringIO(newline="")
    csv.writer(
        stream, delimiter=style["delimiter"], quoting=style["quoting"], lineterminator=style["newline"]
    ).writerows(lines)
    text = f"sep={style['delimiter']}{style['newline']}" * style["stated"] + stream.getvalue()
    data = (text if style["last"] else text.rstrip("\r\n")).encode(style["encoding"])
    expected = [_row(None, *row) for row in rows]
    if style["encoding"] in ("cp1252", "latin-1"):
        mapping = replace(default_mapping(tuple(header), SCHEMA, where="t.csv"), encoding=style["encoding"])
        table = read_label_table(data, SCHEMA, mapping, where="t.csv")
        with pytest.raises(SynfundusError, match="not UTF-8"):
            _of_plan(data)
    else:
        table = read_label_table(data, SCHEMA, None, where="t.csv")
        assert _of_plan(data) == expected
    assert [dict(row.labels) for row in table.rows] == expected
    assert [row.file for row in table.rows] == [f"Bär, {at}.png" for at in range(len(rows))]


@settings(deadline=None)
@given(st.text(max_size=30), st.sampled_from(["utf-8", "utf-16"]))
def test_any_text_is_read_or_refused_by_name(text: str, encoding: str) -> None:
    data = text.encode(encoding, "replace")
    assert encoding_of(data) in ("utf-8", "utf-16", "utf-16-le", "utf-16-be")
    try:
        table = read_records(data, where="t.csv")
    except DataError as error:
        assert "label table" in str(error)  # noqa: PT017
    else:
        assert all(record.fault or len(record.cells) == len(table.header) for record in table.records)
