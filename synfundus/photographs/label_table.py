"""Read a label table: one row per photograph; an empty cell is an unknown label.

Invalid rows become rejects with a reason, never guesses: a value the schema does not have, a row of another width, a
file that is listed twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from synfundus.errors import ConfigError, DataError
from synfundus.labels.csv_table import MISSING, LabelCells, TableRecord, TableRecords, near_misses, read_records
from synfundus.labels.plan import REQUESTED
from synfundus.labels.schema import LabelSchema, LabelSpec, canonical_cell
from synfundus.photographs.label_mapping import (
    PATIENT_COLUMN,
    TableMapping,
    default_mapping,
    shown_columns,
)


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
        labels: Labels that have no value for their cell.
    """

    line: int
    file: str
    patient: str
    reason: str
    detail: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class RefusedCells:
    """Cells of a label that have no meaning.

    Attributes:
        spec: The label.
        column: Name of its column.
        line: Line of the first of these cells.
        cell: The first of these cells, or empty if no message may quote it.
        values: Names of values, or integers, by cell: of the whole column where a message may quote it (None: no
            meaning), else an example.
    """

    spec: LabelSpec
    column: str
    line: int
    cell: str
    values: Mapping[str, str | int | None]


@dataclass(frozen=True)
class LabelTable:
    """A parsed table; rows and rejected rows together are all rows of the file.

    `refused` has the cells without a meaning by label; an importer, whose table must not be changed, leaves it empty.
    """

    rows: tuple[TableRow, ...]
    rejected: tuple[RejectedRow, ...]
    mapping: TableMapping
    warnings: tuple[str, ...]
    refused: Mapping[str, RefusedCells] = field(default_factory=dict)

    def most_refused(self) -> tuple[str, int]:
        """Return the label with the most cells without a meaning, and their number."""
        counts = Counter(name for row in self.rejected for name in row.labels)
        return max(counts.items(), key=lambda item: item[1], default=("", 0))


def read_label_table(
    data: bytes, schema: LabelSchema, mapping: TableMapping | None, *, where: str, requested: bool = False
) -> LabelTable:
    """Read a CSV.

    Args:
        data: The file: UTF-8, UTF-16 or the encoding of the mapping, separated by comma, semicolon or tab.
        schema: The label schema.
        mapping: Meaning of the columns; None uses columns with the names of labels.
        where: Location, for messages.
        requested: Take what generated images were asked for (`REQUESTED`) as their labels, without a mapping.

    Raises:
        DataError: Another encoding, no header, no column for the file name.
        ConfigError: The mapping has a column the table does not have.
    """
    try:
        table = read_records(data, where=where, encoding=mapping.encoding if mapping else "")
    except DataError as error:
        if "save it as" in error.hint:
            error.hint += ", or name its encoding in a --mapping (encoding: cp1252)"
        raise
    if requested and mapping is None:
        table = replace(table, header=tuple(name.removeprefix(REQUESTED) for name in table.header))
    unread = _unread_columns(table.header, schema) if mapping is None else []
    mapping = mapping or default_mapping(table.header, schema, where=where)
    columns = _column_numbers(table.header, mapping, where)
    cells = {
        name: LabelCells(schema[name], table.column(columns[label.column]), label.values)
        for name, label in mapping.labels.items()
    }
    parsed = [
        rejected_record(record) or _parse_row(record.line, record.cells, columns, mapping, schema, cells)
        for record in table.records
    ]
    rows = tuple(one for one in parsed if isinstance(one, TableRow))
    rejected = tuple(one for one in parsed if isinstance(one, RejectedRow))
    warnings = [*unread, *patient_warnings("the table has no patient column", mapping, rows)]
    if not mapping.labels:
        warnings.append("no column contains a label: all labels will be unknown")
    refused = _refused_cells(table, rejected, columns, mapping, schema, cells)
    return LabelTable(rows, rejected, mapping, tuple(warnings), refused)


def _unread_columns(header: Sequence[str], schema: LabelSchema) -> list[str]:
    """Warn about columns that are nearly called like a label or the patient."""
    wanted = (*schema.names, PATIENT_COLUMN)
    return [
        f"column {column!r} is not read: rename it to {name!r}, or give it in a --mapping"
        for column, name in near_misses(header, wanted).items()
    ]


def _refused_cells(
    table: TableRecords,
    rejected: Sequence[RejectedRow],
    columns: Mapping[str, int],
    mapping: TableMapping,
    schema: LabelSchema,
    meanings: Mapping[str, LabelCells],
) -> dict[str, RefusedCells]:
    lines: dict[str, int] = {}
    for row in rejected:
        lines = dict.fromkeys(row.labels, row.line) | lines
    records = {record.line: record for record in table.records}
    found = {}
    for name, line in lines.items():
        spec, source = schema[name], mapping.labels[name]
        named = source.column in (mapping.file_column, mapping.patient_column)
        codes = {} if named else meanings[name].codes()
        values = spec.names or range(spec.num_values)
        said = {cell: value if value is None else values[value] for cell, value in codes.items()}
        cell = canonical_cell(records[line].cells[columns[source.column]]) if codes else ""
        example = {**(source.values or {}), "one cell": values[0], "another cell": values[1]}
        found[name] = RefusedCells(spec, source.column, line, cell, said or example)
    return found


def rejected_record(record: TableRecord) -> RejectedRow | None:
    """Return the reject of an invalid record, or None for a valid one."""
    if record.fault is None:
        return None
    return RejectedRow(record.line, record.fault.file, "", record.fault.reason, record.fault.detail)


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
            meant = "".join(f": {column!r} for {name!r}" for column in near_misses(header, [name]))
            raise ConfigError(
                f"the mapping needs column {name!r}, the table has: {shown_columns(header)}",
                where=where,
                hint=f"correct the mapping YAML{meant}",
            )
        numbers[name] = header.index(name)
    return numbers


def _parse_row(
    line: int,
    cells: Sequence[str],
    columns: Mapping[str, int],
    mapping: TableMapping,
    schema: LabelSchema,
    meanings: Mapping[str, LabelCells],
) -> TableRow | RejectedRow:
    cell = cells[columns[mapping.file_column]].strip()
    patient = "" if mapping.patient_column is None else cells[columns[mapping.patient_column]].strip()
    patient = "" if patient.lower() in MISSING else patient
    if not cell:
        return RejectedRow(line, "", patient, "missing_file_name", f"column {mapping.file_column} is empty")
    file = mapping.file_name(cell)
    labels: dict[str, int | None] = dict.fromkeys(schema.names)
    refused = {}
    for name, source in mapping.labels.items():
        text = cells[columns[source.column]]
        try:
            labels[name] = meanings[name].value(text)
        except KeyError:
            refused[name] = f"{name}: column {source.column} = {canonical_cell(text)!r}"
    if refused:
        detail = next(iter(refused.values()))
        return RejectedRow(line, file, patient, "unknown_label_value", detail, tuple(refused))
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
