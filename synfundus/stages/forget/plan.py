"""What `synfundus forget` has to take out: the keys of a patient, and the shards they are in. Writes nothing."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from typing import Any

from synfundus.artifacts.latent_set import load_sources
from synfundus.config.photographs import ForgetConfig
from synfundus.errors import ConfigError
from synfundus.photographs.crosswalk import (
    CROSSWALK_NAME,
    NEAR_DUPLICATES_NAME,
    REJECTS_NAME,
    owner_of,
    read_secret,
    read_withdrawn,
    withdrawal_token,
)
from synfundus.stages.verb import require
from synfundus.storage import documents, filesystem
from synfundus.storage.locations import absolute_location
from synfundus.storage.manifest import ShardSet, load_shard_set
from synfundus.storage.tarshard import TarShardReader


@dataclass(frozen=True)
class Without:
    """A set to be written again without some samples.

    Attributes:
        name: Name of the new set below ``--out``.
        source: The set as it is.
        gone: Samples to leave out by name of the shard, key by number; shards without any are not listed.
    """

    name: str
    source: ShardSet
    gone: dict[str, dict[int, str]]

    @property
    def num_gone(self) -> int:
        """Number of samples to leave out."""
        return sum(map(len, self.gone.values()))


@dataclass(frozen=True)
class Withdrawal:
    """What is to be done.

    Attributes:
        crosswalk: The crosswalk.
        token: What stands for the patient once the name is gone.
        keys: Keys of all inputs of the patient, rejected ones too.
        parts: The sets: images first.
        doubles: Keys of photographs of others that are copies or near-duplicates of this patient's.
    """

    crosswalk: str
    token: str
    keys: frozenset[str]
    parts: tuple[Without, ...]
    doubles: tuple[str, ...]

    @property
    def request(self) -> dict[str, Any]:
        """What the folder of the new sets is for; names nobody."""
        digest = hashlib.sha256(" ".join(sorted(self.keys)).encode()).hexdigest()
        sets = {part.name: part.source.identity for part in self.parts}
        return {"data": absolute_location(self.parts[0].source.url), "sets": sets, "keys_sha256": digest}


def read_table(crosswalk: str) -> list[dict[str, str]]:
    """Read the rows of a crosswalk."""
    text = filesystem.read_bytes(filesystem.join(crosswalk, CROSSWALK_NAME)).decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def plan_withdrawal(section: ForgetConfig, *, data: str | None) -> Withdrawal:
    """Find the photographs of a patient.

    Args:
        section: Options of `forget`.
        data: The image set, if the folder of the new sets already names one.

    Raises:
        ConfigError: No such patient, or a crosswalk of an unfinished set.
        DataError: A set that is not there, or not complete.
    """
    crosswalk = require(section.crosswalk, flag="--crosswalk", key="forget.crosswalk")
    patient = require(section.patient, flag="--patient", key="forget.patient")
    if filesystem.is_dir(filesystem.join(crosswalk, "work")):
        hint = "end it with the same `synfundus prepare` first"
        raise ConfigError("the preparation of this set has not ended", where=crosswalk, hint=hint)
    rows = read_table(crosswalk)
    secret = read_secret(crosswalk)
    token, alone = (withdrawal_token(secret, f"{kind}:{patient}") for kind in ("patient", "photograph"))
    known = read_withdrawn(crosswalk)  # an earlier call may have removed the names
    keys = {row["key"] for row in rows if row["patient_id"] == patient} | set(known.get(token, ()))
    if not keys:
        token = alone
        keys = {row["key"] for row in rows if not row["patient_id"] and row["source"] == patient}
        keys |= set(known.get(token, ()))
    if not keys:
        raise ConfigError(
            "the crosswalk has no photograph of this patient",
            where=filesystem.join(crosswalk, CROSSWALK_NAME),
            hint="write the patient as in the column patient_id there; without one, the file as in the column source",
        )
    where = require(section.data or data or owner_of(crosswalk) or None, flag="--data", key="forget.data")
    images = load_shard_set(where, kind="images")
    latents = [load_shard_set(url, kind="latents") for url in section.latents]
    for one in latents:
        made_from = load_sources(one.url).image_set_url
        if one.properties.get("image_set_identity") != images.identity:
            hint = f"give the set they were made from as --data; it was {made_from}"
            raise ConfigError("these latents were not made from the image set", where=one.url, hint=hint)
    names = ["images", *("latents" if not at else f"latents-{at + 1}" for at in range(len(latents)))]
    parts = tuple(_without(name, one, keys) for name, one in zip(names, (images, *latents), strict=True))
    return Withdrawal(crosswalk, token, frozenset(keys), parts, _doubles(crosswalk, rows, keys))


def seen_sets(model: str) -> set[str]:
    """Return the identities of the sets that a run or an exported model was trained on, as far as it names them.

    Raises:
        ConfigError: It names none.
        DataError: Its document is damaged.
    """
    found = set()
    for name, part in (("run.json", "identity"), ("export/synfundus.json", "fingerprints")):
        for place in (name, name.removeprefix("export/")):
            url = filesystem.join(model, place)
            if filesystem.exists(url):
                named = documents.read_object(url).get(part)
                named = named if isinstance(named, dict) else {}
                found |= {str(named[key]) for key in ("data", "latents", "latent_set") if named.get(key)}
    if not found:
        raise ConfigError("no run and no model that names what it was trained on", where=model, hint="check --model")
    return found


def _without(name: str, source: ShardSet, keys: set[str]) -> Without:
    gone = {}
    for entry in source.shards:
        index = TarShardReader(source.shard_url(entry), index_sha256=entry.index_sha256).index
        found = {number: key for number, key in enumerate(index.keys) if key in keys}
        if found:
            gone[entry.name] = found
    return Without(name, source, gone)


def _doubles(crosswalk: str, rows: list[dict[str, str]], keys: set[str]) -> tuple[str, ...]:
    """Return the keys of photographs of others that are copies, or near-duplicates, of this patient's."""
    keys_of = {row["source"]: row["key"] for row in rows if not row["reason"]}
    found: set[str] = set()
    for line in _lines(crosswalk, REJECTS_NAME):
        if line["key"] in keys and line["reason"].startswith("duplicate"):
            names = (line["detail"].partition(" as ")[2].partition(";")[0], line["source"].rpartition(" (line ")[0])
            found.update(keys_of[name] for name in names if name in keys_of)
    for line in _lines(crosswalk, NEAR_DUPLICATES_NAME):
        pair = {line["key"], line["other_key"]}
        if line["kind"] == "within" and pair & keys:
            found |= pair
    return tuple(sorted(found - keys))


def _lines(crosswalk: str, name: str) -> list[documents.Document]:
    url = filesystem.join(crosswalk, name)
    return documents.read_lines(url) if filesystem.exists(url) else []


def describe_withdrawal(section: ForgetConfig) -> str:
    """Describe what would be done, for a dry run; empty if the crosswalk is not on this machine."""
    if section.crosswalk is None or not filesystem.is_dir(section.crosswalk):
        return ""
    for model in section.model:
        seen_sets(model)
    plan = plan_withdrawal(section, data=None)
    lines = [f"{len(plan.keys)} inputs of this patient in the crosswalk {plan.crosswalk}"]
    lines += [
        f"{part.num_gone} of {part.source.num_samples():,} samples in {len(part.gone)} of {len(part.source.shards)} "
        f"shards of {part.source.url} -> {filesystem.join(str(section.out), part.name)}"
        for part in plan.parts
    ]
    return "# withdrawal\n" + "\n".join(lines) + "\n\n"
