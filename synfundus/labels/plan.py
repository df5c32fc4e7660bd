"""The labels requested for each image of `sample`: from a plan file, the same for all images, or none."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import ConfigError, DataError, suggestion
from synfundus.labels.csv_table import LabelCells, near_misses, read_rows
from synfundus.labels.schema import SAME, UNKNOWN_STATE, LabelSchema
from synfundus.labels.seen import MARKS, SEEN

LabelRow = dict[str, int | None]
"""Values by label name, in schema order; None = unknown."""

INDEX_COLUMNS = ("idx", "index", "key", "patient_id", "file", "image", "filename", "file_name", "path")
"""Columns a plan may have beside its labels; they are ignored, as are columns without a name."""

REQUESTED = "requested_"
"""What stands before a label in the table of generated images: it was asked for, and nobody has looked."""

PATIENT = "patient_id"

_UNNAMED = re.compile(r"(Unnamed: \d+)?")
"""The index that pandas writes, also after it was read again."""


def label_table(rows: Sequence[LabelRow], names: Sequence[str], **before: Sequence[object]) -> bytes:
    """Return labels as CSV: a row per image, an empty cell is unknown.

    Args:
        rows: Labels of each image.
        names: The label columns.
        before: The columns before them, e.g. the name of each file.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="," if before else "")
    csv.writer(stream, lineterminator="\n").writerow([*before, *names])
    texts: dict[tuple[int | None, ...], str] = {}
    for row, *cells in zip(rows, *before.values(), strict=True):
        key = tuple([row.get(name) for name in names])
        if key not in texts:
            joined = ",".join("" if value is None else str(value) for value in key)
            texts[key] = f"{joined}\n" if joined or before else '""\n'  # an empty line would be no row
        if before:
            writer.writerow(cells)
        stream.write(texts[key])
    return stream.getvalue().encode()


def plan_table(
    states: NDArray[np.int16],
    index: NDArray[np.int64],
    marks: Sequence[str] | NDArray[np.str_] | None,
    schema: LabelSchema,
) -> bytes:
    """Return a label plan as CSV, as `read_plan` reads it.

    Args:
        states: Distinct label states ``[d, k]``.
        index: Which of them is the row of each image ``[n]``.
        marks: What the column `SEEN` says of each ``[d]``; None leaves the column out.
        schema: The labels.
    """
    cells = ["", *map(str, range(max(schema.num_values)))]
    columns = [[cells[state] for state in column] for column in states.T.tolist()]
    names = list(schema.names)
    if marks is not None:
        columns, names = [*columns, list(marks)], [*names, SEEN]
    lines = [line or '""' for line in map(",".join, zip(*columns, strict=True))]  # an empty line would be no row
    header = label_table([], names).decode()
    return (header + "".join([f"{lines[number]}\n" for number in index.tolist()])).encode()


def _refuse_unknown_names(names: Sequence[str], schema: LabelSchema, *, where: str) -> None:
    unknown = [name for name in names if name not in schema.names]
    if unknown:
        meant = [f"{label} for {name}" for name, label in near_misses(names, schema.names).items()]
        named = ", ".join(f"{name}{suggestion(name, schema.names, cutoff=SAME)}" for name in unknown)
        raise ConfigError(
            f"the model has no label {named}; its labels are {', '.join(schema.names)}",
            where=where,
            hint=f"write {', '.join(meant)}" if meant else "leave it out, or correct its name",
        )


@dataclass(frozen=True)
class LabelPlan:
    """The rows of a label plan or label table, each distinct one once.

    Attributes:
        states: Label states of the distinct rows ``[d, k]``, in the order in which they come first.
        marks: What the column `SEEN` says of them; empty texts without one.
        lines: Line of the file in which each comes first.
        index: Which of them is the row of each image ``[n]``.
        patients: Patient of each image; empty without such a column.
        unread: Columns that are no labels.
    """

    states: NDArray[np.int16]
    marks: tuple[str, ...]
    lines: tuple[int, ...]
    index: NDArray[np.int64]
    patients: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def read_plan(data: bytes, schema: LabelSchema, *, where: str, strict: bool = True) -> LabelPlan:
    """Read a label plan: a CSV with a header of label names and a row per image, as `prepare` reads label tables.

    Empty cells and labels without a column are unknown.

    Args:
        data: The file.
        schema: The model's labels.
        where: The file's location, for messages.
        strict: Refuse a column that is no label; else only one whose name is nearly that of a label.

    Raises:
        ConfigError: A column that is not a label of the model; the message lists the labels of both.
        DataError: No header, no rows, or a row of another length or with an invalid value; the message names the row.
    """
    header, records = read_rows(data, where=where, what="label plan")
    header = tuple(name.removeprefix(REQUESTED) for name in header)
    columns = {
        name: at
        for at, name in enumerate(header)
        if name in schema.names or not (name.lower() in (*INDEX_COLUMNS, SEEN) or _UNNAMED.fullmatch(name))
    }
    twice = [name for name in columns if header.count(name) > 1]
    if twice:
        raise DataError(f"the label plan has a column twice: {', '.join(twice)}", where=where)
    unread = tuple(name for name in columns if name not in schema.names)
    if strict or near_misses(unread, schema.names) or len(unread) == len(columns):
        _refuse_unknown_names(list(columns), schema, where=where)
    columns = {name: at for name, at in columns.items() if name not in unread}
    seen_at = next((at for at, name in enumerate(header) if name == SEEN and name not in schema.names), None)
    patient_at = None if strict else next((at for at, name in enumerate(header) if name == PATIENT), None)
    fault = None
    wanted = (*columns.values(), *(() if seen_at is None else (seen_at,)))
    found: dict[tuple[str, ...], int] = {}
    lines: list[int] = []
    index: list[int] = []
    patients: list[str] = []
    for line, cells, fault in records:
        if fault is not None:
            break
        key = tuple([cells[at] for at in wanted])
        number = found.setdefault(key, len(lines))
        if number == len(lines):
            lines.append(line)
        index.append(number)
        if patient_at is not None:
            patients.append(cells[patient_at].strip())
    distinct = list(zip(*found, strict=True)) if found and wanted else [() for _ in wanted]
    states = np.zeros((len(lines), len(schema.labels)), dtype=np.int16)
    _fill_states(states, dict(zip(columns, distinct, strict=False)), schema, lines, where=where)
    if fault is not None:
        raise DataError(f"the row cannot be read: {fault.detail}", where=f"{where}, row {line}")
    if not index:
        raise DataError("the label plan has no rows", where=where)
    marks = _marks(distinct[-1], lines, where=where) if seen_at is not None else ("",) * len(lines)
    return LabelPlan(states, marks, tuple(lines), np.array(index, dtype=np.int64), tuple(patients), unread)


def _fill_states(
    states: NDArray[np.int16],
    columns: Mapping[str, Sequence[str]],
    schema: LabelSchema,
    lines: Sequence[int],
    *,
    where: str,
) -> None:
    """Put the states of the cells into ``[d, k]``; the first row with a value that its label lacks is refused."""
    wrong: list[tuple[int, str]] = []
    for name, column in columns.items():
        cells = LabelCells(schema[name], tuple(dict.fromkeys(column)))
        known: dict[str, int] = {}
        for cell in dict.fromkeys(column):
            try:
                value = cells.value(cell)
                known[cell] = UNKNOWN_STATE if value is None else value + 1
            except KeyError:
                wrong.append((column.index(cell), name))
        if not wrong:
            states[:, schema.names.index(name)] = [known[cell] for cell in column]
    if wrong:
        row, name = min(wrong, key=lambda one: one[0])
        raise DataError(
            f"label {name} = {columns[name][row].strip()!r} is not one of {schema[name].choices}, and not empty "
            "(unknown)",
            where=f"{where}, row {lines[row]}",
        )


def _marks(column: Sequence[str], lines: Sequence[int], *, where: str) -> tuple[str, ...]:
    marks = tuple(cell.strip() for cell in column)
    for mark, line in zip(marks, lines, strict=True):
        if mark and mark not in MARKS:
            raise DataError(f"{SEEN} = {mark!r} is not one of {', '.join(MARKS)}", where=f"{where}, row {line}")
    return marks


def read_label_plan(data: bytes, schema: LabelSchema, *, where: str) -> list[LabelRow]:
    """Read the label row of every image, see `read_plan`; equal rows are one object.

    Raises:
        ConfigError: A column that is not a label of the model.
        DataError: A plan that cannot be read; the message names the row.
    """
    return plan_requests(plan=data, labels={}, num_images=None, schema=schema, where=where).rows


def _common_row(labels: Mapping[str, int | str | None], schema: LabelSchema) -> LabelRow:
    _refuse_unknown_names(list(labels), schema, where="sample.label")
    row: LabelRow = dict.fromkeys(schema.names)
    for name, value in labels.items():
        try:
            row[name] = schema.check_value(name, value)
        except DataError as error:
            raise ConfigError(error.message, where="sample.label", hint="give another --label") from error
    return row


@dataclass(frozen=True)
class Requests:
    """What is asked for, each distinct label row once.

    Attributes:
        distinct: The distinct rows.
        marks: What the plan says of who has them, see `MARKS`; empty texts where it says nothing.
        places: Where each comes first, for messages.
        index: Which of them is the row of each image ``[n]``.
    """

    distinct: tuple[LabelRow, ...]
    marks: tuple[str, ...]
    places: tuple[str, ...]
    index: NDArray[np.int64]

    @cached_property
    def rows(self) -> list[LabelRow]:
        """The label row of every image; equal rows are one object."""
        return [self.distinct[number] for number in self.index.tolist()]


def plan_requests(
    *,
    plan: bytes | None,
    labels: Mapping[str, int | str | None],
    num_images: int | None,
    schema: LabelSchema,
    where: str,
) -> Requests:
    """Return what is asked for, from the same arguments and with the same errors as `plan_labels`."""
    common = _common_row(labels, schema)
    if plan is None:
        if num_images is None:
            raise ConfigError("no number of images", where="sample.num_images", hint="give --num-images or --labels")
        return Requests((common,), ("",), ("--label",), np.zeros(num_images, dtype=np.int64))
    table = read_plan(plan, schema, where=where)
    twice = [name for name in labels if (table.states[:, schema.names.index(name)] != UNKNOWN_STATE).any()]
    if twice:
        raise ConfigError(f"labels given both by --label and by the plan: {', '.join(twice)}", where=where)
    if num_images is not None and num_images > len(table.index):
        raise ConfigError(
            f"{num_images} images are requested, but the label plan has {len(table.index)} rows",
            where=where,
            hint="leave --num-images out, or add rows",
        )
    given = {name: value for name, value in common.items() if value is not None}
    distinct = tuple({**schema.decode(states), **given} for states in table.states.tolist())
    return Requests(distinct, table.marks, tuple(f"row {line}" for line in table.lines), table.index[:num_images])


def plan_labels(
    *,
    plan: bytes | None,
    labels: Mapping[str, int | str | None],
    num_images: int | None,
    schema: LabelSchema,
    where: str,
) -> list[LabelRow]:
    """Return the label row of every image.

    Args:
        plan: Content of the label plan, a CSV file; None if there is none.
        labels: Labels of every image, as integers or names of values; the others come from the plan or are unknown.
        num_images: Number of images; None = one per row of the plan.
        schema: The model's labels.
        where: The plan's location, for messages.

    Raises:
        ConfigError: Labels the model does not have, a label in both the plan and ``labels``, or no number of images.
        DataError: A plan that cannot be read.
    """
    return plan_requests(plan=plan, labels=labels, num_images=num_images, schema=schema, where=where).rows
