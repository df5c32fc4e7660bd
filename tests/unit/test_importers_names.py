"""How the name in a table finds its file."""

from __future__ import annotations

import unicodedata

import pytest

from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.photographs.importers import read_with_importer
from synfundus.photographs.importers.file_names import FileIndex, picture_stem

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
