"""Reads the state of a run from its files, during the run or afterwards; without torch.

The files may be incomplete while they are being written: a line that is not a JSON object is skipped.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from synfundus.errors import ConfigError
from synfundus.storage import filesystem
from synfundus.storage.local_folder import WRITER_NAME
from synfundus.storage.s3 import object_store
from synfundus.storage.writer_lock import live_writer
from synfundus.telemetry.sinks import METRICS_NAME

LEDGER_NAME = "ledger.jsonl"
_CHECKPOINT = re.compile(r"^images-(\d{12})$")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """The newest checkpoint.

    Attributes:
        images_seen: Images trained on.
        written_at: When it was published, seconds since 1970; None if the store does not say.
    """

    images_seen: int
    written_at: float | None


@dataclass(frozen=True)
class RunView:
    """Content of a run's files.

    Attributes:
        url: Its folder.
        kind: ``vae``, ``diffusion``, or empty before it is recorded.
        budget_images: Images to train on; 0 if unknown.
        world_size: Ranks of its first start; 0 if unknown.
        rows: Training rows, by position.
        validation: Validation rows, by position.
        ledger: Rows of the ledger, in order.
        checkpoint: The newest checkpoint; None if there is none.
        written_at: When the metrics were last written, seconds since 1970; None if unknown.
        exported: Whether the export exists.
        judged_on: What its validation figures are of; empty if it is not recorded.
        writer: The process that works on it; empty if there is none.
    """

    url: str
    kind: str
    budget_images: int
    world_size: int
    rows: Sequence[Row]
    validation: Sequence[Row]
    ledger: Sequence[Row]
    checkpoint: Checkpoint | None
    written_at: float | None
    exported: bool
    judged_on: str = ""
    writer: str = ""

    @property
    def name(self) -> str:
        """The last part of the location."""
        if filesystem.is_local(self.url):
            return filesystem.local_path(self.url).resolve().name
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def images_seen(self) -> int:
        """Images seen at the newest row, or at a later checkpoint."""
        places = [int(self.rows[-1]["images_seen"])] if self.rows else []
        return max([*places, self.checkpoint.images_seen if self.checkpoint else 0])


def read_run(url: str) -> RunView:
    """Read what a run has written so far; what is missing is left empty.

    Raises:
        StorageError: The disk or the store failed.
    """
    names = set(filesystem.list_names(url))
    rows = _by_position(_lines(url, METRICS_NAME, names))
    trained = [row for row in rows if "loss" in row]
    run = _document(url, "run.json", names)
    kind = str(run.get("kind", ""))
    config = _document(url, "config.yaml", names)
    # sections of the verbs; of runs begun by a version before they had them the second name
    section = _section(config, "train_vae" if kind == "vae" else "train") or {}
    loop = section.get("loop") or (_section(config, "vae") if kind == "vae" else config).get("loop")
    budget = trained[-1].get("budget_images") if trained else None
    environment = _document(url, "environment.json", names)
    writer = None
    with contextlib.suppress(ConfigError):  # a note of another version
        writer = live_writer(url) if WRITER_NAME in names else None
    return RunView(
        url=url,
        kind=kind,
        budget_images=_whole(budget) or _whole(loop.get("budget_images") if isinstance(loop, dict) else None),
        world_size=_whole(environment.get("world_size")),
        rows=trained,
        validation=[row for row in rows if "loss" not in row],
        ledger=_lines(url, LEDGER_NAME, names),
        checkpoint=_newest_checkpoint(filesystem.join(url, "checkpoints")) if "checkpoints" in names else None,
        written_at=modified_at(filesystem.join(url, METRICS_NAME)) if METRICS_NAME in names else None,
        exported="export" in names,
        judged_on=str(environment.get("judged_on") or ""),
        writer=writer.describe() if writer else "",
    )


def series(rows: Sequence[Row], key: str) -> list[tuple[int, float]]:
    """Return (images seen, value) of every row with a finite number under a key."""
    return [(int(row["images_seen"]), float(row[key])) for row in rows if _is_number(row.get(key))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _document(url: str, name: str, names: set[str]) -> Mapping[str, Any]:
    """Return the mapping in a JSON or YAML file, empty if the file is missing or holds none."""
    if name not in names:
        return {}
    try:
        found = yaml.safe_load(filesystem.read_bytes(filesystem.join(url, name)))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _lines(url: str, name: str, names: set[str]) -> list[Row]:
    rows: list[Row] = []
    if name not in names:
        return rows
    for line in filesystem.read_bytes(filesystem.join(url, name)).split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and _is_number(row.get("images_seen")):
            rows.append(row)
    return rows


def _by_position(rows: Sequence[Row]) -> list[Row]:
    """Return rows in order; where a run went back to a checkpoint, the rows written later replace earlier ones."""
    kept: list[Row] = []
    for row in rows:
        while kept and kept[-1]["images_seen"] > row["images_seen"]:
            kept.pop()
        kept.append(row)
    return kept


def _newest_checkpoint(root: str) -> Checkpoint | None:
    """Return the newest published checkpoint: one with a manifest, which is written last."""
    for name in reversed(filesystem.list_names(root)):
        found = _CHECKPOINT.match(name)
        manifest = filesystem.join(root, name, "MANIFEST.json")
        if found and filesystem.exists(manifest):
            return Checkpoint(int(found[1]), modified_at(manifest))
    return None


def modified_at(url: str) -> float | None:
    """Return when a file was last written, in seconds since 1970; None if it is missing or the time is unknown.

    Raises:
        StorageError: The store refused, or gave no valid answer within the deadline.
    """
    try:
        if filesystem.is_local(url):
            return filesystem.local_path(url).stat().st_mtime
        if filesystem.protocol_of(url) == "s3":
            written = object_store.stat(url).modified
            return None if written is None else written.timestamp()
    except (FileNotFoundError, NotADirectoryError):
        pass
    return None
