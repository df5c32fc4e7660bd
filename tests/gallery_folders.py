"""Folders as `sample` writes them, small, for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tiny_sets import IMAGE_SIZE_PX, encode_png, write_set

from synfundus.artifacts.samples.description import IMAGES_DIR, PROVENANCE_NAME
from synfundus.labels.plan import REQUESTED, LabelRow, label_table
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema
from synfundus.storage import documents

GRADES = (0, 1, 2, 3, None, 0, 4, 0)


def label_rows(count: int) -> list[LabelRow]:
    """Return rows whose grade goes round in `GRADES`, and whose side changes every time; glaucoma in every third."""
    return [
        {"dr_grade": GRADES[number % len(GRADES)], "eye_side": number % 2, "is_gc": int(number % 3 == 0)}
        for number in range(count)
    ]


def disc(number: int, size_px: int = IMAGE_SIZE_PX) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draw a disc whose brightness goes up with its number, up to 64."""
    y, x = np.mgrid[:size_px, :size_px]
    inside = (x - size_px / 2) ** 2 + (y - size_px / 2) ** 2 < (size_px * 0.48) ** 2
    colour = np.array([60 + 3 * (number % 64), 20 + 2 * (number % 64), 10])
    return np.asarray(inside[..., None] * colour, dtype=np.uint8)


def write_png_samples(
    folder: Path, rows: Sequence[LabelRow], *, size_px: int = IMAGE_SIZE_PX, schema: LabelSchema = DEFAULT_LABEL_SCHEMA
) -> Path:
    """Write a folder of PNG files with its table and provenance."""
    (folder / IMAGES_DIR).mkdir(parents=True)
    names = [f"{IMAGES_DIR}/{number:08d}.png" for number in range(len(rows))]
    for number, name in enumerate(names):
        (folder / name).write_bytes(encode_png(disc(number, size_px)))
    requested = [{f"{REQUESTED}{name}": value for name, value in row.items()} for row in rows]
    table = label_table(requested, [f"{REQUESTED}{name}" for name in schema.names], file_name=names)
    (folder / "metadata.csv").write_bytes(table)
    said = {"num_images": len(rows), "image_size_px": size_px, "label_schema": schema.to_document()}
    documents.write_document(str(folder / PROVENANCE_NAME), said, format_name="synfundus-samples", version=1)
    return folder


def write_shard_samples(folder: Path, rows: Sequence[LabelRow], *, kind: str = "samples", **properties: Any) -> Path:
    """Write the same images as a shard set, or with another kind as an image set; two shards."""
    samples = [
        (f"{number:08d}", {"json": json.dumps({"labels": row}).encode(), "png": encode_png(disc(number))})
        for number, row in enumerate(rows)
    ]
    first = len(rows) // 2
    shards = {"train": (first, len(rows) - first)}
    write_set(folder, samples, shards=shards, kind=kind, properties={"image_size_px": IMAGE_SIZE_PX, **properties})  # type: ignore[arg-type]
    return folder
