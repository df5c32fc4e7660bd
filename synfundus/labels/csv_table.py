"""CSV as programs and spreadsheets write it, for label tables and label plans alike: text, columns, cells.

A byte order mark, UTF-16, a first line ``sep=;``, comments before the header, an unnamed index column, empty cells at
the end and whole numbers written as ``2.0`` are how tables leave Excel, pandas, R and NumPy.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from synfundus.errors import DataError
from synfundus.labels.schema import LabelSpec, canonical_cell

DELIMITERS = (",", ";", "\t")
MISSING = frozenset({"", "nan", "na", "n/a", "#n/a", "<na>", "null", "none", "nat"})
"""Spellings of a missing value, in lower case."""
UNKNOWN_CELLS = MISSING | {"unknown"}
"""Spellings of an unknown label, in lower case."""

_MOST_CODES, _CODE_CHARACTERS, _CODE_DIGITS, _RECUR = 6, 20, 2, 4
"""What a column of codes has at most: texts, characters and digits in each; and how often they are there on average."""

_NUMBER = re.compile(r"[-+]?\d[\d.,]*")
_SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""First bytes of .xlsx and .xls files."""
_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SEPARATOR_LINE = re.compile(r'"?sep=(?P<mark>[,;:|\t])"?(?P=mark)*\s*', re.IGNORECASE)


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

    def column(self, at: int) -> list[str]:
        """Return the cells of a column, without those of invalid records."""
        return [record.cells[at] for record in self.records if record.fault is None]


def read_records(
    data: bytes, *, where: str, what: str = "label table", encoding: str = "", blank_rows: bool = False
) -> TableRecords:
    """Read a CSV as text, without interpreting columns; a record of another width gets a fault.

    Unnamed columns at the end of the header and empty cells at the end of a row, as written by spreadsheets, are not
    counted.

    Args:
        data: The file, separated by comma, semicolon or tab.
        where: Location, for messages.
        what: What the file is, for messages.
        encoding: See `text_lines`.
        blank_rows: Keep rows of which all cells are empty.

    Raises:
        DataError: A spreadsheet, another encoding, unbalanced quotation marks, or an empty file.
    """
    lines = text_lines(data, where=where, what=what, encoding=encoding)
    return _checked_records(lines, where=where, what=what, blank_rows=blank_rows)


def _checked_records(lines: Sequence[str], *, where: str, what: str, blank_rows: bool) -> TableRecords:
    try:
        start, delimiter = _header_line(lines)
        records = _split_records(lines, start, delimiter)
    except csv.Error as error:
        raise DataError(f"the {what} is not a CSV: {error}", where=where) from error
    if not records:
        raise DataError(f"the {what} is empty: it has no header", where=where)
    header = tuple(cell.strip() for cell in records[0][2])
    checked: list[TableRecord] = []
    for first, last, cells in records[1:]:
        if any(cell.strip() for cell in cells) or (blank_rows and len(cells) == len(header)):
            joined = _joined_lines(lines, first, last, delimiter, len(header))
            checked += joined or [_record(first, cells, header)]
    return TableRecords(header, tuple(checked))


def read_rows(
    data: bytes, *, where: str, what: str
) -> tuple[tuple[str, ...], Iterator[tuple[int, Sequence[str], RecordFault | None]]]:
    """Return the header, and line, cells and fault of each record, blank ones too: as `read_records`, for millions.

    A plain table, without quotation marks and with as many cells in every line as in the header, is not stored.

    Raises:
        DataError: As `read_records`.
    """
    lines = text_lines(data, where=where, what=what)
    if b'"' not in data and lines:
        start, delimiter = _header_line(lines)
        if start == 0 and len({line.count(delimiter) for line in lines}) == 1 and delimiter in lines[0]:
            header = tuple(cell.strip() for cell in lines[0].split(delimiter))
            return header, _plain_rows(lines, delimiter, where=where, what=what)
    table = _checked_records(lines, where=where, what=what, blank_rows=True)
    return table.header, ((record.line, record.cells, record.fault) for record in table.records)


def _plain_rows(
    lines: Sequence[str], delimiter: str, *, where: str, what: str
) -> Iterator[tuple[int, Sequence[str], RecordFault | None]]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t")
    try:
        next(reader)
        for line, cells in enumerate(reader, start=2):
            yield line, cells, None
    except csv.Error as error:
        raise DataError(f"the {what} is not a CSV: {error}", where=where) from error


def text_lines(data: bytes, *, where: str, what: str = "label table", encoding: str = "") -> list[str]:
    """Return the lines of a table with any kind of line ends.

    Args:
        data: The file.
        where: Location, for messages.
        what: What the file is, for messages.
        encoding: Encoding of the file; if empty, UTF-8, or UTF-16 if it begins like that.

    Raises:
        DataError: A spreadsheet, or another encoding.
    """
    if data.startswith(_SPREADSHEETS):
        raise DataError(f"the {what} is a spreadsheet", where=where, hint="save the sheet as CSV UTF-8")
    try:
        text = data.decode(encoding or encoding_of(data))
    except UnicodeError as error:
        at = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise DataError(
            f"the {what} is not {encoding or encoding_of(data).upper()}{at}", where=where, hint="save it as CSV UTF-8"
        ) from error
    return list(io.StringIO(text.removeprefix("\ufeff"), newline=""))


def encoding_of(data: bytes) -> str:
    """Return the encoding of a text: UTF-16 by its byte order mark or the zeros of its first letters, else UTF-8."""
    if data.startswith(_BYTE_ORDER_MARKS):
        return "utf-16"
    if data[1:2] == data[3:4] == b"\0":
        return "utf-16-le"
    return "utf-16-be" if data[0:1] == data[2:3] == b"\0" else "utf-8"


def _header_line(lines: Sequence[str]) -> tuple[int, str]:
    """Return (position of the header, delimiter); a line ``sep=;`` and comments before the header are passed over.

    Raises:
        csv.Error: The header has unbalanced quotation marks.
    """
    filled = [at for at, line in enumerate(lines) if line.strip()]
    stated = _SEPARATOR_LINE.fullmatch(lines[filled[0]]) if filled else None
    filled = filled[1:] if stated else filled
    after = dict(pairwise(filled))
    for at in filled:
        cells = {mark: len(next(csv.reader([lines[at]], delimiter=mark), [])) for mark in DELIMITERS}
        delimiter = stated["mark"] if stated else max(DELIMITERS, key=lambda mark: cells[mark])
        comment = lines[at].startswith("#") and at in after
        if not comment or cells[delimiter] == lines[after[at]].count(delimiter) + 1 > 1:
            return at, delimiter
    return len(lines), DELIMITERS[0]


def _split_records(lines: Sequence[str], start: int, delimiter: str) -> list[tuple[int, int, list[str]]]:
    """Return (first line, last line, cells) of each record that is not an empty line, the header first."""
    reader = csv.reader(lines[start:], delimiter=delimiter, strict=True, skipinitialspace=delimiter != "\t")
    records: list[tuple[int, int, list[str]]] = []
    first = start + 1
    for cells in reader:
        if cells and (records or any(cell.strip() for cell in cells)):
            records.append((first, start + reader.line_num, cells))
        first = start + reader.line_num + 1
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


class LabelCells:
    """The values that the cells of a column mean: those of a mapping, names of values and their like, whole numbers.

    Whole numbers mean themselves, unless the mapping gives numbers a meaning. A name that is also a spelling of a
    missing value (``none``) counts as a name only in a column that has other names: beside numbers it is what programs
    write for a missing value.

    Args:
        spec: The label.
        cells: The column.
        values: Value by cell in canonical form and lower case, of a mapping.
    """

    def __init__(self, spec: LabelSpec, cells: Sequence[str], values: Mapping[str, int | None] | None = None) -> None:
        self._cells = cells
        own = values or {}
        names: dict[str, int | None] = {**spec.values_by_name}
        clear = {name: value for name, value in names.items() if name not in UNKNOWN_CELLS}
        named = len(clear) < len(names) and any(cell.strip().casefold() in clear for cell in cells)
        renumbered = any(_NUMBER.fullmatch(cell) for cell in own)
        numbers = {} if renumbered else {str(value): value for value in range(spec.num_values)}
        self._values = {**(names if named else clear), **numbers, **own}

    def value(self, cell: str) -> int | None:
        """Return the value of a cell; None is unknown.

        Raises:
            KeyError: It has none.
        """
        key = canonical_cell(cell).casefold()
        if key not in self._values and key in UNKNOWN_CELLS:
            return None
        return self._values[key]

    def codes(self) -> dict[str, int | None]:
        """Return the value of each cell, None if it has none, where a message may quote the column; else nothing.

        It may quote a few short texts that recur and hold no long number: others may be about one patient.
        """
        counts = Counter(map(canonical_cell, self._cells))
        texts = [text for text in counts if text.casefold() not in UNKNOWN_CELLS]
        recur = sum(counts[text] for text in texts) >= _RECUR * len(texts)
        short = all(len(text) <= _CODE_CHARACTERS and len(re.findall(r"\d", text)) <= _CODE_DIGITS for text in texts)
        if not recur or not short or len(texts) > _MOST_CODES:
            return {}
        return {text: self._values.get(text.casefold()) for text in texts}


def near_misses(header: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """Return, by column, the wanted name that is no column itself and differs in case, blanks or signs alone."""
    columns = tuple(header)
    missing = {_bare(name): name for name in wanted if name not in columns}
    return {column: missing[_bare(column)] for column in columns if _bare(column) in missing}


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
