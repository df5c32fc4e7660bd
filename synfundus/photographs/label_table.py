"""Read a label table: one row per photograph; an empty cell is an unknown label.

Invalid rows become rejects with a reason, never guesses: a value the schema does not have, a row of another width, a
file that is listed twice.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from synfundus.errors import ConfigError, DataError
from synfundus.labels.schema import LabelSchema
from synfundus.photographs.label_mapping import MISSING, TableMapping, canonical_cell, default_mapping, shown_columns

DELIMITERS = (",", ";", "\t")
_SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""First bytes of .xlsx and .xls files."""


@dataclass(frozen=True)
class RecordFault:
    """Why a record is invalid, independent of the meaning of its columns.

    Attributes:
        reason: Reason of the rejection.
        detail: What was found.
        file: The file of the record, if it is certain.
    """

    reason: str
    detail: str
    file: str = ""


@dataclass(frozen=True)
class TableRecord:
    """A record of a table, before its columns are interpreted.

    Attributes:
        line: First line of the record in the file.
        cells: One text per column; empty if there is a fault.
        fault: Set if the record is invalid.
    """

    line: int
    cells: tuple[str, ...]
    fault: RecordFault | None = None


@dataclass(frozen=True)
class TableRecords:
    """A table as text: stripped column names, and all records that are not blank."""

    header: tuple[str, ...]
    records: tuple[TableRecord, ...]


@dataclass(frozen=True)
class TableRow:
    """A photograph as described by the table.

    Attributes:
        line: Line of the row in the file, for messages.
        file: File name relative to the source folder, from table and mapping.
        patient: Patient, or empty if unknown.
        labels: Value by label name, for all labels of the schema; None is unknown.
    """

    line: int
    file: str
    patient: str
    labels: Mapping[str, int | None]


@dataclass(frozen=True)
class RejectedRow:
    """An invalid row.

    Attributes:
        line: Line of the row in the file.
        file: File name, or empty.
        patient: Patient, or empty.
        reason: ``malformed_row``, ``missing_file_name``, ``unknown_label_value``, or ``ambiguous_file`` from an
            importer that completes file names.
        detail: Column and value.
    """

    line: int
    file: str
    patient: str
    reason: str
    detail: str


@dataclass(frozen=True)
class LabelTable:
    """A parsed table; rows and rejected rows together are all rows of the file."""

    rows: tuple[TableRow, ...]
    rejected: tuple[RejectedRow, ...]
    mapping: TableMapping
    warnings: tuple[str, ...]


def read_label_table(data: bytes, schema: LabelSchema, mapping: TableMapping | None, *, where: str) -> LabelTable:
    """Read a CSV.

    Args:
        data: The file: UTF-8 (with or without a byte order mark), separated by comma, semicolon or tab.
        schema: The label schema.
        mapping: Meaning of the columns; None uses columns with the names of labels.
        where: Location, for messages.

    Raises:
        DataError: Not UTF-8, no header, no column for the file name.
        ConfigError: The mapping has a column the table does not have.
    """
    table = read_records(data, where=where)
    mapping = mapping or default_mapping(table.header, schema, where=where)
    columns = _column_numbers(table.header, mapping, where)
    parsed = [
        rejected_record(record) or _parse_row(record.line, record.cells, columns, mapping, schema)
        for record in table.records
    ]
    rows = tuple(one for one in parsed if isinstance(one, TableRow))
    rejected = tuple(one for one in parsed if isinstance(one, RejectedRow))
    warnings = patient_warnings("the table has no patient column", mapping, rows)
    if not mapping.labels:
        warnings.append("no column contains a label: all labels will be unknown")
    return LabelTable(rows, rejected, mapping, tuple(warnings))


def rejected_record(record: TableRecord) -> RejectedRow | None:
    """Return the reject of an invalid record, or None for a valid one."""
    if record.fault is None:
        return None
    return RejectedRow(record.line, record.fault.file, "", record.fault.reason, record.fault.detail)


def read_records(data: bytes, *, where: str) -> TableRecords:
    """Read a CSV as text, without interpreting columns; a record of another width gets a fault.

    Unnamed columns at the end of the header and empty cells at the end of a row, as written by spreadsheets, are not
    counted.

    Args:
        data: UTF-8, with or without a byte order mark, separated by comma, semicolon or tab.
        where: Location, for messages.

    Raises:
        DataError: A spreadsheet, not UTF-8, unbalanced quotation marks, or an empty file.
    """
    lines = text_lines(data, where=where)
    first = next((line for line in lines if line.strip()), "")
    try:
        delimiter = max(DELIMITERS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
        records = _split_records(lines, delimiter)
    except csv.Error as error:
        raise DataError(f"the label table is not a CSV: {error}", where=where) from error
    if not records:
        raise DataError("the label table is empty", where=where)
    header = tuple(cell.strip() for cell in records[0][2])
    checked: list[TableRecord] = []
    for start, end, cells in records[1:]:
        joined = _joined_lines(lines, start, end, delimiter, len(header))
        checked += joined or [_record(start, cells, header)]
    return TableRecords(header, tuple(checked))


def text_lines(data: bytes, *, where: str) -> list[str]:
    """Return the lines of a table with any kind of line ends.

    Raises:
        DataError: A spreadsheet, or not UTF-8.
    """
    if data.startswith(_SPREADSHEETS):
        raise DataError("the label table is a spreadsheet", where=where, hint="save the sheet as CSV UTF-8")
    try:
        return list(io.StringIO(data.decode("utf-8-sig"), newline=""))
    except UnicodeDecodeError as error:
        raise DataError(
            f"the label table is not UTF-8 (byte {error.start})", where=where, hint="save it as CSV UTF-8"
        ) from error


def _split_records(lines: Sequence[str], delimiter: str) -> list[tuple[int, int, list[str]]]:
    """Return (first line, last line, cells) of each record that is not blank, the header first."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    records, start = [], 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            records.append((start, reader.line_num, cells))
        start = reader.line_num + 1
    return records


def _joined_lines(lines: Sequence[str], start: int, end: int, delimiter: str, width: int) -> list[TableRecord]:
    """Return a fault for each line of a record that a stray quotation mark joined from several lines.

    The joined record can have the right width: accepted as one row, it would silently drop the others.
    """
    inner = lines[start:end]
    if width < 2 or not any(line.count(delimiter) == width - 1 for line in inner):
        return []
    fault = RecordFault("malformed_row", f"a quotation mark in line {start} joins lines {start} to {end}")
    return [TableRecord(line, (), fault) for line in range(start, end + 1) if lines[line - 1].strip()]


def _record(line: int, cells: Sequence[str], header: Sequence[str]) -> TableRecord:
    width = len(header)
    named = max((at + 1 for at, name in enumerate(header) if name), default=0)
    if len(cells) < named or any(cell.strip() for cell in cells[width:]):
        fault = RecordFault("malformed_row", f"{len(cells)} cells under {width} columns")
        return TableRecord(line, (), fault)
    return TableRecord(line, (*cells[:width], *[""] * (width - len(cells))))


def _column_numbers(header: Sequence[str], mapping: TableMapping, where: str) -> dict[str, int]:
    """Return the position of each column the mapping uses."""
    wanted = [mapping.file_column, *(label.column for label in mapping.labels.values())]
    if mapping.patient_column is not None:
        wanted.append(mapping.patient_column)
    numbers = {}
    for name in wanted:
        if header.count(name) > 1:
            raise DataError(f"column {name!r} occurs {header.count(name)} times", where=where)
        if name not in header:
            raise ConfigError(
                f"the mapping needs column {name!r}, the table has: {shown_columns(header)}",
                where=where,
                hint="correct the mapping YAML",
            )
        numbers[name] = header.index(name)
    return numbers


def _parse_row(
    line: int, cells: Sequence[str], columns: Mapping[str, int], mapping: TableMapping, schema: LabelSchema
) -> TableRow | RejectedRow:
    cell = cells[columns[mapping.file_column]].strip()
    patient = "" if mapping.patient_column is None else cells[columns[mapping.patient_column]].strip()
    patient = "" if patient.lower() in MISSING else patient
    if not cell:
        return RejectedRow(line, "", patient, "missing_file_name", f"column {mapping.file_column} is empty")
    file = mapping.file_name(cell)
    labels: dict[str, int | None] = dict.fromkeys(schema.names)
    for name, source in mapping.labels.items():
        text = canonical_cell(cells[columns[source.column]])
        known = source.values
        if known is None:
            known = {str(value): value for value in range(schema[name].num_values)}
        if text not in known and text.lower() in MISSING:
            continue
        if text not in known:
            return RejectedRow(line, file, patient, "unknown_label_value", f"{name}: column {source.column} = {text!r}")
        labels[name] = known[text]
    return TableRow(line, file, patient, labels)


def patient_warnings(no_patients: str, mapping: TableMapping, rows: Sequence[TableRow]) -> list[str]:
    """Return warnings about missing patients; ``no_patients`` says that the table gives none."""
    if mapping.patient_column is None:
        return [
            f"{no_patients}: every photograph counts as its own patient, so two photographs of one patient may be in "
            "different splits"
        ]
    without = sum(not row.patient for row in rows)
    return [f"{without} rows have no patient: each counts as its own patient"] if without else []
