"""The importer of a public set, and reading a table with it.

An importer is data: the columns of the set, and which label values their cells mean. A set with an unusual table adds
one small function: how to read records from the table (`Importer.records`), or photographs from a record
(`Importer.photographs`). Here are also the codings that several sets share.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from synfundus.errors import DataError
from synfundus.labels.csv_table import MISSING, TableRecord, TableRecords, read_records
from synfundus.labels.schema import LabelSchema, canonical_cell
from synfundus.photographs.importers.file_names import FileIndex, picture_suffix
from synfundus.photographs.label_mapping import TableMapping
from synfundus.photographs.label_table import (
    LabelTable,
    RejectedRow,
    TableRow,
    patient_warnings,
    rejected_record,
)

Cells = Mapping[str, str]
"""One record: stripped cell by column name; empty for a missing value and for columns the table does not have."""


@dataclass(frozen=True)
class Column:
    """A column with values of a label.

    Attributes:
        name: Name of the column, as in `Importer.aliases`.
        values: Label value by cell; None and empty cells mean unknown. Any other cell is outside the coding of the
            set, and the row is rejected.
    """

    name: str
    values: Mapping[str, int | None]


@dataclass(frozen=True)
class Doubt:
    """Cells of one column that make labels unknown.

    Attributes:
        column: The column.
        cells: Cells with this effect.
        labels: Labels that become unknown.
        values: Only these label values become unknown; None means all.
    """

    column: str
    cells: tuple[str, ...]
    labels: tuple[str, ...]
    values: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Source:
    """The input of an importer: the bytes of the table (empty if the set has none) and all file names."""

    data: bytes
    files: Collection[str]
    where: str


def csv_records(source: Source) -> TableRecords:
    """Read an ordinary table with a header."""
    return read_records(source.data, where=source.where)


def one_photograph(cells: Cells) -> Sequence[Cells]:
    """Return the record unchanged, as one photograph."""
    return (cells,)


@dataclass(frozen=True)
class Importer:
    """A public data set: its table, and the labels in it.

    Attributes:
        collection: Name of the set, written into every sample.
        file: Column with the file name.
        labels: Columns of each label. With several columns, a finding in one is enough; the label is 0 only if all
            of them are 0.
        patient: Column with the patient; None if the set has none.
        suffix: Extension of the photographs, used if the file is missing.
        aliases: Names of a column in other releases of the set.
        optional: Columns that some releases lack; their labels are then unknown.
        required: Further columns that must exist, because `photographs` reads them or they identify the set.
        derived: Columns that are not in the table but added by `photographs`.
        constants: Labels that are the same for all photographs of the set.
        doubts: Cells that make labels unknown.
        notes: Messages for the user with columns: shown if the table has one of the columns, or if none are given.
        has_table: False if the set has only file names.
        bare_names: File names in the table have no extension; a table with extensions is of another set.
        expected: Description of the table, if it is not a CSV with a header.
        records: Reads the records from the source.
        photographs: Returns the photographs of a record, with `derived` columns.
    """

    collection: str
    file: str
    labels: Mapping[str, tuple[Column, ...]]
    patient: str | None = None
    suffix: str = ""
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    required: tuple[str, ...] = ()
    derived: frozenset[str] = frozenset()
    constants: Mapping[str, int] = field(default_factory=dict)
    doubts: tuple[Doubt, ...] = ()
    notes: tuple[tuple[tuple[str, ...], str], ...] = ()
    has_table: bool = True
    bare_names: bool = False
    expected: str = ""
    records: Callable[[Source], TableRecords] = csv_records
    photographs: Callable[[Cells], Sequence[Cells]] = one_photograph

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read, including optional ones."""
        names = [self.file, *self.required, *self.optional]
        names += [column.name for columns in self.labels.values() for column in columns]
        names += [doubt.column for doubt in self.doubts]
        if self.patient is not None:
            names.append(self.patient)
        return tuple(name for name in dict.fromkeys(names) if name not in self.derived)

    def locate(self, header: Sequence[str]) -> dict[str, str]:
        """Return the name in a header of each of `columns`; missing columns are left out."""
        located = {}
        for name in self.columns:
            found = next((other for other in (name, *self.aliases.get(name, ())) if other in header), None)
            if found is not None:
                located[name] = found
        return located

    def fits_names(self, table: TableRecords) -> bool:
        """Whether the first file name of a table fits this set."""
        if not self.bare_names or self.file not in table.header:
            return True
        at = table.header.index(self.file)
        first = next((record.cells[at] for record in table.records if not record.fault), "")
        return not picture_suffix(first)

    def missing(self, header: Sequence[str]) -> tuple[str, ...]:
        """Return the columns of this set that a header lacks."""
        located = self.locate(header)
        return tuple(name for name in self.columns if name not in located and name not in self.optional)


def read_photographs(
    importer: Importer, table: TableRecords, schema: LabelSchema, files: Collection[str], *, where: str
) -> LabelTable:
    """Convert the records of a set into rows and rejects.

    Args:
        importer: The set.
        table: Records whose header has the columns of the set.
        schema: The label schema; other labels are left out with a warning.
        files: File names in the source folder, used to complete names of the table.
        where: Location, for messages.

    Raises:
        DataError: A needed column occurs twice.
    """
    located = importer.locate(table.header)
    for column in located.values():
        if table.header.count(column) > 1:
            raise DataError(f"column {column!r} occurs {table.header.count(column)} times", where=where)
    positions = {name: table.header.index(located[name]) if name in located else None for name in importer.columns}
    reader = _RowReader(importer, schema, FileIndex(files))
    parsed: list[TableRow | RejectedRow] = []
    for record in table.records:
        reject = rejected_record(record)
        if reject is not None:
            parsed.append(reject)
            continue
        parsed += [reader.read(record.line, cells) for cells in importer.photographs(_cells(record, positions))]
    rows = tuple(one for one in parsed if isinstance(one, TableRow))
    rejected = tuple(one for one in parsed if isinstance(one, RejectedRow))
    mapping = TableMapping(importer.file, importer.patient, source=importer.collection)
    warnings = _warnings(importer, table.header, schema)
    warnings += patient_warnings(f"{importer.collection} does not identify patients", mapping, rows)
    return LabelTable(rows, rejected, mapping, tuple(warnings))


def _cells(record: TableRecord, positions: Mapping[str, int | None]) -> Cells:
    cells = {name: "" if at is None else record.cells[at].strip() for name, at in positions.items()}
    return {name: "" if cell.lower() in MISSING else cell for name, cell in cells.items()}


class _RowReader:
    """Reads the photographs of one set; caches what is the same for all rows."""

    def __init__(self, importer: Importer, schema: LabelSchema, index: FileIndex) -> None:
        self._importer = importer
        self._index = index
        self._unknown: dict[str, int | None] = dict.fromkeys(schema.names)
        self._unknown |= {name: value for name, value in importer.constants.items() if name in schema.names}
        self._labels = [
            (name, columns, schema[name].num_values)
            for name, columns in importer.labels.items()
            if name in schema.names
        ]

    def read(self, line: int, cells: Cells) -> TableRow | RejectedRow:
        importer = self._importer
        patient = "" if importer.patient is None else cells[importer.patient]
        cell = cells[importer.file]
        if not cell:
            return RejectedRow(line, "", patient, "missing_file_name", f"column {importer.file} is empty")
        found = self._index.find(cell)
        if len(found) > 1:
            return RejectedRow(line, cell, patient, "ambiguous_file", f"{cell} can be {', '.join(found)}")
        file = found[0] if found else cell if picture_suffix(cell) else f"{cell}{importer.suffix}"
        labels = dict(self._unknown)
        for name, columns, num_values in self._labels:
            try:
                labels[name] = _value(columns, cells, num_values)
            except _OutsideCoding as error:
                return RejectedRow(line, file, patient, "unknown_label_value", f"{name}: {error}", (name,))
        for doubt in importer.doubts:
            if canonical_cell(cells[doubt.column]) in doubt.cells:
                for name in doubt.labels:
                    if name in labels and (doubt.values is None or labels[name] in doubt.values):
                        labels[name] = None
        return TableRow(line, file, patient, labels)


class _OutsideCoding(Exception):
    """A cell that the set or the label schema does not define."""


def _value(columns: Sequence[Column], cells: Cells, num_values: int) -> int | None:
    """Return the value of a label, which has ``num_values``, from its columns.

    Raises:
        _OutsideCoding: A cell that is neither empty nor defined by the set, or a value that the label does not have.
    """
    values: list[int | None] = []
    for column in columns:
        text = cells[column.name]
        if text not in column.values:
            text = canonical_cell(text)
        if text and text not in column.values:
            raise _OutsideCoding(f"column {column.name} = {text!r}")
        values.append(column.values[text] if text else None)
    known = [value for value in values if value is not None]
    value = max(known) if any(known) or len(known) == len(values) else None
    if value is not None and value >= num_values:
        raise _OutsideCoding(f"{value} is not one of 0..{num_values - 1}")
    return value


def _warnings(importer: Importer, header: Sequence[str], schema: LabelSchema) -> list[str]:
    warnings = [text for columns, text in importer.notes if not columns or set(columns) & set(header)]
    left_out = [name for name in (*importer.labels, *importer.constants) if name not in schema.names]
    if left_out:
        warnings.append(
            f"{importer.collection} has {', '.join(left_out)}, which the label schema does not have: left out"
        )
    return warnings


GRADE: Mapping[str, int | None] = {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4}
"""The international scale of diabetic retinopathy: none, mild, moderate, severe, proliferative."""

FINDING: Mapping[str, int | None] = {"0": 0, "1": 1}
"""Searched for in every photograph: absent or present."""

ONLY_ABSENCE: Mapping[str, int | None] = {"0": 0, "1": None}
"""A broader finding: if it is absent, the label is 0; if it is present, the label is unknown."""

SIDE: Mapping[str, int | None] = {
    **dict.fromkeys(("right", "Right", "RIGHT", "R", "r", "OD"), 0),
    **dict.fromkeys(("left", "Left", "LEFT", "L", "l", "OS"), 1),
}
"""Names of the eye sides."""


def words(values: Mapping[str, int | None]) -> Mapping[str, int | None]:
    """Return a coding with its words in lower case, upper case and capitalised."""
    return {form: value for word, value in values.items() for form in (word.lower(), word.upper(), word.capitalize())}
