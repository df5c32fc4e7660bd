"""Claims: a folder's purpose is written into it before anything else; a folder with another purpose is refused.

Some values of a run may be others when it is resumed. `run.json`, its claim, keeps those it began with; each row of
`changes.jsonl` names a place in images and the values that hold from there on; `config.yaml` has the newest, so that
`--config` can resume from it.

Only one process at a time may call these; among ranks that is rank 0 (`on_rank_0`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from synfundus.errors import ConfigError, DataError
from synfundus.storage import documents, filesystem
from synfundus.storage.local_folder import holds_ours
from synfundus.storage.writer_lock import write_alone

_MOST_SHOWN = 4
_ENVELOPE = ("format", "schema_version")
_CONTAINER = re.compile(r"^(identity|settings)\.")
"""What is left out of a name: below it are the names of the configuration."""


@dataclass(frozen=True)
class Claim:
    """The claim of one kind of folder.

    Attributes:
        name: The document in the folder.
        format_name: Its format.
        version: Its version.
        others: What a folder with another purpose holds, for messages, e.g. "latents of something else".
        flag: The option that names the folder.
        beside: Pattern of files that a folder may hold before it is claimed.
        free: Pattern of the keys, dotted, that are not compared.
    """

    name: str
    format_name: str
    version: int
    others: str
    flag: str = "--out"
    beside: str = ""
    free: str = ""

    def read(self, folder: str) -> documents.Document | None:
        """Return the claim of a folder; None where it is empty or does not exist.

        Raises:
            ConfigError: It holds something else.
        """
        if not holds_ours(folder, proof=[self.name], beside=self.beside, flag=self.flag):
            return None
        url = filesystem.join(folder, self.name)
        try:
            return documents.read_document(url, format_name=self.format_name, version=self.version)
        except DataError as error:
            message = f"the folder holds something else: {error.message}"
            raise ConfigError(message, where=url, hint=error.hint or f"give another {self.flag}") from error

    def make(self, folder: str, wanted: Mapping[str, Any]) -> bool:
        """Claim a folder, or compare with its claim; returns whether it was unclaimed.

        Raises:
            ConfigError: It has another purpose, or holds something else, and the message names both sides; or it has
                another writer.
        """
        for _ in range(2):  # again as the only writer: another one may have claimed it meanwhile
            found = self.read(folder)
            if found is not None:
                self.refuse_difference(folder, found, wanted)
            write_alone(folder, flag=self.flag)
        if found is None:
            url = filesystem.join(folder, self.name)
            documents.write_document(url, wanted, format_name=self.format_name, version=self.version)
        return found is None

    def refuse_difference(self, folder: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Refuse a folder with another claim.

        Raises:
            ConfigError: Names the differences.
        """
        if changed := difference(found, wanted, free=self.free):
            hint = f"give another {self.flag}, or the settings and inputs it was begun with"
            raise ConfigError(f"this folder holds {self.others}: {changed}", where=folder, hint=hint)


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any], *, free: str = "") -> str:
    """Describe in one line how two documents differ, what stands at the top first, hashes last; empty if they don't.

    Keys that match ``free`` are left out.
    """
    there, here = documents.flatten(found), documents.flatten(documents.as_json(wanted))
    keys = {key for key in (set(there) | set(here)).difference(_ENVELOPE) if not re.fullmatch(free, key)}
    changed = [
        f"{_CONTAINER.sub('', key)} is {there.get(key, 'absent')!r} there, {here.get(key, 'absent')!r} here"
        for key in sorted(keys, key=lambda key: (key.endswith("_sha256"), "." in key, key))
        if there.get(key, "absent") != here.get(key, "absent")
    ]
    more = f" and {len(changed) - _MOST_SHOWN} more" if len(changed) > _MOST_SHOWN else ""
    return "; ".join(changed[:_MOST_SHOWN]) + more


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
    now = flatten(documents.as_json(wanted))
    place, config_url = filesystem.join(url, CHANGES_NAME), filesystem.join(url, "config.yaml")
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
    hint = "give another --run-dir, or the settings and inputs it was begun with"
    if not all(key.startswith(_SAME_NETWORK) for key in other) or not filesystem.exists(filesystem.join(url, export)):
        return hint
    only = " (latents of the same autoencoder and labels)" if "identity.latents" in other else ""
    return f"{hint}; to start from its weights{only}: --init-from {url} and another --run-dir"
