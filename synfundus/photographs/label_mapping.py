"""The meaning of the columns of a label table: the ``--mapping`` YAML.

::

    source: EyePACS                 # optional: name of the collection, written into every sample
    file: image                     # column with the file name
    file_pattern: "{file}.jpeg"     # optional: file name in the source folder, from the cell
    patient_id: subject             # optional: column; without it every photograph is its own patient
    encoding: cp1252                # optional: encoding of the table; default: UTF-8, or UTF-16 if it begins like that
    eye_side: {column: eye, values: {R: 0, L: 1}}
    labels:
      dr_grade: {column: level}     # cells are the label's integers, or names of its values and their like
      is_gc: {column: class, values: {RG: 1, NRG: 0, "?": null}}   # null = unknown
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from synfundus.errors import ConfigError, DataError
from synfundus.labels.csv_table import near_misses
from synfundus.labels.schema import LabelSchema, LabelSpec, canonical_cell

FILE_PLACEHOLDER = "{file}"
DEFAULT_SOURCE = "photographs"
FILE_COLUMNS = ("file", "image", "filename", "file_name", "path")
"""Default columns of the file name, in order of preference."""
PATIENT_COLUMN = "patient_id"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".bmp", ".ppm", ".pgm", ".dcm")
"""A file in the source folder with one of these suffixes is an input, listed in the table or not."""

_INTEGER = re.compile(r"-?\d{1,9}")
_SHOWN_CHARACTERS = 80
_SHOWN_COLUMNS, _SHOWN_NAME = 60, 40
_KEYS = {"source", "file", "file_pattern", "patient_id", "encoding", "eye_side", "labels"}


@dataclass(frozen=True)
class LabelColumn:
    """The source of a label.

    Attributes:
        column: Name of the column.
        values: Label value by cell in canonical form and lower case (None = unknown); other cells mean what they do in
            a table without a mapping.
    """

    column: str
    values: Mapping[str, int | None] | None = None


@dataclass(frozen=True)
class TableMapping:
    """The meaning of the columns of a label table.

    Attributes:
        file_column: Column with the file name.
        patient_column: Column with the patient, or None if the table has none.
        labels: Source of each label in the table.
        file_pattern: File name with ``{file}`` for the cell.
        source: Name of the collection.
        encoding: Encoding of the table; empty if it is to be recognised.
    """

    file_column: str
    patient_column: str | None
    labels: Mapping[str, LabelColumn] = field(default_factory=dict)
    file_pattern: str = FILE_PLACEHOLDER
    source: str = DEFAULT_SOURCE
    encoding: str = ""

    def to_yaml(self, values: Mapping[str, Mapping[str, str | int | None]]) -> str:
        """Return a mapping file of one line, with other values for some labels."""
        document: dict[str, Any] = {} if self.source == DEFAULT_SOURCE else {"source": self.source}
        document |= {"file": self.file_column}
        document |= {} if self.file_pattern == FILE_PLACEHOLDER else {"file_pattern": self.file_pattern}
        document |= {"patient_id": self.patient_column} if self.patient_column else {}
        document |= {"encoding": self.encoding} if self.encoding else {}
        document["labels"] = {}
        for name, label in self.labels.items():
            cells = values.get(name, label.values)
            document["labels"][name] = {"column": label.column, "values": dict(cells)} if cells else label.column
        text = yaml.safe_dump(document, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1_000_000)
        return text.strip()

    def file_name(self, cell: str) -> str:
        """Return the file name for a cell."""
        return self.file_pattern.replace(FILE_PLACEHOLDER, cell)


def shown_columns(header: Sequence[str]) -> str:
    """List the columns of a table for a message, shortened.

    If the header is missing, nothing is quoted: the cells may identify a patient.
    """
    data = re.compile(rf"[-+]?\d[\d.,:/ -]*|.*({'|'.join(map(re.escape, PICTURE_SUFFIXES))})", re.IGNORECASE)
    if any(data.fullmatch(name) for name in header):
        return f"{len(header)} cells that look like data, not column names (is the header missing?)"
    names = [name[:_SHOWN_NAME] for name in header[:_SHOWN_COLUMNS]]
    return ", ".join(names) + (f" and {len(header) - len(names)} more" if len(header) > len(names) else "")


def default_mapping(header: tuple[str, ...], schema: LabelSchema, *, where: str) -> TableMapping:
    """Map columns with the names of labels.

    Raises:
        DataError: No column has the file name.
    """
    file_column = next((name for name in FILE_COLUMNS if name in header), None)
    if file_column is None:
        meant = [f"rename {column!r} to {name!r}" for column, name in near_misses(header, FILE_COLUMNS).items()]
        known = ", ".join(FILE_COLUMNS)
        raise DataError(
            f"no column for the file name among: {shown_columns(header)}",
            where=where,
            hint=f"{', or '.join(meant) or f'name it one of {known}'}, or give it in a --mapping",
        )
    labels = {name: LabelColumn(name) for name in schema.names if name in header}
    return TableMapping(file_column, PATIENT_COLUMN if PATIENT_COLUMN in header else None, labels)


def parse_table_mapping(document: object, schema: LabelSchema, *, where: str) -> TableMapping:
    """Check and convert a mapping.

    Args:
        document: The parsed YAML; scalars are text, null is None.
        schema: The label schema.
        where: Location, for messages.

    Raises:
        ConfigError: An unknown key, a label or value the schema does not have, a cell that is mapped twice.
    """
    if not isinstance(document, dict):
        raise ConfigError("a mapping is a YAML mapping of keys to columns", where=where)
    extra = sorted(str(key) for key in set(document) - _KEYS)
    if extra:
        raise ConfigError(
            f"unknown keys in the mapping: {', '.join(extra)}", where=where, hint=f"known: {', '.join(sorted(_KEYS))}"
        )
    pattern = _text(document, "file_pattern", FILE_PLACEHOLDER, where)
    if FILE_PLACEHOLDER not in pattern:
        raise ConfigError(f"file_pattern {pattern!r} does not contain {FILE_PLACEHOLDER}", where=where)
    entries = document.get("labels") or {}
    if not isinstance(entries, dict):
        raise ConfigError("labels must be a mapping of label -> {column, values}", where=where)
    if "eye_side" in document:
        if "eye_side" in entries:
            raise ConfigError("eye_side is given twice: at the top and under labels", where=where)
        entries = {**entries, "eye_side": document["eye_side"]}
    labels = {str(name): _label_column(str(name), entry, schema, where) for name, entry in entries.items()}
    patient = document.get("patient_id")
    return TableMapping(
        file_column=_text(document, "file", None, where),
        patient_column=None if patient is None else _text(document, "patient_id", None, where),
        labels=labels,
        file_pattern=pattern,
        source=_text(document, "source", DEFAULT_SOURCE, where),
        encoding=_encoding(document, where),
    )


def _encoding(document: Mapping[str, Any], where: str) -> str:
    if "encoding" not in document:
        return ""
    name = _text(document, "encoding", None, where)
    try:
        "a".encode(name).decode(name)
    except (LookupError, ValueError) as error:
        raise ConfigError(
            f"unknown encoding {_shown(name)}", where=where, hint="for example utf-8, cp1252, latin-1 or utf-16"
        ) from error
    return name


def _text(document: Mapping[str, Any], key: str, default: str | None, where: str) -> str:
    value = document.get(key, default)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"the mapping needs text for {key!r}, found {_shown(value)}", where=where)
    return value.strip()


def _label_column(name: str, entry: object, schema: LabelSchema, where: str) -> LabelColumn:
    """Parse the source of a label: a column name, or ``{column, values}``."""
    spec = schema[name]
    if isinstance(entry, str):
        return LabelColumn(entry.strip())
    if not isinstance(entry, dict) or set(entry) - {"column", "values"}:
        raise ConfigError(f"label {name!r} in the mapping must be a column or {{column, values}}", where=where)
    column = _text(entry, "column", None, where)
    if entry.get("values") is None:
        return LabelColumn(column)
    if not isinstance(entry["values"], dict):
        raise ConfigError(f"label {name!r}: values must be a mapping of cell -> value", where=where)
    values: dict[str, int | None] = {}
    for cell, value in entry["values"].items():
        canonical = canonical_cell(cell).casefold()
        if not canonical and value is not None:
            raise ConfigError(f"label {name!r}: an empty cell is unknown and cannot be a value", where=where)
        number = _label_value(spec, value, where)
        if values.setdefault(canonical, number) != number:
            raise ConfigError(f"label {name!r}: the cell {canonical!r} is mapped twice", where=where)
    return LabelColumn(column, values)


def _label_value(spec: LabelSpec, text: object, where: str) -> int | None:
    if text is None:
        return None
    if isinstance(text, str) and text.casefold() in spec.values_by_name:
        return spec.values_by_name[text.casefold()]
    if not isinstance(text, str) or not _INTEGER.fullmatch(text):
        named = f", a name of a value ({', '.join(spec.names)})" if spec.names else ""
        raise ConfigError(
            f"label {spec.name!r}: value {_shown(text)} is neither an integer{named} nor null", where=where
        )
    if not 0 <= int(text) < spec.num_values:
        raise ConfigError(f"label {spec.name!r}: value {text} is not one of {spec.choices}", where=where)
    return int(text)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
