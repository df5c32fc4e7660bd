"""A run as its files show it, while it goes on or afterwards: read only, and without torch.

The files may be in the middle of being written: a line that is no JSON object is passed over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from synfundus.storage import filesystem
from synfundus.storage.file_times import modified_at
from synfundus.telemetry.sinks import METRICS_NAME

LEDGER_NAME = "ledger.jsonl"
_CHECKPOINT = re.compile(r"^images-(\d{12})$")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """The newest checkpoint.

    Attributes:
        images_seen: Its place.
        written_at: When it was published, seconds since 1970; None where the store does not say.
    """

    images_seen: int
    written_at: float | None


@dataclass(frozen=True)
class RunView:
    """What the files of a run say.

    Attributes:
        url: Its folder.
        kind: ``vae``, ``diffusion``, or empty before the run has said.
        budget_images: Images to train on; 0 if unknown.
        world_size: Ranks of its first start; 0 if unknown.
        rows: Rows of training, by position.
        judged: Rows of validation, by position.
        ledger: Rows of the ledger, in order.
        checkpoint: The newest; None if there is none.
        written_at: When the metrics were last written, seconds since 1970; None if unknown.
        exported: Whether the result is there.
    """

    url: str
    kind: str
    budget_images: int
    world_size: int
    rows: Sequence[Row]
    judged: Sequence[Row]
    ledger: Sequence[Row]
    checkpoint: Checkpoint | None
    written_at: float | None
    exported: bool

    @property
    def name(self) -> str:
        """Return the last part of the location."""
        if filesystem.is_local(self.url):
            return filesystem.local_path(self.url).resolve().name
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def images_seen(self) -> int:
        """Return the place of the newest row, or of a checkpoint beyond it."""
        places = [int(self.rows[-1]["images_seen"])] if self.rows else []
        return max([*places, self.checkpoint.images_seen if self.checkpoint else 0])


def read_run(url: str) -> RunView:
    """Read what a run has written so far; what is not there yet is left empty.

    Raises:
        StorageError: The disk or the store refused.
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
    world_size = _document(url, "environment.json", names).get("world_size")
    return RunView(
        url=url,
        kind=kind,
        budget_images=_whole(budget) or _whole(loop.get("budget_images") if isinstance(loop, dict) else None),
        world_size=_whole(world_size),
        rows=trained,
        judged=[row for row in rows if "loss" not in row],
        ledger=_lines(url, LEDGER_NAME, names),
        checkpoint=_newest_checkpoint(filesystem.join(url, "checkpoints")) if "checkpoints" in names else None,
        written_at=modified_at(filesystem.join(url, METRICS_NAME)) if METRICS_NAME in names else None,
        exported="export" in names,
    )


def series(rows: Sequence[Row], key: str) -> list[tuple[int, float]]:
    """Return (images seen, value) of every row that has a finite number under a key."""
    return [(int(row["images_seen"]), float(row[key])) for row in rows if _is_number(row.get(key))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _document(url: str, name: str, names: set[str]) -> Mapping[str, Any]:
    """Return a mapping from a JSON or YAML file, empty if it is not there or no mapping."""
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
    """Return rows in the order of a run: where it fell back behind rows it had written, the later ones count."""
    kept: list[Row] = []
    for row in rows:
        while kept and kept[-1]["images_seen"] > row["images_seen"]:
            kept.pop()
        kept.append(row)
    return kept


def _newest_checkpoint(root: str) -> Checkpoint | None:
    """Return the newest published checkpoint: the one whose manifest, which is written last, is there."""
    for name in reversed(filesystem.list_names(root)):
        found = _CHECKPOINT.match(name)
        manifest = filesystem.join(root, name, "MANIFEST.json")
        if found and filesystem.exists(manifest):
            return Checkpoint(int(found[1]), modified_at(manifest))
    return None
