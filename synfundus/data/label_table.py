"""Read a label table: one row a photograph, an empty cell is an unknown label.

What cannot be used ends as a named reject, never as a guess: a value the schema does not have, a row of
another width, a file named twice.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from synfundus.data.label_mapping import TableMapping, canonical_cell, default_mapping
from synfundus.errors import ConfigError, DataError
from synfundus.storage.label_schema import LabelSchema

DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class TableRow:
    """One photograph as the table knows it.

    Attributes:
        line: Line of the row in the file, for messages.
        file: File name below the source folder, as the table and the mapping give it.
        patient: Patient, or empty where the table does not say.
        labels: Value by label name; None is unknown. Every label of the schema is there.
    """

    line: int
    file: str
    patient: str
    labels: Mapping[str, int | None]


@dataclass(frozen=True)
class RejectedRow:
    """A row that cannot be used.

    Attributes:
        line: Line of the row in the file.
        file: File name, or empty.
        patient: Patient, or empty.
        reason: ``malformed_row``, ``missing_file_name`` or ``unknown_label_value``.
        detail: Column and value.
    """

    line: int
    file: str
    patient: str
    reason: str
    detail: str


@dataclass(frozen=True)
class LabelTable:
    """A table that was read; rows and rejected rows together are all rows of the file."""

    rows: tuple[TableRow, ...]
    rejected: tuple[RejectedRow, ...]
    mapping: TableMapping
    warnings: tuple[str, ...]


def read_label_table(data: bytes, schema: LabelSchema, mapping: TableMapping | None, *, where: str) -> LabelTable:
    """Read a CSV.

    Args:
        data: The file: UTF-8 (with or without a byte order mark), separated by comma, semicolon or tab.
        schema: Labels to look for.
        mapping: What the columns mean; None takes columns that are named like the labels.
        where: Location, for messages.

    Raises:
        DataError: Not UTF-8, no header, no column for the file name.
        ConfigError: The mapping names a column the table does not have.
    """
    records = _records(data, where)
    if not records:
        raise DataError("the label table is empty", where=where)
    header = tuple(cell.strip() for cell in records[0][1])
    mapping = mapping or default_mapping(header, schema, where=where)
    columns = _column_numbers(header, mapping, where)
    rows: list[TableRow] = []
    rejected: list[RejectedRow] = []
    for line, cells in records[1:]:
        parsed = _parse_row(line, cells, columns, mapping, schema, len(header))
        if isinstance(parsed, TableRow):
            rows.append(parsed)
        else:
            rejected.append(parsed)
    return LabelTable(tuple(rows), tuple(rejected), mapping, _warnings(mapping, rows))


def _records(data: bytes, where: str) -> list[tuple[int, list[str]]]:
    """Return (line, cells) of each row that is not blank, the header first."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the label table is not UTF-8 (byte {error.start})", where=where, hint="save it as CSV UTF-8"
        ) from error
    try:
        first = next((line for line in text.splitlines() if line.strip()), "")
        delimiter = max(DELIMITERS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise DataError(f"the label table is not a CSV: {error}", where=where) from error


def _column_numbers(header: Sequence[str], mapping: TableMapping, where: str) -> dict[str, int]:
    """Return the position of each column the mapping uses."""
    wanted = [mapping.file_column, *(label.column for label in mapping.labels.values())]
    if mapping.patient_column is not None:
        wanted.append(mapping.patient_column)
    numbers = {}
    for name in wanted:
        if header.count(name) > 1:
            raise DataError(f"column {name!r} is there {header.count(name)} times", where=where)
        if name not in header:
            raise ConfigError(
                f"the mapping names column {name!r}, the table has: {', '.join(header)}",
                where=where,
                hint="correct the mapping YAML",
            )
        numbers[name] = header.index(name)
    return numbers


def _parse_row(
    line: int,
    cells: Sequence[str],
    columns: Mapping[str, int],
    mapping: TableMapping,
    schema: LabelSchema,
    width: int,
) -> TableRow | RejectedRow:
    if len(cells) != width:
        return RejectedRow(line, "", "", "malformed_row", f"{len(cells)} cells under {width} columns")
    cell = cells[columns[mapping.file_column]].strip()
    patient = "" if mapping.patient_column is None else cells[columns[mapping.patient_column]].strip()
    if not cell:
        return RejectedRow(line, "", patient, "missing_file_name", f"column {mapping.file_column} is empty")
    file = mapping.file_name(cell)
    labels: dict[str, int | None] = dict.fromkeys(schema.names)
    for name, source in mapping.labels.items():
        text = canonical_cell(cells[columns[source.column]])
        if not text:
            continue
        known = _known_values(source.values, schema[name].num_values)
        if text not in known:
            return RejectedRow(line, file, patient, "unknown_label_value", f"{name}: column {source.column} = {text!r}")
        labels[name] = known[text]
    return TableRow(line, file, patient, labels)


def _known_values(values: Mapping[str, int | None] | None, num_values: int) -> Mapping[str, int | None]:
    return {str(value): value for value in range(num_values)} if values is None else values


def _warnings(mapping: TableMapping, rows: Sequence[TableRow]) -> tuple[str, ...]:
    """Say what the table lacks."""
    warnings = []
    if mapping.patient_column is None:
        warnings.append(
            "the table has no patient column: every photograph counts as its own patient, so that two photographs "
            "of one patient may fall into different splits"
        )
    else:
        without = sum(not row.patient for row in rows)
        if without:
            warnings.append(f"{without} rows have no patient: each counts as its own patient")
    if not mapping.labels:
        warnings.append("no column holds a label: all labels will be unknown")
    return tuple(warnings)
