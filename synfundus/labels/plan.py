"""The labels requested for each image of `sample`: from a plan file, the same for all images, or none."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence

from synfundus.errors import ConfigError, DataError, suggestion
from synfundus.labels.csv_table import LabelCells, near_misses, read_records
from synfundus.labels.schema import SAME, LabelSchema

LabelRow = dict[str, int | None]
"""Values by label name, in schema order; None = unknown."""

INDEX_COLUMNS = ("idx", "index", "key", "patient_id", "file", "image", "filename", "file_name", "path")
"""Columns a plan may have beside its labels; they are ignored, as are columns without a name."""

REQUESTED = "requested_"
"""What stands before a label in the table of generated images: it was asked for, and nobody has looked."""

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
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*before, *names])
    for row, *cells in zip(rows, *before.values(), strict=True):
        writer.writerow([*cells, *("" if row.get(name) is None else row[name] for name in names)])
    return stream.getvalue().encode()


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


def read_label_plan(data: bytes, schema: LabelSchema, *, where: str) -> list[LabelRow]:
    """Read a label plan: a CSV with a header of label names and a row per image, as `prepare` reads label tables.

    Empty cells and labels without a column are unknown.

    Args:
        data: The file.
        schema: The model's labels.
        where: The file's location, for messages.

    Raises:
        ConfigError: A column that is not a label of the model; the message lists the labels of both.
        DataError: No header, no rows, or a row of another length or with an invalid value; the message names the row.
    """
    table = read_records(data, where=where, what="label plan", blank_rows=True)
    header = [name.removeprefix(REQUESTED) for name in table.header]
    columns = {
        name: at
        for at, name in enumerate(header)
        if name in schema.names or not (name.lower() in INDEX_COLUMNS or _UNNAMED.fullmatch(name))
    }
    twice = [name for name in columns if header.count(name) > 1]
    if twice:
        raise DataError(f"the label plan has a column twice: {', '.join(twice)}", where=where)
    _refuse_unknown_names(list(columns), schema, where=where)
    if not table.records:
        raise DataError("the label plan has no rows", where=where)
    cells = {name: LabelCells(schema[name], table.column(at)) for name, at in columns.items()}
    rows: list[LabelRow] = []
    for record in table.records:
        row: LabelRow = dict.fromkeys(schema.names)
        row_where = f"{where}, row {record.line}"
        if record.fault is not None:
            raise DataError(f"the row cannot be read: {record.fault.detail}", where=row_where)
        for name, at in columns.items():
            try:
                row[name] = cells[name].value(record.cells[at])
            except KeyError as error:
                raise DataError(
                    f"label {name} = {record.cells[at].strip()!r} is not one of {schema[name].choices}, and not empty "
                    "(unknown)",
                    where=row_where,
                ) from error
        rows.append(row)
    return rows


def _common_row(labels: Mapping[str, int | str | None], schema: LabelSchema) -> LabelRow:
    _refuse_unknown_names(list(labels), schema, where="sample.label")
    row: LabelRow = dict.fromkeys(schema.names)
    for name, value in labels.items():
        try:
            row[name] = schema.check_value(name, value)
        except DataError as error:
            raise ConfigError(error.message, where="sample.label", hint="give another --label") from error
    return row


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
    common = _common_row(labels, schema)
    if plan is None:
        if num_images is None:
            raise ConfigError("no number of images", where="sample.num_images", hint="give --num-images or --labels")
        return [dict(common) for _ in range(num_images)]
    rows = read_label_plan(plan, schema, where=where)
    twice = [name for name in labels if any(row[name] is not None for row in rows)]
    if twice:
        raise ConfigError(f"labels given both by --label and by the plan: {', '.join(twice)}", where=where)
    if num_images is not None and num_images > len(rows):
        raise ConfigError(
            f"{num_images} images are requested, but the label plan has {len(rows)} rows",
            where=where,
            hint="leave --num-images out, or add rows",
        )
    given = {name: value for name, value in common.items() if value is not None}
    return [{**row, **given} for row in rows[:num_images]]
