"""A folder of generated PNG files, as `sample` writes it by default: what it holds, whether it is what was written."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from synfundus.artifacts.samples.description import PROVENANCE_NAME, TABLE_NAMES, requested_labels
from synfundus.errors import CorruptShard, DataError, StorageError
from synfundus.labels.counts import UNKNOWN
from synfundus.pictures.sheets import Pixels
from synfundus.seeding import keyed_generator
from synfundus.shards.members import checksums_hold, decode_image
from synfundus.shards.shard_check import Problem
from synfundus.stages import Summary
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import MANIFEST_NAME
from synfundus.telemetry.console import Console

_SHOWN = (
    "statement",
    "num_images",
    "image_size_px",
    "model_fingerprint",
    "sampler",
    "num_steps",
    "guidance_scale",
    "seed",
)
_DIGITS = 3
"""Of a value that no label has."""


@dataclass(frozen=True)
class PngFolder:
    """A finished folder of PNG files.

    Attributes:
        url: The folder.
        provenance: Its PROVENANCE.json.
        rows: File and requested labels, as texts, of each image.
    """

    url: str
    provenance: Mapping[str, Any]
    rows: tuple[tuple[str, dict[str, str]], ...]

    def read(self, name: str) -> bytes:
        """Return the bytes of an image."""
        return filesystem.read_bytes(filesystem.join(self.url, name))

    def counts(self) -> dict[str, dict[str, int]]:
        """Return for each label how many images were asked for with each value from 0 on; unknown last."""
        found = {label: Counter(row[label] for _, row in self.rows) for label in (self.rows[0][1] if self.rows else {})}
        return {
            label: {**{value: rows[value] for value in _values(set(rows) - {""})}, UNKNOWN: rows[""]}
            for label, rows in found.items()
        }


def _values(found: set[str]) -> list[str]:
    """Return the values of a label up to the largest one found, or those found where they are not all small numbers."""
    if all(text.isdecimal() and len(text) < _DIGITS for text in found):
        return [str(value) for value in range(max([1, *map(int, found)]) + 1)]
    return sorted(found)


def is_png_folder(url: str) -> bool:
    """Whether `sample` has finished a folder of PNG files there; one of shards has a manifest too."""
    if filesystem.exists(filesystem.join(url, MANIFEST_NAME)):
        return False
    table = any(filesystem.exists(filesystem.join(url, name)) for name in TABLE_NAMES)
    return table and filesystem.exists(filesystem.join(url, PROVENANCE_NAME))


def open_png_folder(url: str) -> PngFolder:
    """Open a folder for which `is_png_folder` holds.

    Raises:
        DataError: Its documents cannot be read.
    """
    provenance = documents.read_document(
        filesystem.join(url, PROVENANCE_NAME), format_name="synfundus-samples", version=1
    )
    return PngFolder(url, provenance, tuple(requested_labels(url) or ()))


def survey_png_folder(folder: PngFolder, *, verify: bool, console: Console) -> Summary:
    """Compare rows and files; with ``verify`` read every file.

    Returns:
        The report; ``ok`` is false and ``exit_code`` 3 if there are problems.
    """
    there = {name for name in filesystem.list_files(folder.url) if "/" in name}
    missing = [name for name, _ in folder.rows if name not in there]
    problems = [Problem(name or TABLE_NAMES[0], "missing" if name else "a row names no file") for name in missing]
    damaged = []
    if verify:
        present = [(name, labels) for name, labels in folder.rows if name in there]
        with console.progress("verifying", total=len(present), unit="images") as bar:
            for name, labels in present:
                if fault := _fault(folder, name, labels):
                    damaged.append(Problem(name, fault))
                bar.advance(1)
        problems += [*damaged, *_disagreements(folder, there)]
    counts = {label: {value: n for value, n in found.items() if n} for label, found in folder.counts().items()}
    return {
        "ok": not problems,
        "exit_code": DataError.exit_code if problems else 0,
        "location": folder.url,
        "kind": "samples",
        "num_samples": len(folder.rows),
        "labels": {label: found for label, found in counts.items() if set(found) != {UNKNOWN}},
        "missing": missing,
        "properties": {name: folder.provenance[name] for name in _SHOWN if name in folder.provenance},
        "verified": verify,
        "good": len(folder.rows) - len(missing) - len(damaged),
        "damaged": len(damaged),
        "num_problems": len(problems),
        "problems": [asdict(problem) for problem in problems],
    }


def _disagreements(folder: PngFolder, there: set[str]) -> Iterator[Problem]:
    """Yield where table, files and provenance differ in what there is."""
    listed = Counter(name for name, _ in folder.rows)
    yield from (Problem(name, f"named in {count} rows of the table") for name, count in listed.items() if count > 1)
    strays = sorted(name for name in there - set(listed) if not name.rpartition("/")[2].startswith("."))
    yield from (Problem(name, "no row of the table names it") for name in strays)
    if (said := folder.provenance.get("num_images")) != len(folder.rows):
        yield Problem(PROVENANCE_NAME, f"it says {said} images, the table has {len(folder.rows)} rows")


def _fault(folder: PngFolder, name: str, labels: Mapping[str, str]) -> str:
    """Return what a file has that the written one had not, or lacks; empty if it is the written one."""
    size_px = folder.provenance.get("image_size_px")
    try:
        data = folder.read(name)
        pixels = decode_image(data, where=name, extension="png")
    except (CorruptShard, StorageError) as error:
        return error.message
    if not checksums_hold(data):
        return "its bytes do not match its checksums"
    if pixels.shape != (size_px, size_px, 3):
        return f"image of {pixels.shape}, expected {size_px} px square RGB"
    with Image.open(io.BytesIO(data)) as image:
        told = dict(image.info)
    wanted = {
        "synthetic": "yes",
        "model": str(folder.provenance.get("model_fingerprint")),
        "seed": str(folder.provenance.get("seed")),
        "index": name.rpartition("/")[2].removesuffix(".png").lstrip("0") or "0",
    }
    for key, value in wanted.items():
        if told.get(key) != value:
            return f"its text {key!r} is {told.get(key, 'missing')!r}, expected {value!r}"
    try:
        made_for = {label: "" if value is None else str(value) for label, value in json.loads(told["labels"]).items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return "its text 'labels' is missing or not a list of labels"
    changed = [label for label in {**made_for, **labels} if made_for.get(label, "") != labels.get(label, "")]
    return f"other labels in the table than in the file: {', '.join(changed)}" if changed else ""


def chosen_png_files(folder: PngFolder, *, wanted: int, seed: int) -> tuple[list[Pixels], list[dict[str, int | None]]]:
    """Return pictures and labels of a random selection of images, without unreadable ones."""
    total = len(folder.rows)
    numbers = keyed_generator(seed, "inspect").permutation(total)[:wanted]
    pictures: list[Pixels] = []
    asked: list[dict[str, int | None]] = []
    for number in np.sort(numbers).tolist():
        name, labels = folder.rows[number]
        try:
            pictures.append(decode_image(folder.read(name), where=name, extension="png"))
        except (CorruptShard, StorageError):
            continue
        asked.append(
            {label: int(text) if text.isdecimal() and len(text) < _DIGITS else None for label, text in labels.items()}
        )
    return pictures, asked


def show_png_folder(report: Summary, console: Console) -> None:
    """Show what a folder holds."""
    total, known = report["num_samples"], report["labels"]
    shown = [(name, str(value)) for name, value in report["properties"].items()]
    console.table("generated images, as PNG files", ("name", "value"), shown)
    console.table(
        f"labels asked for, of {total:,} images",
        ("label", "value: images"),
        [(label, ", ".join(f"{value}: {n:,}" for value, n in found.items())) for label, found in known.items()],
    )
