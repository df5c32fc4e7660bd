"""Values of a run that may be others when it is resumed.

`run.json`, its claim, keeps those it began with; each row of
`changes.jsonl` names a place in images and the values that hold from there on; `config.yaml` has the newest, so that
`--config` can resume from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from synfundus.storage import documents, filesystem

CHANGES_NAME = "changes.jsonl"
CHANGEABLE = r"identity\.(optim|ema)\.(?!sigma_rel).*"
"""Keys of `run.json` of which a run may be resumed with other values."""
_SAME_NETWORK = (
    *("identity.seed", "identity.data", "identity.latents", "identity.diffusion", "identity.loss", "identity.ema"),
    *("identity.global_batch_size", "identity.precision", "identity.init_from", "identity.optim"),
)
"""Keys that do not keep a new run from starting with the weights of this one."""
Row = Mapping[str, Any]
Values = dict[str, dict[str, Any]]


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


def record_changes(url: str, *, section: str, wanted: Values, images_seen: int) -> tuple[Values, str]:
    """Compare the values of a start with those before it, and keep what is other. On rank 0.

    Args:
        url: The run.
        section: Name of its section in the configuration.
        wanted: Values by part of the section and name.
        images_seen: Where the run resumes.

    Returns:
        The values that held up to there, as far as files tell; one line for the user, empty if nothing is new.
    """
    now = documents.flatten(documents.as_json(wanted))
    place, config_url = filesystem.join(url, CHANGES_NAME), filesystem.join(url, "config.yaml")
    rows = documents.read_lines(place) if filesystem.exists(place) else []
    config = yaml.safe_load(filesystem.read_bytes(config_url)) if filesystem.exists(config_url) else {}
    own = config.get(section) or {}
    identity = documents.read_object(filesystem.join(url, "run.json"))["identity"]
    told = documents.flatten(own) | documents.flatten(
        {name: identity[name] for name in ("optim", "ema") if name in identity}
    )
    before, kept = plan_changes({key: told[key] for key in now if key in told}, rows, now, images_seen)
    news: Mapping[str, Any] = {}
    if kept != rows:
        held = before
        for row in rows:
            held = held | {key: pair["to"] for key, pair in row["changed"].items()}
        news = _pairs(held, now) or (kept[-1]["changed"] if kept else {})
        documents.write_lines(place, kept)
    stale = [key for key, value in now.items() if documents.flatten(own).get(key) != value]
    for part, name in (key.split(".") for key in stale):
        if isinstance(own.get(part), dict):
            own[part][name] = now[f"{part}.{name}"]
    if stale and own:
        filesystem.write_bytes(config_url, yaml.safe_dump(config, sort_keys=False).encode())
    text = "; ".join(f"{section}.{key} {pair['from']} -> {pair['to']}" for key, pair in news.items())
    known = {
        part: {name: before[key] for name in names if (key := f"{part}.{name}") in before}
        for part, names in wanted.items()
    }
    return known, f"{text}, from image {images_seen:,} on" if text else ""


def way_on(url: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the hint for settings a run cannot be resumed with; it names --init-from only where that works."""
    there, here = documents.flatten(found), documents.flatten(documents.as_json(wanted))
    keys = {key for key in there.keys() | here.keys() if key.startswith(("kind", "identity."))}
    other = {key for key in keys if there.get(key, "absent") != here.get(key, "absent")}
    export = "export/vae/config.json" if wanted.get("kind") == "vae" else "export/synfundus.json"
    hint = "give another --run-dir; --run-dir alone resumes this one, with its own settings and inputs"
    if not all(key.startswith(_SAME_NETWORK) for key in other) or not filesystem.exists(filesystem.join(url, export)):
        return hint
    only = " (latents of the same autoencoder and labels)" if "identity.latents" in other else ""
    return f"{hint}; to start from its weights{only}: --init-from {url} and another --run-dir"
