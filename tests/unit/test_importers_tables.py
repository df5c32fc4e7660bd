"""Wrong tables, damaged tables, other schemas: nothing is lost and nothing is guessed."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synfundus.errors import ConfigError, DataError
from synfundus.labels.csv_table import read_records
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, LabelSpec
from synfundus.photographs.importers import IMPORTERS, read_with_importer, recognise
from synfundus.photographs.importers.importer import read_photographs
from synfundus.photographs.ingest import match_files
from synfundus.photographs.label_table import LabelTable

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "importers"
TABLES = {
    "airogs.csv": "airogs",
    "aptos2019.csv": "aptos2019",
    "brset_1_0_0.csv": "brset",
    "brset_1_0_2.csv": "brset",
    "ddr.txt": "ddr",
    "ddr_kaggle.csv": "ddr",
    "eyepacs.csv": "eyepacs",
    "idrid.csv": "idrid",
    "mbrset.csv": "mbrset",
    "messidor2.csv": "messidor2",
    "messidor2_kaggle.csv": "messidor2",
    "odir5k.csv": "odir5k",
    "odir5k_full_df.csv": "odir5k",
    "rfmid.csv": "rfmid",
    "synfundus1m_annotation.csv": "synfundus1m",
    "synfundus1m_gen_cond.csv": "synfundus1m",
}


def read(name: str, data: bytes | None, schema: LabelSchema = DEFAULT_LABEL_SCHEMA) -> LabelTable:
    return read_with_importer(name, data, schema, files=(), where="t.csv")


def test_an_unknown_importer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        read("eyepax", b"image,level\n")
    assert "unknown importer 'eyepax'" in str(caught.value)
    assert all(name in str(caught.value) for name in IMPORTERS)


def test_a_table_is_asked_for_exactly_where_the_set_has_one() -> None:
    with pytest.raises(ConfigError, match="EyePACS has a label table, but none is given"):
        read("eyepacs", None)
    with pytest.raises(ConfigError, match="REFUGE has no label table"):
        read("refuge", b"image,level\n")
    with pytest.raises(DataError, match="no file name is like those of PALM"):
        read_with_importer("palm", None, DEFAULT_LABEL_SCHEMA, files=["a.png", "b.txt"], where="folder")


@pytest.mark.parametrize("table", sorted(TABLES))
def test_a_table_is_recognised(table: str) -> None:
    data = (FIXTURES / table).read_bytes()
    assert recognise(data, where="t") == TABLES[table]
    assert recognise(data + b"x" * 200_000, where="t") == TABLES[table]


@pytest.mark.parametrize("name", sorted(name for name in IMPORTERS if IMPORTERS[name].has_table))
@pytest.mark.parametrize("table", sorted(TABLES))
def test_the_table_of_another_set_is_refused_and_named(name: str, table: str) -> None:
    data = (FIXTURES / table).read_bytes()
    if name == TABLES[table]:
        assert read(name, data).rows
        return
    with pytest.raises(DataError) as caught:
        read(name, data)
    message = str(caught.value)
    assert f"this is not the table of {IMPORTERS[name].collection}" in message
    assert f"--importer {TABLES[table]}" in message
    assert "found columns" in message


def test_a_table_of_no_set_is_refused_with_both_headers() -> None:
    with pytest.raises(DataError) as caught:
        read("idrid", b"name,grade\na,1\n")
    message = str(caught.value)
    assert "expected columns Image name, Retinopathy grade, Risk of macular edema" in message
    assert "found columns name, grade" in message
    assert "--mapping" in message
    assert recognise(b"name,grade\na,1\n", where="t") is None
    with pytest.raises(DataError) as caught:
        read("idrid", b"image_name,Retinopathy grade,Risk of macular edema \na,1,0\n")
    assert caught.value.hint == "rename 'image_name' to 'Image name'"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04 and more", "save the sheet as CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0 and more", "save the sheet as CSV UTF-8"),
        ("image,level\nÿ,1\n".encode("latin-1"), "not UTF-8"),
        (b"", "empty"),
    ],
)
@pytest.mark.parametrize("name", ["eyepacs", "ddr", "odir5k"])
def test_what_is_no_text_table_is_refused_with_what_to_do(name: str, data: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(name, data)
    assert message in str(caught.value)


def test_a_schema_of_the_user_gets_what_it_has_and_a_warning_for_the_rest() -> None:
    schema = LabelSchema((LabelSpec("eye_side", 2), LabelSpec("dr_grade", 3), LabelSpec("is_new", 2)))
    table = read("brset", (FIXTURES / "brset_1_0_2.csv").read_bytes(), schema)
    assert all(list(row.labels) == ["eye_side", "dr_grade", "is_new"] for row in table.rows)
    assert all(row.labels["is_new"] is None for row in table.rows)
    (warning,) = table.warnings
    assert "is_amd, is_dme" in warning
    assert "left out" in warning
    graded = read("eyepacs", b"image,level\n1_left,2\n2_left,3\n", schema)
    assert [row.file for row in graded.rows] == ["1_left.jpeg"]
    assert [reject.reason for reject in graded.rejected] == ["unknown_label_value"]
    constant = read("airogs", (FIXTURES / "airogs.csv").read_bytes(), LabelSchema((LabelSpec("is_gc", 2),)))
    assert [dict(row.labels) for row in constant.rows] == [{"is_gc": 1}, {"is_gc": 0}]


def test_a_needed_column_that_is_there_twice_is_refused() -> None:
    with pytest.raises(DataError, match="column 'level' occurs 2 times"):
        read("eyepacs", b"image,level,level\n1_left,2,3\n")


def test_rows_and_folder_meet_and_every_picture_and_row_is_accounted_for() -> None:
    data = b"image,level\n1_left,0\n1_right,9\n2_left,1\n2_left.jpeg,1\n3_left,1\n4_left,1\n"
    files = {
        "x/1_left.jpeg": 1,
        "x/1_right.jpeg": 1,
        "2_left.JPG": 1,
        "3_left.png": 1,
        "y/3_left.jpg": 1,
        "9_left.png": 1,
    }
    table = read_with_importer("eyepacs", data, DEFAULT_LABEL_SCHEMA, files=files, where="t.csv")
    photographs, rejects = match_files(table, files)
    assert [photograph.source for photograph in photographs] == ["x/1_left.jpeg", "2_left.JPG"]
    assert sorted((reject.source, reject.reason) for reject in rejects) == [
        ("2_left.JPG (line 5)", "duplicate_row"),
        ("3_left", "ambiguous_file"),
        ("3_left.png", "not_in_table"),
        ("4_left.jpeg", "missing_file"),
        ("9_left.png", "not_in_table"),
        ("x/1_right.jpeg", "unknown_label_value"),
        ("y/3_left.jpg", "not_in_table"),
    ]


def test_the_document_lists_every_set_and_its_example_is_an_importer() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "importers.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z0-9]+)` \|", text.split("## What 0 means")[0], re.MULTILINE) == sorted(IMPORTERS)
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(example.splitlines()) <= 20
    names: dict[str, Any] = {}
    exec(example, names)  # the document's own code
    table = read_records(b"imageID,binaryLabels\nimage_0,1\nimage_1.jpg,0\nimage_2,2\n", where="t")
    result = read_photographs(names["G1020"], table, DEFAULT_LABEL_SCHEMA, (), where="t")
    assert [(row.file, row.labels["is_gc"]) for row in result.rows] == [("image_0.jpg", 1), ("image_1.jpg", 0)]
    assert [reject.reason for reject in result.rejected] == ["unknown_label_value"]


CELL = st.one_of(
    st.sampled_from(
        ["", "0", "1", "2", "5", "nan", "RG", "Adequate", "yes", '"', "a\nb", "x,y", "，", "1_left", "é", " 1 "]
    ),
    st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=6),
)


@st.composite
def damaged_tables(draw: st.DrawFn) -> tuple[str, bytes, list[tuple[int, bool]], bool]:
    """Draw a table and what is to be found in it.

    Returns:
        An importer, a table, (first line, whether it has a cell for every named column) of every record, whether a
        cell holds a line break.
    """
    table = draw(st.sampled_from(sorted(name for name in TABLES if name.endswith(".csv") and name != "ddr_kaggle.csv")))
    rows = list(csv.reader(io.StringIO((FIXTURES / table).read_text(encoding="utf-8-sig"))))
    width = max(len(row) for row in rows)
    extra = draw(st.lists(st.sampled_from(["notes", "fold", ""]), max_size=2, unique=True))
    rows = [
        row + [""] * (width - len(row)) + (extra if at == 0 else ["" for _ in extra]) for at, row in enumerate(rows)
    ]
    order = draw(st.permutations(range(len(rows[0]))))
    rows = [[row[at] for at in order] for row in rows]
    body = draw(st.lists(st.sampled_from(rows[1:]), max_size=6))
    damaged = []
    for row in body:
        changed = list(row)
        for _ in range(draw(st.integers(0, 2))):
            changed[draw(st.integers(0, len(changed) - 1))] = draw(CELL)
        damaged.append(changed[: draw(st.sampled_from([len(changed), len(changed), len(changed) - 1, 1]))])
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    delimiter = draw(st.sampled_from([",", ";", "\t"]))
    text = io.StringIO(newline="")
    # Python's writer leaves a lone carriage return without quotes, which makes two lines of a record
    quote = draw(st.booleans()) or any("\r" in cell for row in damaged for cell in row)
    writer = csv.writer(
        text, delimiter=delimiter, lineterminator=newline, quoting=csv.QUOTE_ALL if quote else csv.QUOTE_MINIMAL
    )
    writer.writerow(rows[0])
    expected = []
    for row in damaged:
        line = 1 + len(list(io.StringIO(text.getvalue(), newline="")))
        writer.writerow(row)
        if any(cell.strip() for cell in row):
            named = max(at for at, column in enumerate(rows[0]) if column)
            expected.append((line, len(row) > named))
    mark = draw(st.sampled_from(["", "\ufeff"]))
    broken = any(sign in cell for row in damaged for cell in row for sign in "\r\n")
    return TABLES[table], (mark + text.getvalue()).encode(), expected, broken


@settings(max_examples=150, deadline=None)
@given(damaged_tables())
def test_every_record_of_a_damaged_table_ends_as_a_row_or_a_named_reject(
    case: tuple[str, bytes, list[tuple[int, bool]], bool],
) -> None:
    name, data, expected, broken = case
    table = read(name, data)
    each = 2 if name == "odir5k" else 1
    lines = Counter([row.line for row in table.rows] + [reject.line for reject in table.rejected])
    # a cell with a line break can look like a quotation mark too many: more rejects, none fewer
    if not broken:
        assert sorted(lines) == [line for line, _ in expected]
    for line, whole in expected:
        assert 1 <= lines[line] <= each
        if not whole:
            assert line not in {row.line for row in table.rows}
    for row in table.rows:
        assert set(row.labels) == set(DEFAULT_LABEL_SCHEMA.names)
        DEFAULT_LABEL_SCHEMA.encode(row.labels)
    assert {reject.reason for reject in table.rejected} <= {"malformed_row", "missing_file_name", "unknown_label_value"}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(["1_left,0", "2_right,3", '"3_left",1', '4_left,"2', '5_left",1', '"6_left,1', '7_left,"4"x']),
        max_size=8,
    )
)
def test_a_stray_quotation_mark_loses_no_line(lines: list[str]) -> None:
    data = "\n".join(["image,level", *lines, ""]).encode()
    try:
        table = read("eyepacs", data)
    except DataError as error:
        assert "not a CSV" in str(error)  # noqa: PT017
        return
    seen = [row.line for row in table.rows] + [reject.line for reject in table.rejected]
    assert sorted(seen) == list(range(2, 2 + len(lines)))


@pytest.mark.parametrize(
    ("body", "rows", "rejects"),
    [
        ('1_left,"1\n2_left,2\n3_left,3"\n4_left,4\n', [5], [2, 3, 4]),
        ('1_left,"1\n2_left",2\n3_left,3\n', [4], [2, 3]),
        ('"1\n_left",1\n3_left,3\n', [4], [2, 3]),
        ('1_left,"1\n\n"\n3_left,3\n', [2, 5], []),
    ],
)
def test_lines_that_a_quotation_mark_joined_are_refused_one_by_one(
    body: str, rows: list[int], rejects: list[int]
) -> None:
    table = read("eyepacs", b"image,level\n" + body.encode())
    assert [row.line for row in table.rows] == rows
    assert [reject.line for reject in table.rejected] == rejects
    assert {reject.reason for reject in table.rejected} <= {"malformed_row"}


@pytest.mark.parametrize("body", ['1_left,"1\n2_left,2\n', '1_left,"1"x\n2_left,2\n'])
def test_quotation_marks_that_do_not_add_up_refuse_the_table(body: str) -> None:
    with pytest.raises(DataError, match="not a CSV"):
        read("eyepacs", b"image,level\n" + body.encode())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet="ab019 .jpg\t,", max_size=14), max_size=8))
def test_every_line_of_a_ddr_file_ends_as_a_row_or_a_named_reject(lines: list[str]) -> None:
    data = "\n".join(["999-0000-000.jpg 0", *lines]).encode()
    table = read("ddr", data)
    seen = [row.line for row in table.rows] + [reject.line for reject in table.rejected]
    assert sorted(seen) == [1] + [at for at, line in enumerate(lines, start=2) if line.strip()]
