"""A folder of generated PNG files, as `sample` writes it by default: what it is, how many, of which labels."""

from __future__ import annotations

from collections import Counter
from typing import Any

from synfundus.artifacts.sample_set import IMAGES_DIR, PROVENANCE_NAME, TABLE_NAMES, requested_labels
from synfundus.errors import DataError
from synfundus.storage import documents, filesystem
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


def is_png_folder(url: str) -> bool:
    """Whether `sample` has finished a folder of PNG files there."""
    table = any(filesystem.exists(filesystem.join(url, name)) for name in TABLE_NAMES)
    return table and filesystem.exists(filesystem.join(url, PROVENANCE_NAME))


def describe_png_folder(url: str, console: Console) -> dict[str, Any]:
    """Show a folder of generated images.

    Returns:
        The report; ``ok`` is false and ``exit_code`` 3 if images are missing.

    Raises:
        DataError: Its documents cannot be read.
    """
    where = filesystem.join(url, PROVENANCE_NAME)
    provenance = documents.read_document(where, format_name="synfundus-samples", version=1)
    requested = requested_labels(url) or []
    there = set(filesystem.list_names(filesystem.join(url, IMAGES_DIR)))
    names, rows = [name for name, _ in requested], [row for _, row in requested]
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
