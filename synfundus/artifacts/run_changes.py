"""What a run was resumed with other values of: learning rate, guards, averages, budget, intervals.

`run.json` keeps what the run began with. Each row of `changes.jsonl` names a place in images and the values that are
others from there on; `config.yaml` holds the newest, so that it can be given to `--config` to go on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from synfundus.artifacts.claim import flatten
from synfundus.storage import documents, filesystem

NAME = "changes.jsonl"
FREE = r"identity\.(optim|ema)\.(?!sigma_rel).*"
"""Keys of `run.json` that a run may go on with other values of."""
_ELSEWHERE = ("kind", "identity.unet", "identity.codec", "identity.init_fingerprint")
"""Keys with which a run cannot even start from the weights of this one."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Changes:
    """What is other than before.

    Attributes:
        before: Values that held up to the place, by dotted path in the section; what no file tells is left out.
        text: One line for the user; empty if nothing is new.
    """

    before: Mapping[str, Any]
    text: str


def plan_changes(
    begun: Mapping[str, Any], rows: Sequence[Row], wanted: Mapping[str, Any], images_seen: int
) -> tuple[dict[str, Any], list[Row]]:
    """Return the values that held up to a place, and the rows to keep with that of the place.

    Rows at and after the place are dropped, as what was trained after them is trained again: a start that is killed
    before its first checkpoint leaves no second row, and a change that is taken back leaves none.

    Args:
        begun: Known values by dotted path.
        rows: Rows so far, by place.
        wanted: Values from now on.
        images_seen: The place.
    """
    before = dict(begun)
    for row in reversed(rows):  # the first row knows what the run began with
        before |= {key: pair["from"] for key, pair in row["changed"].items()}
    earlier = [row for row in rows if row["images_seen"] < images_seen]
    for row in earlier:
        before |= {key: pair["to"] for key, pair in row["changed"].items()}
    changed = _pairs(before, wanted)
    return before, [*earlier, *([{"images_seen": images_seen, "changed": changed}] if changed else [])]


def _pairs(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    known = {key: value for key, value in now.items() if key in before and before[key] != value}
    return {key: {"from": before[key], "to": value} for key, value in known.items()}


def record_changes(url: str, *, section: str, wanted: Mapping[str, Any], images_seen: int) -> Changes:
    """Compare the values of a start with those before it, and keep what is other. On rank 0.

    Args:
        url: The run.
        section: Name of its section in the configuration.
        wanted: Values by section and name.
        images_seen: Where the run goes on.
    """
    now = flatten(documents.as_json(wanted))
    place, config_url = filesystem.join(url, NAME), filesystem.join(url, "config.yaml")
    rows = documents.read_lines(place) if filesystem.exists(place) else []
    config = yaml.safe_load(filesystem.read_bytes(config_url)) if filesystem.exists(config_url) else {}
    own = config.get(section) or {}
    identity = json.loads(filesystem.read_bytes(filesystem.join(url, "run.json")))["identity"]
    told = flatten(own) | flatten({name: identity[name] for name in ("optim", "ema") if name in identity})
    before, kept = plan_changes({key: told[key] for key in now if key in told}, rows, now, images_seen)
    news: Mapping[str, Any] = {}
    if kept != rows:
        held = before
        for row in rows:
            held = held | {key: pair["to"] for key, pair in row["changed"].items()}
        news = _pairs(held, now) or (kept[-1]["changed"] if kept else {})
        documents.write_lines(place, kept)
    stale = [key for key, value in now.items() if flatten(own).get(key) != value]
    for part, name in (key.split(".") for key in stale):
        if isinstance(own.get(part), dict):
            own[part][name] = now[f"{part}.{name}"]
    if stale and own:
        filesystem.write_bytes(config_url, yaml.safe_dump(config, sort_keys=False).encode())
    told_as = "; ".join(f"{section}.{key} {pair['from']} -> {pair['to']}" for key, pair in news.items())
    return Changes(before, f"{told_as}, from image {images_seen:,} on" if told_as else "")


def way_on(url: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the hint for settings a run cannot go on with; it names --init-from only where that can be followed."""
    there, here = flatten(found), flatten(documents.as_json(wanted))
    other = {key for key in there.keys() | here.keys() if there.get(key, "absent") != here.get(key, "absent")}
    export = "export/vae/config.json" if wanted.get("kind") == "vae" else "export/synfundus.json"
    hint = "give another --run-dir, or the settings and inputs it was begun with"
    if any(key.startswith(_ELSEWHERE) for key in other) or not filesystem.exists(filesystem.join(url, export)):
        return hint
    only = " (latents of the same autoencoder and labels)" if "identity.latents" in other else ""
    return f"{hint}; to start from its weights{only}: --init-from {url} and another --run-dir"
