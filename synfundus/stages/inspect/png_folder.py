"""A folder of generated PNG files, as `sample` writes it by default: what it is, how many, of which labels."""

from __future__ import annotations

import csv
import io
from collections import Counter
from typing import Any

from synfundus.errors import DataError
from synfundus.labels.plan import REQUESTED
from synfundus.storage import documents, filesystem
from synfundus.telemetry.console import Console

_PROVENANCE, _IMAGES = "PROVENANCE.json", "images"
_TABLES = ("metadata.csv", "labels.csv")
"""Labels by image; the second is of earlier versions."""
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


def is_png_folder(url: str) -> bool:
    """Whether `sample` has finished a folder of PNG files there."""
    return filesystem.exists(filesystem.join(url, _PROVENANCE)) and _table(url) is not None


def _table(url: str) -> str | None:
    places = (filesystem.join(url, name) for name in _TABLES)
    return next((place for place in places if filesystem.exists(place)), None)


def describe_png_folder(url: str, console: Console) -> dict[str, Any]:
    """Show a folder of generated images.

    Returns:
        The report; ``ok`` is false and ``exit_code`` 3 if images are missing.

    Raises:
        DataError: Its documents cannot be read.
    """
    provenance = documents.read_document(filesystem.join(url, _PROVENANCE), format_name="synfundus-samples", version=1)
    table = filesystem.read_bytes(str(_table(url))).decode()
    rows = [
        {name.removeprefix(REQUESTED): cell for name, cell in row.items()} for row in csv.DictReader(io.StringIO(table))
    ]
    there = set(filesystem.list_names(filesystem.join(url, _IMAGES)))
    names = [str(row.pop("file_name", "") or row.pop("file", "")) for row in rows]
    missing = [name for name in names if name.rpartition("/")[2] not in there]
    counts = {label: Counter(row[label] or "unknown" for row in rows) for label in (rows[0] if rows else {})}
    known = {label: dict(sorted(found.items())) for label, found in counts.items() if set(found) != {"unknown"}}
    shown = {name: provenance[name] for name in _SHOWN if name in provenance}
    console.table("generated images, as PNG files", ("name", "value"), [(name, str(v)) for name, v in shown.items()])
    console.table(
        f"labels asked for, of {len(rows):,} images",
        ("label", "value: images"),
        [(label, ", ".join(f"{value}: {n:,}" for value, n in found.items())) for label, found in known.items()],
    )
    for name in missing[:10]:
        console.warning(f"{name}: missing")
    console.message(
        f"{len(rows) - len(missing):,} of {len(rows):,} images are there; a set of shards says more: --format shards"
    )
    return {
        "ok": not missing,
        "exit_code": DataError.exit_code if missing else 0,
        "location": url,
        "kind": "samples",
        "num_samples": len(rows),
        "labels": known,
        "missing": missing,
        "properties": shown,
    }
