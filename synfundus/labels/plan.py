"""The labels requested for each image of `sample`: from a plan file, the same for all images, or none."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from synfundus.errors import ConfigError, DataError
from synfundus.labels.schema import LabelSchema

LabelRow = dict[str, int | None]
"""Values by label name, in schema order; None = unknown."""

INDEX_COLUMNS = ("idx", "index", "file", "key", "file_name")
"""Columns a plan may have beside its labels; they are ignored."""

REQUESTED = "requested_"
"""What stands before a label in the table of generated images: it was asked for, and nobody has looked."""

_UNKNOWN_CELLS = ("", "unknown", "null", "none", "nan")


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
        raise ConfigError(
            f"the model has no label {', '.join(unknown)}; its labels are {', '.join(schema.names)}", where=where
        )


def _cell(text: str, *, name: str, schema: LabelSchema, where: str) -> int | None:
    """Return the value of a cell; None = unknown."""
    if text.strip().lower() in _UNKNOWN_CELLS:
        return None
    highest = schema[name].num_values - 1
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= highest:
        raise DataError(f"label {name} = {text!r} is not one of 0..{highest}, and not empty (unknown)", where=where)
    return value


def read_label_plan(data: bytes, schema: LabelSchema, *, where: str) -> list[LabelRow]:
    """Read a label plan: a CSV with a header of label names and a row per image.

    Empty cells and labels without a column are unknown.

    Args:
        data: The file.
        schema: The model's labels.
        where: The file's location, for messages.

    Raises:
        ConfigError: A column that is not a label of the model; the message lists the labels of both.
        DataError: No header, no rows, or a row of another length or with an invalid value; the message names the row.
    """
    try:
        text = data.decode("utf-8-sig")
        table = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the label plan is not a CSV in UTF-8: {error}", where=where) from error
    if not table or not any(cell.strip() for cell in table[0]):
        raise DataError("the label plan has no header", where=where, hint="write the label names into its first row")
    header = [cell.strip().removeprefix(REQUESTED) for cell in table[0]]
    if len(set(header)) != len(header):
        raise DataError(f"the label plan has a column twice: {', '.join(header)}", where=where)
    columns = [(column, name) for column, name in enumerate(header) if name.lower() not in INDEX_COLUMNS]
    _refuse_unknown_names([name for _, name in columns], schema, where=where)
    rows: list[LabelRow] = []
    for number, cells in enumerate(table[1:], start=2):
        if not cells:
            continue
        row_where = f"{where}, row {number}"
        if len(cells) != len(header):
            raise DataError(f"the row has {len(cells)} cells, the header {len(header)}", where=row_where)
        row: LabelRow = dict.fromkeys(schema.names)
        row.update({name: _cell(cells[column], name=name, schema=schema, where=row_where) for column, name in columns})
        rows.append(row)
    if not rows:
        raise DataError("the label plan has no rows", where=where)
    return rows


def _common_row(labels: Mapping[str, int | None], schema: LabelSchema) -> LabelRow:
    _refuse_unknown_names(list(labels), schema, where="sample.label")
    row: LabelRow = dict.fromkeys(schema.names)
    for name, value in labels.items():
        try:
            row[name] = schema.check_value(name, value)
        except DataError as error:
            raise ConfigError(error.message, where="sample.label", hint="give another --label") from error
    return row


def plan_labels(
    *, plan: bytes | None, labels: Mapping[str, int | None], num_images: int | None, schema: LabelSchema, where: str
) -> list[LabelRow]:
    """Return the label row of every image.

    Args:
        plan: Content of the label plan, a CSV file; None if there is none.
        labels: Labels of every image; the others come from the plan or are unknown.
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
