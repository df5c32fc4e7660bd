"""`synfundus forget`: sets without the photographs of a patient who has withdrawn.

Nothing is changed in place but the crosswalk, last: there the patient's names give way to a token, by which `prepare`
knows the patient again. Who holds the crosswalk can test a guess of the name against it. Shards that hold nothing of
the patient are copied. A stopped run is resumed by the same command.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from synfundus.artifacts.claim import Claim
from synfundus.artifacts.latent_set import load_sources, photographs_of, save_sources
from synfundus.artifacts.shard_records import ShardRecords
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World
from synfundus.labels.counts import count_labels
from synfundus.labels.seen import LABEL_ROWS, SeenRows
from synfundus.photographs.crosswalk import (
    CROSSWALK_NAME,
    FLAGS_NAME,
    HASHES_NAME,
    NEAR_DUPLICATES_NAME,
    crosswalk_table,
    hand_over,
    owner_of,
    write_private,
    write_private_lines,
    write_withdrawn,
)
from synfundus.photographs.crosswalk import REJECTS_NAME as NAMED_REJECTS
from synfundus.shards.copying import copy_shard
from synfundus.shards.label_reading import shard_label_states
from synfundus.shards.set_survey import SetSurvey
from synfundus.stages import Summary
from synfundus.stages.forget.plan import Withdrawal, Without, plan_withdrawal, read_table, seen_sets
from synfundus.stages.verb import require
from synfundus.storage import documents, filesystem
from synfundus.storage.locations import absolute_location, resolved
from synfundus.storage.manifest import REJECTS_NAME, ShardEntry, ShardSet, is_complete, load_shard_set, save_shard_set
from synfundus.storage.tarshard import TarShardReader, write_shard
from synfundus.storage.writer_lock import write_alone
from synfundus.telemetry.console import Console

WITHDRAWN = "withdrawn"
_FORMAT, _VERSION = "synfundus-withdrawal", 1
_CLAIM = Claim("forget.json", _FORMAT, _VERSION, others="sets without other photographs")


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Write the sets, then take the patient's names out of the crosswalk. One process; resumes by itself.

    Returns:
        ``out``, ``removed`` and ``identities`` by set, ``train_again`` (the models that saw these sets).

    Raises:
        ConfigError: No such patient, or a folder that holds something else.
        CorruptShard: A shard that has to be written again is damaged.
    """
    del world
    section = config.forget
    out = require(section.out, flag="--out", key="forget.out")
    seen = {url: seen_sets(url) for url in section.model}
    begun = _CLAIM.read(out)
    if section.crosswalk is not None and filesystem.is_dir(section.crosswalk):
        write_alone(section.crosswalk, flag="--crosswalk")  # that of another patient changes it too
    plan = plan_withdrawal(section, data=None if begun is None else str(begun["data"]))
    _CLAIM.make(out, plan.request)
    if plan.doubles:
        console.warning(
            f"copies or near-duplicates of this patient's photographs are there under other patients, and stay: "
            f"{', '.join(plan.doubles)}. Look them up in {CROSSWALK_NAME}: if they show the same person, they go too"
        )
    written: list[ShardSet] = []
    for part in plan.parts:
        written.append(_write(part, filesystem.join(out, part.name), plan, written[0] if written else None, console))
    forget_names(plan)
    if owner_of(plan.crosswalk) == resolved(plan.parts[0].source.url):
        hand_over(plan.crosswalk, resolved(written[0].url))
    known = {part.source.identity for part in plan.parts}
    changed = {part.source.identity for part in plan.parts if part.num_gone}
    affected = [url for url, sets in seen.items() if sets & changed]
    for url in (url for url, sets in seen.items() if not sets & known):
        console.warning(
            f"cannot tell whether {url} saw these photographs: it was trained on set {min(seen[url])[:12]}, which is "
            "none of those given (--latents)"
        )
    _tell(plan, written, affected, console)
    return {
        "out": out,
        "removed": {part.name: part.num_gone for part in plan.parts},
        "identities": {part.name: one.identity for part, one in zip(plan.parts, written, strict=True)},
        "train_again": affected,
    }


def _write(part: Without, out: str, plan: Withdrawal, images: ShardSet | None, console: Console) -> ShardSet:
    """Write a set without the patient; its manifest comes last."""
    source = part.source
    if is_complete(out):
        return load_shard_set(out, kind=source.kind)
    records = ShardRecords(out, _FORMAT, _VERSION)
    with console.progress(f"writing {part.name}", total=len(source.shards), unit="shards") as bar:
        for entry in source.shards:
            if records.read(entry.name) is None:
                records.write(_shard(source, entry, out, part.gone.get(entry.name, ())))
            bar.advance()
    entries = tuple(ShardEntry(**records.require(entry.name)["entry"]) for entry in source.shards)
    url = filesystem.join(source.url, REJECTS_NAME)
    lines = documents.read_lines(url) if filesystem.exists(url) else []
    of_latents = source.kind == "latents"
    lines += [
        {
            "name" if of_latents else "key": f"{shard}#{number}" if of_latents else key,
            "stage": WITHDRAWN,
            "reason": WITHDRAWN,
        }
        for shard, gone in part.gone.items()
        for number, key in gone.items()
    ]
    documents.write_lines(filesystem.join(out, REJECTS_NAME), lines)
    rejects = Counter(source.rejects) + Counter({WITHDRAWN: part.num_gone})
    made = replace(source, url=out, shards=entries, rejects=dict(sorted(rejects.items())))
    if images is None:
        made = replace(made, properties=_image_properties(part, made, plan))
    else:
        made = replace(made, properties=_latent_properties(source, images, out))
    made = save_shard_set(made)
    for entry in entries:
        filesystem.remove(records.url(entry.name))
    return made


def _shard(source: ShardSet, entry: ShardEntry, out: str, gone: Collection[int]) -> ShardEntry:
    """Copy a shard, or write it again without some samples."""
    here, there = source.shard_url(entry), filesystem.join(out, entry.name)
    if not gone:
        copy_shard(source, entry, there)
        return entry
    reader = TarShardReader(here, index_sha256=entry.index_sha256)
    try:
        index, kept = reader.index, [number for number in range(len(reader)) if number not in gone]
        files = write_shard(
            there,
            ((index.key(number), reader.read(number)) for number in kept),
            extensions=index.extensions,
            states=None if index.states is None else index.states[kept],
        )
    finally:
        reader.close()
    return ShardEntry.of(entry.name, entry.split, files)


def _image_properties(part: Without, made: ShardSet, plan: Withdrawal) -> dict[str, Any]:
    """Return the properties of the smaller image set: what counts samples, patients or flags is counted again."""
    properties = dict(made.properties)
    if "label_counts" in properties:
        rows = SetSurvey(made).label_rows(lambda _: None)
        properties["label_counts"] = count_labels(rows, made.label_schema).to_document()
    if LABEL_ROWS in properties:
        seen = SeenRows.of_document(properties[LABEL_ROWS], len(made.label_schema.labels))
        gone = [
            shard_label_states(part.source, entry)[list(part.gone[entry.name])]
            for entry in part.source.split_shards("train")
            if entry.name in part.gone
        ]
        if gone:
            properties[LABEL_ROWS] = seen.without(np.concatenate(gone)).to_document()
    if "num_patients" in properties:
        splits = {shard.partition("/")[0] for shard in part.gone}
        properties["num_patients"] = {
            split: number - (split in splits) for split, number in properties["num_patients"].items()
        }
    url = filesystem.join(plan.crosswalk, FLAGS_NAME)
    if properties.get("flags") and filesystem.exists(url):
        rows_left = (row for row in documents.read_lines(url) if row["key"] not in plan.keys)
        properties["flags"] = dict(sorted(Counter(flag for row in rows_left for flag in row["flags"]).items()))
    return properties


def _latent_properties(source: ShardSet, images: ShardSet, out: str) -> dict[str, Any]:
    """Return the properties of the smaller latent set, and write where its images are. Mean and deviation stay."""
    sources = load_sources(source.url)
    save_sources(out, replace(sources, image_set_url=absolute_location(images.url)))
    return {**source.properties, "image_set_identity": images.identity, **photographs_of(images)}


def forget_names(plan: Withdrawal) -> None:
    """Take a patient out of a crosswalk: what leads from keys to names, flags, near-duplicates, perceptual hashes."""
    crosswalk, keys = plan.crosswalk, plan.keys
    write_withdrawn(crosswalk, plan.token, keys)  # first: afterwards only this finds the keys
    table = read_table(crosswalk)
    names = sorted({row["source"] for row in table if row["key"] in keys} - {""}, key=len, reverse=True)
    for name in (NAMED_REJECTS, FLAGS_NAME, NEAR_DUPLICATES_NAME):
        url = filesystem.join(crosswalk, name)
        if filesystem.exists(url):
            rows = [row for row in documents.read_lines(url) if not {row["key"], row.get("other_key")} & keys]
            write_private_lines(url, [_without_names(row, names) for row in rows])
    left = [
        (row["key"], "", "", "", WITHDRAWN)
        if row["key"] in keys
        else (row["key"], row["source"], row["patient_id"], row["split"], row["reason"])
        for row in table
    ]
    # last of the names: from it those in the rows of other patients are known
    write_private(filesystem.join(crosswalk, CROSSWALK_NAME), crosswalk_table(left))
    url = filesystem.join(crosswalk, HASHES_NAME)
    if filesystem.exists(url):
        hashes = np.load(io.BytesIO(filesystem.read_bytes(url)), allow_pickle=False)
        stream = io.BytesIO()
        np.save(stream, hashes[~np.isin(hashes["key"], [key.encode() for key in keys])], allow_pickle=False)
        write_private(url, stream.getvalue())


def _without_names(row: documents.Document, names: Sequence[str]) -> documents.Document:
    """Return the row of another patient without the names of files: "same file as ..."."""
    texts = {key: text for key, text in row.items() if key in ("detail", "source") and isinstance(text, str)}
    for name in names:
        texts = {key: text.replace(name, f"({WITHDRAWN})") for key, text in texts.items()}
    return {**row, **texts}


def _tell(plan: Withdrawal, written: list[ShardSet], affected: list[str], console: Console) -> None:
    for part, made in zip(plan.parts, written, strict=True):
        console.message(f"{made.url}: {made.num_samples():,} samples, {part.num_gone} withdrawn; was {part.source.url}")
    for url in affected:
        console.warning(f"trained on these photographs, and nothing can take them out of its weights: {url}")
    if not any(part.num_gone for part in plan.parts):
        console.message(
            "no sample of these sets is of this patient, who was withdrawn before or has only rejects: nothing has to "
            "be trained again. Remove the photographs and their rows of the table (docs/privacy.md)"
        )
        return
    console.message(
        "what remains to be done: remove the old sets, the photographs and their rows of the table; train again what "
        "saw them, the autoencoder first, and encode latents with the new one; remove the old models, their exports, "
        "checkpoints and images, and all copies (docs/privacy.md)"
    )
