"""What an importer is, and how a table is read with one.

An importer is data: which columns a public set has, what their cells say about which label, and what they leave open.
Sets whose table is odd add one small function: how the table becomes records (`Importer.records`), or how a record
becomes photographs (`Importer.photographs`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from synfundus.errors import DataError
from synfundus.labels.schema import LabelSchema
from synfundus.photographs.importers.file_names import FileIndex, picture_suffix
from synfundus.photographs.label_mapping import TableMapping, canonical_cell
from synfundus.photographs.label_table import (
    LabelTable,
    RejectedRow,
    TableRecord,
    TableRecords,
    TableRow,
    read_records,
    rejected_record,
)

Cells = Mapping[str, str]
"""One record: stripped cell by column name; empty for NaN, and for a column that the table does not have."""


@dataclass(frozen=True)
class Column:
    """A column that says something about a label.

    Attributes:
        name: Name of the column, as in `Importer.aliases`.
        values: Label value by cell; None is a cell that leaves the label unknown. An empty cell always does. Any other
            cell is outside the coding of the set: a named reject.
    """

    name: str
    values: Mapping[str, int | None]


@dataclass(frozen=True)
class Doubt:
    """Cells in one column that take back what other columns say.

    Attributes:
        column: Column to look at.
        cells: Cells that raise the doubt.
        labels: Labels that become unknown.
        values: Only these values become unknown; None means all.
    """

    column: str
    cells: tuple[str, ...]
    labels: tuple[str, ...]
    values: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Source:
    """What an importer reads: the bytes of the table (empty where the set has none) and the names of all files."""

    data: bytes
    files: Collection[str]
    where: str


def csv_records(source: Source) -> TableRecords:
    """Read an ordinary table with a header."""
    return read_records(source.data, where=source.where)


def one_photograph(cells: Cells) -> Sequence[Cells]:
    """Take a record for one photograph, as it is."""
    return (cells,)


@dataclass(frozen=True)
class Importer:
    """A public data set: its table, and what the table knows.

    Attributes:
        collection: Name of the set, written into every sample.
        file: Column with the file name.
        labels: Columns that speak about each label. With several columns a finding in one is enough; without one the
            label is 0 only if all of them say 0.
        patient: Column with the patient; None where the set does not say.
        suffix: Extension of the photographs, for the name of a file that is not there.
        aliases: Other names of a column, of other releases of the set.
        optional: Columns that some releases lack; they then know nothing.
        also: Further columns that must be there: `photographs` reads them, or they tell the set from others.
        derived: Columns that are not in the table: `photographs` adds them.
        constants: Labels that hold for every photograph of the set.
        doubts: Cells that make labels unknown.
        notes: Sentences for the user, each with columns: shown if the table has one of them, or if there are none.
        has_table: False where the file names are all there is.
        bare_names: Its names have no extension: a table with these columns whose names have one is of another set.
        shape: What the table looks like, where it is not a CSV with a header.
        records: How the source becomes records.
        photographs: How a record becomes photographs, `derived` columns included.
    """

    collection: str
    file: str
    labels: Mapping[str, tuple[Column, ...]]
    patient: str | None = None
    suffix: str = ""
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    also: tuple[str, ...] = ()
    derived: frozenset[str] = frozenset()
    constants: Mapping[str, int] = field(default_factory=dict)
    doubts: tuple[Doubt, ...] = ()
    notes: tuple[tuple[tuple[str, ...], str], ...] = ()
    has_table: bool = True
    bare_names: bool = False
    shape: str = ""
    records: Callable[[Source], TableRecords] = csv_records
    photographs: Callable[[Cells], Sequence[Cells]] = one_photograph

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the table is read by, the optional ones included."""
        names = [self.file, *self.also, *self.optional]
        names += [column.name for columns in self.labels.values() for column in columns]
        names += [doubt.column for doubt in self.doubts]
        if self.patient is not None:
            names.append(self.patient)
        return tuple(name for name in dict.fromkeys(names) if name not in self.derived)

    def locate(self, header: Sequence[str]) -> dict[str, str]:
        """Return the column of a header that stands for each of `columns`; a column that is not there is left out."""
        located = {}
        for name in self.columns:
            here = next((other for other in (name, *self.aliases.get(name, ())) if other in header), None)
            if here is not None:
                located[name] = here
        return located

    def fits_names(self, table: TableRecords) -> bool:
        """Whether the first name of a table can be one of this set."""
        if not self.bare_names or self.file not in table.header:
            return True
        at = table.header.index(self.file)
        first = next((record.cells[at] for record in table.records if not record.fault), "")
        return not picture_suffix(first)

    def missing(self, header: Sequence[str]) -> tuple[str, ...]:
        """Return the columns that a header of this set would have and this one has not."""
        located = self.locate(header)
        return tuple(name for name in self.columns if name not in located and name not in self.optional)


def read_photographs(
    importer: Importer, table: TableRecords, schema: LabelSchema, files: Collection[str], *, where: str
) -> LabelTable:
    """Turn the records of a set's table into rows and named rejects.

    Args:
        importer: The set.
        table: Records whose header has the columns of the set.
        schema: Labels to fill; what it does not have is left out with a warning.
        files: Names below the source folder, to complete the names of the table.
        where: Location, for messages.

    Raises:
        DataError: A column that is needed is there twice.
    """
    located = importer.locate(table.header)
    for column in located.values():
        if table.header.count(column) > 1:
            raise DataError(f"column {column!r} is there {table.header.count(column)} times", where=where)
    positions = {name: table.header.index(located[name]) if name in located else None for name in importer.columns}
    reader = _RowReader(importer, schema, FileIndex(files))
    rows: list[TableRow] = []
    rejected: list[RejectedRow] = []
    for record in table.records:
        reject = rejected_record(record)
        if reject is not None:
            rejected.append(reject)
            continue
        for cells in importer.photographs(_cells(record, positions)):
            parsed = reader.read(record.line, cells)
            if isinstance(parsed, TableRow):
                rows.append(parsed)
            else:
                rejected.append(parsed)
    mapping = TableMapping(importer.file, importer.patient, source=importer.collection)
    return LabelTable(tuple(rows), tuple(rejected), mapping, _warnings(importer, table.header, schema, rows))


def _cells(record: TableRecord, positions: Mapping[str, int | None]) -> Cells:
    cells = {name: "" if at is None else record.cells[at].strip() for name, at in positions.items()}
    return {name: "" if cell.lower() == "nan" else cell for name, cell in cells.items()}


class _RowReader:
    """Reads photographs of one set; what does not change from row to row is looked up once."""

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
                value = _value(columns, cells)
            except _OutsideCoding as error:
                return RejectedRow(line, file, patient, "unknown_label_value", f"{name}: {error}")
            if value is not None and value >= num_values:
                detail = f"{name}: {value} is not one of 0..{num_values - 1}"
                return RejectedRow(line, file, patient, "unknown_label_value", detail)
            labels[name] = value
        for doubt in importer.doubts:
            if canonical_cell(cells[doubt.column]) in doubt.cells:
                for name in doubt.labels:
                    if name in labels and (doubt.values is None or labels[name] in doubt.values):
                        labels[name] = None
        return TableRow(line, file, patient, labels)


class _OutsideCoding(Exception):
    """A cell that the set does not define; ends as a named reject."""


def _value(columns: Sequence[Column], cells: Cells) -> int | None:
    """Return what columns together say about a label.

    Raises:
        _OutsideCoding: A cell that is neither empty nor one of the set's.
    """
    said: list[int | None] = []
    for column in columns:
        text = cells[column.name]
        if text not in column.values:
            text = canonical_cell(text)
        if text and text not in column.values:
            raise _OutsideCoding(f"column {column.name} = {text!r}")
        said.append(column.values[text] if text else None)
    known = [value for value in said if value is not None]
    if any(known) or len(known) == len(said):
        return max(known)
    return None


def _warnings(
    importer: Importer, header: Sequence[str], schema: LabelSchema, rows: Sequence[TableRow]
) -> tuple[str, ...]:
    warnings = [text for columns, text in importer.notes if not columns or set(columns) & set(header)]
    left_out = [name for name in (*importer.labels, *importer.constants) if name not in schema.names]
    if left_out:
        warnings.append(
            f"{importer.collection} knows {', '.join(left_out)}, which the label schema does not have: left out"
        )
    without = sum(not row.patient for row in rows)
    if importer.patient is None:
        warnings.append(
            f"{importer.collection} does not say which photographs are of one patient: each counts as its own, so that "
            "two photographs of one patient may fall into different splits"
        )
    elif without:
        warnings.append(f"{without} rows have no patient: each counts as its own patient")
    return tuple(warnings)
