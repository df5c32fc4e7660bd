"""How the name in a table finds its file."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.photographs.importers import read_with_importer
from synfundus.photographs.importers.file_names import FileIndex, complete_names, picture_stem
from synfundus.photographs.ingest import match_files
from synfundus.photographs.label_table import LabelTable, read_label_table

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "importers"

FILES = {
    "train/7001_left.jpeg": 1,
    "train/7001_right.JPEG": 1,
    "test/7002_left.jpeg": 1,
    "a/twice.png": 1,
    "b/twice.jpg": 1,
    "1.1.jpg": 1,
    "notes.txt": 1,
    ".hidden/secret.png": 1,
    unicodedata.normalize("NFD", "é.png"): 1,
    "Case.png": 1,
    "case.png": 1,
}


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("7001_left", ("train/7001_left.jpeg",)),
        ("7001_LEFT.JPG", ("train/7001_left.jpeg",)),
        ("7001_right.jpeg", ("train/7001_right.JPEG",)),
        ("train/7001_left", ("train/7001_left.jpeg",)),
        ("archive/train/7001_left", ("train/7001_left.jpeg",)),
        ("train\\7001_left", ("train/7001_left.jpeg",)),
        ("train/7002_left.jpeg", ()),
        ("twice", ("a/twice.png", "b/twice.jpg")),
        ("twice.png", ("a/twice.png",)),
        ("b/twice", ("b/twice.jpg",)),
        ("1.1", ("1.1.jpg",)),
        ("1", ()),
        ("notes", ()),
        ("notes.txt", ("notes.txt",)),
        ("secret", ()),
        ("é.png", (unicodedata.normalize("NFD", "é.png"),)),
        ("Case.png", ("Case.png",)),
        ("CASE", ("Case.png", "case.png")),
        ("../train/7001_left", ()),
        ("/train/7001_left", ()),
        ("nowhere", ()),
    ],
)
@pytest.mark.parametrize("kind", [dict, list, set])
def test_a_cell_finds_the_files_it_can_mean(cell: str, found: tuple[str, ...], kind: type) -> None:
    assert FileIndex(kind(FILES)).find(cell) == found


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.png", "a"), ("1.1.jpg", "1.1"), ("1.1", "1.1"), ("A.TIFF", "A"), (".png", ""), ("a.txt", "a.txt")],
)
def test_only_the_extension_of_a_picture_is_left_out(name: str, stem: str) -> None:
    assert picture_stem(name) == stem


def test_a_name_that_two_files_fit_is_refused_with_both_and_a_missing_one_is_left_to_the_folder() -> None:
    data = b"image,level\ntwice_left,1\ngone_left,2\n../x_left,3\n"
    files = ["a/twice_left.png", "b/twice_left.jpeg"]
    table = read_with_importer("eyepacs", data, DEFAULT_LABEL_SCHEMA, files=files, where="t.csv")
    (reject,) = table.rejected
    assert (reject.line, reject.file, reject.patient, reject.reason) == (2, "twice_left", "twice", "ambiguous_file")
    assert "a/twice_left.png, b/twice_left.jpeg" in reject.detail
    assert [row.file for row in table.rows] == ["gone_left.jpeg", "../x_left.jpeg"]


def _completed(names: list[str], files: list[str]) -> LabelTable:
    data = "\n".join(["file,patient_id,dr_grade", *(f"{name},P,1" for name in names)]).encode()
    return complete_names(read_label_table(data, DEFAULT_LABEL_SCHEMA, None, where="t.csv"), files)


def test_names_of_a_users_table_are_found_in_subfolders_and_in_another_case() -> None:
    files = ["a.png", "sub/b.png", "sub/c.png", "D.PNG", "7.png"]
    table = _completed(["a.png", "b.png", "c.png", "d.png", "7.0.png", "gone.png"], files)
    assert [row.file for row in table.rows] == ["a.png", "sub/b.png", "sub/c.png", "D.PNG", "7.png", "gone.png"]
    assert [row.line for row in table.rows] == [2, 3, 4, 5, 6, 7]
    assert table.warnings == (
        "4 of 6 file names were completed: 2 lie in other folders than the table says, 1 differ in upper and lower "
        "case, 1 are numbers like 1.0",
    )
    photographs, rejects = match_files(table, dict.fromkeys(files, 1))
    assert (len(photographs), [reject.reason for reject in rejects]) == (5, ["missing_file"])


def test_a_name_that_fits_several_files_or_another_rows_file_is_no_guess() -> None:
    table = _completed(["1.png", "A.png", "a.png", "b.jpg", "c"], ["x/1.png", "y/1.png", "a.png", "b.png", "c.png"])
    assert [row.file for row in table.rows] == ["A.png", "a.png", "b.jpg", "c"]
    (reject,) = table.rejected
    assert (reject.line, reject.reason, reject.detail) == (2, "ambiguous_file", "1.png can be x/1.png, y/1.png")
    assert table.warnings == ()


def test_rows_of_the_same_name_are_duplicates_wherever_the_file_lies() -> None:
    files = {"sub/a.png": 1, "sub/b.png": 1}
    outcomes = []
    for names in (["a.png", "b.png", "./a.png", "a.png"], ["sub/a.png", "sub/b.png", "sub\\a.png", "sub/a.png"]):
        photographs, rejects = match_files(_completed(names, list(files)), files)
        outcomes.append(([one.source for one in photographs], [(one.source, one.reason) for one in rejects]))
    duplicates = [("sub/a.png (line 4)", "duplicate_row"), ("sub/a.png (line 5)", "duplicate_row")]
    assert outcomes == [(["sub/a.png", "sub/b.png"], duplicates)] * 2


@pytest.mark.parametrize("folder", ["", "sub/"])
def test_the_photograph_of_a_rejected_row_is_in_the_table(folder: str) -> None:
    """The number of inputs does not depend on the labels, nor on whether the table has the folder."""
    rows = [f"{folder}{name}.png,P,{grade}" for name, grade in zip("abcd", ("1", "?", "?", "2"), strict=True)]
    files = dict.fromkeys([*(f"sub/{name}.png" for name in "abcd"), "other.png"], 1)
    data = "\n".join(["file,patient_id,dr_grade", *rows, f"{folder}b.png,P,?"]).encode()
    photographs, rejects = match_files(
        complete_names(read_label_table(data, DEFAULT_LABEL_SCHEMA, None, where=""), files), files
    )
    assert [one.source for one in photographs] == ["sub/a.png", "sub/d.png"]
    assert [(one.source, one.reason) for one in rejects] == [
        *[(f"sub/{name}.png", "unknown_label_value") for name in "bcb"],
        ("other.png", "not_in_table"),
    ]


def test_names_that_fit_one_file_leave_it_in_the_table() -> None:
    files = {"x/P1/001.png": 1}
    _, rejects = match_files(_completed(["P1/001.png", "p1/001.PNG"], list(files)), files)
    assert [(one.source, one.reason) for one in rejects] == [("x/P1/001.png", "ambiguous_file")] * 2


def test_folders_that_may_be_named_after_patients_are_not_said() -> None:
    table = _completed(["1.png", "2.png"], ["DOE_JANE/1.png", "ROE_RICHARD/2.png"])
    assert [row.file for row in table.rows] == ["DOE_JANE/1.png", "ROE_RICHARD/2.png"]
    assert table.warnings == ("2 of 2 file names were completed: 2 lie in other folders than the table says",)


def test_numbers_that_pandas_wrote_find_their_files() -> None:
    data = (FIXTURES / "rfmid.csv").read_text().splitlines()
    floats = "\n".join([data[0], *(line.replace(",", ".0,", 1) for line in data[1:])]).encode()
    files = [f"{line.split(',')[0]}.png" for line in data[1:]]
    plain = read_with_importer("rfmid", "\n".join(data).encode(), DEFAULT_LABEL_SCHEMA, files=files, where="t.csv")
    table = read_with_importer("rfmid", floats, DEFAULT_LABEL_SCHEMA, files=files, where="t.csv")
    assert plain.rows
    assert [row.file for row in table.rows] == [row.file for row in plain.rows]


def test_a_name_of_one_folder_is_never_completed_with_a_file_of_another() -> None:
    """A table of a whole collection, of which one folder is the source."""
    for names in (["train/7.png"], ["train/7.png", "test/8.png"]):
        table = _completed(names, ["7.png"])
        kept = [row.file for row in table.rows]
        assert kept == (["7.png"] if len(names) == 1 else names), "only a folder of all rows may be missing"
    table = _completed(["P1/001.png", "p1/001.PNG"], ["x/P1/001.png"])
    assert [row.file for row in table.rows] == []
    assert [reject.reason for reject in table.rejected] == ["ambiguous_file"] * 2


def test_a_folder_of_many_files_is_named() -> None:
    names = [f"{number}.png" for number in range(10)]
    table = _completed(names, [f"sub/{name}" for name in names])
    assert table.warnings == ("10 of 10 file names were completed: 10 lie below sub/",)
