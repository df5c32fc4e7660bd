"""JSON documents with a format and a version, and JSON lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synfundus.errors import DataError, StorageError
from synfundus.storage.documents import (
    as_json,
    dump_json,
    dump_line,
    parse_document,
    read_document,
    read_lines,
    write_document,
    write_lines,
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(
    st.text(max_size=6).filter(lambda key: key not in ("format", "schema_version")), values, max_size=5
)


@given(document=documents)
def test_a_document_comes_back_as_it_was_written(
    document: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    url = str(tmp_path_factory.mktemp("document") / "x.json")
    data = write_document(url, document, format_name="f", version=3)
    assert Path(url).read_bytes() == data
    found = read_document(url, format_name="f", version=3)
    assert (found.pop("format"), found.pop("schema_version")) == ("f", 3)
    assert found == document


def test_the_order_of_keys_does_not_change_the_bytes() -> None:
    assert dump_json({"b": 1, "a": {"d": 1, "c": "ü"}}) == dump_json({"a": {"c": "ü", "d": 1}, "b": 1})
    assert dump_line({"b": 1, "a": 2}) == b'{"a": 2, "b": 1}\n'


def test_numbers_that_json_does_not_know_are_not_written() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        dump_json({"x": float("nan")})


def test_as_json_turns_tuples_into_lists() -> None:
    assert as_json({"a": (1, (2, 3))}) == {"a": [1, [2, 3]]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "expected a document of format 'f', found 'list'"),
        (b'{"format": "g", "schema_version": 1}', "found 'g'"),
        (b'{"schema_version": 1}', "found None"),
        (b'{"format": "f", "schema_version": 2}', "has version 2, this code reads version 1"),
        (b'{"format": "f"}', "has version None"),
    ],
)
def test_another_format_or_version_is_refused_with_its_place(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        parse_document(data, format_name="f", version=1, where="there")
    assert caught.value.where == "there"


def test_a_missing_document_is_a_storage_error_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not found") as caught:
        read_document(str(tmp_path / "x.json"), format_name="f", version=1)
    assert caught.value.where.endswith("x.json")


def test_lines_come_back_and_an_unfinished_last_line_is_left_out(tmp_path: Path) -> None:
    url = tmp_path / "rows.jsonl"
    rows: list[dict[str, object]] = [{"a": 1}, {"b": "x\ny"}, {}]
    write_lines(str(url), rows)
    assert read_lines(str(url)) == rows
    with url.open("ab") as stream:
        stream.write(b'{"c": 1')
    assert read_lines(str(url)) == rows


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    url = tmp_path / "rows.jsonl"
    url.write_bytes(b'{"a": 1}\n{"b": \n{"c": 1}\n')
    with pytest.raises(DataError, match="line 2"):
        read_lines(str(url))
