from __future__ import annotations

import pytest

from synfundus.config.yaml_text import parse_yaml
from synfundus.errors import ConfigError, DataError
from synfundus.labels.plan import read_label_plan
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, LabelSpec, canonical_cell
from synfundus.photographs.label_mapping import parse_table_mapping
from synfundus.photographs.label_table import LabelTable, read_label_table

SCHEMA = LabelSchema((LabelSpec("dr_grade", 5, ordinal=True), LabelSpec("is_gc", 2), LabelSpec("eye_side", 2)))


def read(text: str, mapping: str | None = None, schema: LabelSchema = SCHEMA) -> LabelTable:
    parsed = (
        None
        if mapping is None
        else parse_table_mapping(parse_yaml(mapping, where="map.yaml"), schema, where="map.yaml")
    )
    return read_label_table(text.encode(), schema, parsed, where="t.csv")


def test_columns_named_like_labels_need_no_mapping() -> None:
    table = read("image,patient_id,is_gc,dr_grade,visit\na.png,P1,1,4,2\nb.png,P2,,0,1\n")
    assert [(row.file, row.patient) for row in table.rows] == [("a.png", "P1"), ("b.png", "P2")]
    assert table.rows[0].labels == {"dr_grade": 4, "is_gc": 1, "eye_side": None}
    assert table.rows[1].labels == {"dr_grade": 0, "is_gc": None, "eye_side": None}
    assert (table.rejected, table.warnings) == ((), ())


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_separator_and_byte_order_mark_are_recognised(delimiter: str, start: str, newline: str) -> None:
    lines = [delimiter.join(cells) for cells in (["file", "patient_id", "dr_grade"], ["a, b.png", "P 1", "2"])]
    if delimiter == ",":
        lines[1] = '"a, b.png",P 1,2'
    table = read(start + newline.join(lines) + newline)
    assert [(row.file, row.patient, row.labels["dr_grade"]) for row in table.rows] == [("a, b.png", "P 1", 2)]


def test_blanks_around_names_and_blank_lines_do_not_matter() -> None:
    table = read("file , dr_grade \n\n a.png , 1 \n,,\n\n".replace(",,", ","))
    assert [(row.file, row.labels["dr_grade"]) for row in table.rows] == [("a.png", 1)]


@pytest.mark.parametrize("value", ["5", "-1", "1.5", "yes", "inf", "1;2", "٣x"])
def test_a_value_the_schema_does_not_have_is_a_named_reject(value: str) -> None:
    table = read(f"file,patient_id,dr_grade\na.png,P1,{value}\nb.png,P2,1\n")
    assert [row.file for row in table.rows] == ["b.png"]
    (reject,) = table.rejected
    assert (reject.file, reject.patient, reject.reason, reject.line) == ("a.png", "P1", "unknown_label_value", 2)
    assert "dr_grade" in reject.detail
    assert value in reject.detail


@pytest.mark.parametrize("value", ["nan", "NaN", "NA", "N/A", "<NA>", "NULL", "None", " na "])
def test_what_programs_write_for_a_missing_value_is_unknown(value: str) -> None:
    table = read(f"file,patient_id,dr_grade,is_gc\na.png,{value},{value},1\nb.png,P2,1,{value}\n")
    assert [(row.patient, row.labels["dr_grade"], row.labels["is_gc"]) for row in table.rows] == [
        ("", None, 1),
        ("P2", 1, None),
    ]
    assert "1 rows have no patient" in table.warnings[0]


def test_a_mapping_may_give_such_a_word_a_meaning() -> None:
    mapping = "{file: f, labels: {is_gc: {column: g, values: {None: 0, present: 1}}}}"
    assert [row.labels["is_gc"] for row in read("f,g\na,None\nb,present\nc,\n", mapping).rows] == [0, 1, None]


@pytest.mark.parametrize(
    "line", ["Doe^Jane,1961-04-02,MRN0012345,IMG1.jpg,2", "Doe Jane,P1,17", "Doe Jane;P1;scan.TIFF", "Doe,02.04.1961"]
)
def test_a_table_without_a_header_is_refused_without_a_word_of_its_rows(line: str) -> None:
    for mapping in (None, "{file: image}"):
        with pytest.raises((ConfigError, DataError)) as caught:
            read(f"{line}\n{line}\n", mapping)
        assert "is the header missing?" in str(caught.value)
        assert not [word for word in ("Doe", "1961", "MRN", "IMG1", "P1", "scan") if word in str(caught.value)]


def test_rows_of_another_width_or_without_a_file_are_named() -> None:
    table = read("file,patient_id,dr_grade\na.png,P1\nb.png,P2,1,9\n,P3,1\n")
    assert [reject.reason for reject in table.rejected] == ["malformed_row", "malformed_row", "missing_file_name"]
    assert table.rows == ()


def test_columns_without_a_name_at_the_end_of_a_spreadsheet_do_not_matter() -> None:
    table = read("file,patient_id,dr_grade,,\na.png,P1,1,,\nb.png,P1,2\nc.png,P1,3,,,,\nd.png,P1,4,,,note\n")
    assert [(row.file, row.labels["dr_grade"]) for row in table.rows] == [("a.png", 1), ("b.png", 2), ("c.png", 3)]
    assert [(reject.line, reject.reason) for reject in table.rejected] == [(5, "malformed_row")]


def test_a_quotation_mark_too_many_hides_no_row() -> None:
    table = read('file,patient_id,dr_grade\na.png,"P1,1\nb.png,P2,2\nc.png,P3",3\nd.png,P4,4\n')
    assert [row.file for row in table.rows] == ["d.png"]
    assert [reject.line for reject in table.rejected] == [2, 3, 4]
    assert "joins lines 2 to 4" in table.rejected[0].detail
    remark = read('file,patient_id,note\na.png,P1,"two\nlines, of text"\nb.png,P2,\n')
    assert [(row.line, row.file) for row in remark.rows] == [(2, "a.png"), (4, "b.png")]


def test_a_table_without_patients_or_labels_says_so() -> None:
    assert "every photograph counts as its own patient" in read("file,dr_grade\na.png,1\n").warnings[0]
    assert "all labels will be unknown" in read("file,patient_id\na.png,P\n").warnings[0]
    assert "1 rows have no patient" in read("file,patient_id,dr_grade\na.png,,1\nb.png,P,1\n").warnings[0]


def test_a_mapping_translates_columns_and_values() -> None:
    mapping = """
    source: AIROGS
    file: challenge_id
    file_pattern: "{file}.jpg"
    eye_side: {column: eye, values: {R: 0, L: 1, "": null}}
    labels:
      is_gc: {column: class, values: {RG: 1, NRG: 0, "?": null}}
      dr_grade: {column: level, values: {0: 0, 1.0: 1, "4": null}}
    """
    text = "challenge_id,class,eye,level\nT1,RG,L,1\nT2,?,R,4.0\nT3,XX,R,0\nT4,NRG,R,3\n"
    table = read(text, mapping)
    assert [row.file for row in table.rows] == ["T1.jpg", "T2.jpg"]
    assert table.rows[0].labels == {"dr_grade": 1, "is_gc": 1, "eye_side": 1}
    assert table.rows[1].labels == {"dr_grade": None, "is_gc": None, "eye_side": 0}
    assert [(reject.file, reject.reason) for reject in table.rejected] == [
        ("T3.jpg", "unknown_label_value"),
        ("T4.jpg", "unknown_label_value"),
    ]
    assert table.mapping.source == "AIROGS"


def test_one_column_can_feed_two_labels() -> None:
    mapping = "{file: f, patient_id: p, labels: {dr_grade: g, is_gc: {column: g, values: {0: 0, 1: 1}}}}"
    assert read("f,p,g\na,x,1\n", mapping).rows[0].labels == {"dr_grade": 1, "is_gc": 1, "eye_side": None}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("[1, 2]", "YAML mapping"),
        ("file: [", "not valid YAML"),
        ("file: [a]", "needs text for 'file'"),
        ("file: ", "needs text for 'file'"),
        ("{}", "needs text for 'file'"),
        ("{file: f, colour: red}", "unknown keys in the mapping: colour"),
        ("{file: f, file_pattern: x.png}", "does not contain {file}"),
        ("{file: f, labels: {is_nothing: c}}", "unknown label 'is_nothing'"),
        ("{file: f, labels: {is_gc: {column: c, values: {a: 2}}}}", "value 2 is not one of 0..1"),
        ("{file: f, labels: {is_gc: {column: c, values: {a: maybe}}}}", "neither an integer nor null"),
        ("{file: f, labels: {is_gc: {column: c, values: {a: 1.0}}}}", "neither an integer nor null"),
        ("{file: f, labels: {is_gc: {column: c, values: {1: 0, 01: 1}}}}", "the cell '1' is mapped twice"),
        ("{file: f, labels: {is_gc: {column: c, values: {1: 0, '1.0': 1}}}}", "the cell '1' is mapped twice"),
        ("{file: f, labels: {is_gc: {column: c, values: {'': 0}}}}", "an empty cell is unknown"),
        ("{file: f, labels: {is_gc: c, is_gc: d}}", "the key 'is_gc' occurs twice"),
        ("{file: &a f, labels: {is_gc: *a}}", "anchors and aliases"),
        ("{file: !!python/name:os.system }", "is not read"),
        ("file: " + "[" * 3000, "nested deeper"),
        ("file: [" + "x, " * 3000 + "]", "needs text for 'file', found ['x', 'x'"),
        ("# " + "x" * 300_000, "more than"),
        ("{file: f, labels: {is_gc: {column: c, extra: 1}}}", "must be a column or"),
        ("{file: f, eye_side: e, labels: {eye_side: e}}", "given twice"),
        ("{file: nowhere}", "the mapping needs column 'nowhere', the table has: f, g"),
    ],
)
def test_a_mapping_that_cannot_work_is_refused_with_its_reason(mapping: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read("f,g\na,1\n", mapping)
    assert message in str(caught.value)


def test_words_that_yaml_would_read_as_true_and_false_are_cells_like_others() -> None:
    mapping = "{file: f, labels: {is_gc: {column: g, values: {no: 0, yes: 1}}}}"
    assert [row.labels["is_gc"] for row in read("f,g\na,no\nb,yes\n", mapping).rows] == [0, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"name,grade\na,1\n", "no column for the file name among: name, grade"),
        ("file,größe\na,1\n".encode("latin-1"), "not UTF-8 (byte 7)"),
        (b"file,file\na,b\n", "column 'file' occurs 2 times"),
        (b'file,x\n"a,1\n' + b"x" * 200_000, "not a CSV"),
        (b'file,x\n"a"b,1\n', "not a CSV"),
        (b"PK\x03\x04...", "save the sheet as CSV UTF-8"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_its_reason(data: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_label_table(data, DEFAULT_LABEL_SCHEMA, None, where="t.csv")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("cell", "canonical"),
    [
        (" 1.0 ", "1"),
        ("1,0", "1"),
        ("3,00", "3"),
        ("1,5", "1,5"),
        ("1,000", "1,000"),
        ("01", "1"),
        ("-0", "0"),
        ("1.5", "1.5"),
        ("R", "R"),
        ("", ""),
        ("inf", "inf"),
        ("nan", "nan"),
        ("1_0", "1_0"),
    ],
)
def test_whole_numbers_have_one_form(cell: str, canonical: str) -> None:
    assert canonical_cell(cell) == canonical


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16", "utf-8"])
def test_a_mapping_names_the_encoding(encoding: str) -> None:
    document = parse_yaml(f"{{file: f, encoding: {encoding}, labels: {{is_gc: größe}}}}", where="map.yaml")
    mapping = parse_table_mapping(document, SCHEMA, where="map.yaml")
    table = read_label_table("f;größe\nmüller.png;1\n".encode(encoding), SCHEMA, mapping, where="t.csv")
    assert [(row.file, row.labels["is_gc"]) for row in table.rows] == [("müller.png", 1)]


@pytest.mark.parametrize("name", ["cp9999", "hex", "zlib", "''", "[a]"])
def test_an_encoding_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown encoding|needs text for 'encoding'"):
        read("f\na\n", f"{{file: f, encoding: {name}}}")


def test_another_encoding_is_refused_with_the_way_out() -> None:
    with pytest.raises(DataError) as caught:
        read_label_table("file\nmüller.png\n".encode("cp1252"), SCHEMA, None, where="t.csv")
    assert "name its encoding in a --mapping (encoding: cp1252)" in caught.value.hint


@pytest.mark.parametrize(
    ("label", "cells", "values"),
    [
        ("eye_side", "OD OS od os R L r l RE LE Right LEFT", [0, 1] * 6),
        ("eye_side", "0 1 OD OS", [0, 1] * 2),
        ("is_gc", "FALSE TRUE False True no yes No YES 0 1 0,0 1.0", [0, 1] * 6),
        ("dr_grade", "3,0 3.0 03 severe 4,00", [3, 3, 3, 3, 4]),
    ],
)
def test_what_spreadsheets_write_for_values_needs_no_mapping(label: str, cells: str, values: list[int]) -> None:
    """In tables, and in the same words in plans and requests."""
    rows = [f"{at}.png; {cell} " for at, cell in enumerate(cells.split())]
    table = read("\n".join([f"file;{label}", *rows]), schema=DEFAULT_LABEL_SCHEMA)
    assert [row.labels[label] for row in table.rows] == values
    plan = read_label_plan(
        f"{label}\n{cells}".replace(" ", "\n").replace(",", ".").encode(), DEFAULT_LABEL_SCHEMA, where=""
    )
    assert [row[label] for row in plan] == values
    assert [DEFAULT_LABEL_SCHEMA.check_value(label, f" {cell} ") for cell in cells.split()] == values


@pytest.mark.parametrize(
    ("label", "cell"),
    [
        *(("is_gc", cell) for cell in ("ja", "nein", "+", "-", "OD", "1,000")),
        *(("eye_side", cell) for cell in ("OU", "yes", "TRUE")),
        *(("dr_grade", cell) for cell in ("TRUE", "1,5")),
    ],
)
def test_what_is_ambiguous_is_no_value_without_a_mapping(label: str, cell: str) -> None:
    table = read(f"file;{label}\na.png;{cell}\n", schema=DEFAULT_LABEL_SCHEMA)
    assert [reject.reason for reject in table.rejected] == ["unknown_label_value"]
    with pytest.raises(DataError, match="is not one of 0"):
        DEFAULT_LABEL_SCHEMA.check_value(label, cell)


def test_words_stand_for_the_names_of_a_schema_in_its_order() -> None:
    names = LabelSchema((LabelSpec("eye", 2, values=("OS", "OD")), LabelSpec("size", 3, values=("S", "M", "L"))))
    assert [names.check_value("eye", word) for word in ("right", "L", "od")] == [1, 0, 1]
    with pytest.raises(DataError):
        names.check_value("size", "left")
    unnamed = LabelSchema((LabelSpec("cataract", 2), LabelSpec("eye_side", 2)))
    assert [unnamed.check_value("cataract", word) for word in ("TRUE", "no")] == [1, 0]
    with pytest.raises(DataError):
        unnamed.check_value("eye_side", "yes")


def test_the_values_of_a_mapping_go_first_in_any_case() -> None:
    mapping = "{file: f, labels: {is_gc: {column: g, values: {True: 0, ' Suspect ': null, R: 1, r: 1}}}}"
    table = read("f,g\na,TRUE\nb, suspect\nc,r\nd,false\ne,1\n", mapping)
    assert [row.labels["is_gc"] for row in table.rows] == [0, None, 1, 0, 1]
    table = read("f,g\na,1\nb,2.0\nc,0\n", "{file: f, labels: {is_gc: {column: g, values: {1: 0, 2: 1}}}}")
    assert [row.labels["is_gc"] for row in table.rows] == [0, 1]
    assert [reject.line for reject in table.rejected] == [4]
    with pytest.raises(ConfigError, match="the cell 'm' is mapped twice"):
        read("f,g\na,m\n", "{file: f, labels: {is_gc: {column: g, values: {m: 0, M: 1}}}}")


def test_a_mapping_may_use_the_names_of_values() -> None:
    mapping = "{file: f, labels: {dr_grade: {column: g, values: {R0: none, R3: Severe, R4: 4, U: null}}}}"
    table = read("f,g\na,R0\nb,R3\nc,R4\nd,U\n", mapping, DEFAULT_LABEL_SCHEMA)
    assert [row.labels["dr_grade"] for row in table.rows] == [0, 3, 4, None]
    with pytest.raises(ConfigError, match=r"value 'dreadful' is neither an integer, a name of a value \(none, mild"):
        read("f,g\na,R0\n", mapping.replace("Severe", "dreadful"), DEFAULT_LABEL_SCHEMA)
