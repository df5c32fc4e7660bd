"""JSON documents and JSON lines with a format name and a version."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from synfundus.errors import DataError
from synfundus.storage import filesystem

Document = dict[str, Any]


def dump_json(document: Mapping[str, Any]) -> bytes:
    """Serialise a document deterministically: sorted keys, indented by two spaces, a final newline."""
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def dump_line(row: Mapping[str, Any]) -> bytes:
    """Serialise one JSON line."""
    return (json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n").encode()


def as_json(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a value as JSON would store it (tuples become lists)."""
    return json.loads(json.dumps(value))


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested document by dotted path."""
    leaves: dict[str, Any] = {}
    for key, value in document.items():
        path = f"{prefix}{key}"
        leaves.update(flatten(value, f"{path}.") if isinstance(value, dict) else {path: value})
    return leaves


def write_document(url: str, document: Mapping[str, Any], *, format_name: str, version: int) -> bytes:
    """Write a document atomically with its format and version; return the bytes written."""
    data = dump_json({"format": format_name, "schema_version": version, **document})
    filesystem.write_bytes(url, data)
    return data


def parse_document(data: bytes, *, format_name: str, version: int, where: str) -> Document:
    """Parse a document and check its format and version.

    Raises:
        DataError: Not JSON, another format, or an unknown version.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", where=where) from error
    if not isinstance(document, dict) or document.get("format") != format_name:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise DataError(f"expected a document of format {format_name!r}, found {found!r}", where=where)
    if document.get("schema_version") != version:
        raise DataError(
            f"format {format_name!r} has version {document.get('schema_version')!r}, this code reads version {version}",
            where=where,
            hint="use the synfundus version that wrote it, or write it again",
        )
    return document


def read_object(url: str) -> Document:
    """Read a JSON object of any format.

    Raises:
        DataError: Not a JSON object.
    """
    try:
        document = json.loads(filesystem.read_bytes(url))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", where=url) from error
    if not isinstance(document, dict):
        raise DataError("not a JSON object", where=url)
    return document


def read_document(url: str, *, format_name: str, version: int) -> Document:
    """Read and check a document."""
    return parse_document(filesystem.read_bytes(url), format_name=format_name, version=version, where=url)


def write_lines(url: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines atomically."""
    filesystem.write_bytes(url, b"".join(dump_line(row) for row in rows))


def read_lines(url: str) -> list[Document]:
    """Read JSON lines; an incomplete last line (a kill while appending) is ignored."""
    lines = filesystem.read_bytes(url).split(b"\n")
    rows: list[Document] = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number == len(lines) - 1:
                break
            raise DataError(f"line {number + 1} is not valid JSON", where=url) from error
    return rows
