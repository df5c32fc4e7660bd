"""Planning for `synfundus prepare`: which photograph goes where, decided before one is decoded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from synfundus.config.data_sections import PrepareConfig
from synfundus.data.ingest import PlannedShard, Reject, drop_duplicates, match_files, plan_shards, split_patients
from synfundus.data.label_mapping import TableMapping, parse_mapping
from synfundus.data.label_table import read_label_table
from synfundus.data.preparation import CROP
from synfundus.errors import ConfigError, DataError
from synfundus.storage import filesystem
from synfundus.storage.label_schema import DEFAULT_LABEL_SCHEMA, LabelSchema
from synfundus.storage.manifest import SPLITS

_BYTES_PER_PIXEL = {"png": 1.7, "webp": 1.2}  # measured on photographs and phantoms, rounded up
_BYTES_PER_SAMPLE = 2048
_READ_BYTES = 2**20


@dataclass(frozen=True)
class PreparationPlan:
    """All that is decided before the first photograph is decoded.

    Attributes:
        schema: Labels of the set.
        collection: Name of the collection.
        shards: Shards with their samples.
        rejects: Inputs that are out already.
        num_inputs: Rows of the table + pictures without a row.
        properties: What the manifest records.
        warnings: What the user should know.
    """

    schema: LabelSchema
    collection: str
    shards: tuple[PlannedShard, ...]
    rejects: tuple[Reject, ...]
    num_inputs: int
    properties: dict[str, Any]
    warnings: tuple[str, ...]


def _read_text(url: str, what: str, key: str) -> str:
    """Read a small text file a user named.

    Raises:
        ConfigError: It is not there or not UTF-8.
    """
    if not filesystem.exists(url) or filesystem.is_dir(url):
        raise ConfigError(f"the {what} is not there: {url}", where=key)
    try:
        return filesystem.read_bytes(url).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the {what} is not UTF-8 text: {url}", where=key) from error


def _load_schema(url: str | None) -> LabelSchema:
    if url is None:
        return DEFAULT_LABEL_SCHEMA
    text = _read_text(url, "label schema", "prepare.label_schema")
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the label schema is not valid YAML: {error}", where=url) from error
    return LabelSchema.from_document(document, where=url)


def _load_mapping(url: str | None, schema: LabelSchema) -> TableMapping | None:
    if url is None:
        return None
    return parse_mapping(_read_text(url, "mapping", "prepare.mapping"), schema, where=url)


def list_files(url: str) -> dict[str, int]:
    """Return the size in bytes of every file below a folder by relative name; hidden folders are left out.

    Raises:
        ConfigError: The folder is not there.
    """
    if not filesystem.is_dir(url):
        raise ConfigError(f"the folder of photographs is not there: {url}", where="prepare.source")
    walk = _walk_local(filesystem.local_path(url)) if filesystem.is_local(url) else _walk_remote(url, "")
    return dict(walk)


def _walk_local(root: Path) -> Iterator[tuple[str, int]]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            if path.is_file():
                yield path.relative_to(root).as_posix(), path.stat().st_size


def _walk_remote(url: str, prefix: str) -> Iterator[tuple[str, int]]:
    for name in filesystem.list_names(filesystem.join(url, prefix) if prefix else url):
        inner = f"{prefix}/{name}" if prefix else name
        location = filesystem.join(url, inner)
        if name.startswith("."):
            continue
        if filesystem.is_dir(location):
            yield from _walk_remote(url, inner)
        else:
            yield inner, filesystem.file_size(location)


def file_digest(url: str) -> str:
    """Return the sha256 of a file."""
    digest = hashlib.sha256()
    with filesystem.open_read(url) as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def samples_per_shard(section: PrepareConfig) -> int:
    """Return how many samples a shard may have, by number and by estimated size."""
    size = section.image_size_px**2 * _BYTES_PER_PIXEL[section.image_format] + _BYTES_PER_SAMPLE
    return max(1, min(section.shard_max_samples, int(section.shard_max_bytes / size)))


def plan_preparation(
    section: PrepareConfig, *, source: str, labels: str, open_secret: Callable[[], bytes], seed: int
) -> PreparationPlan:
    """Read table and folder and decide on every input.

    Args:
        section: Options of `prepare`.
        source: Folder of the photographs.
        labels: The label table.
        open_secret: Returns what keys are made from; called once everything has been read.
        seed: Decides which patients go into which split.

    Raises:
        ConfigError: A file or folder that is not there, a mapping that does not fit.
        DataError: A table that cannot be read, or no photograph to work on.
    """
    schema = _load_schema(section.label_schema)
    mapping = _load_mapping(section.mapping, schema)
    if not filesystem.exists(labels) or filesystem.is_dir(labels):
        raise ConfigError(f"the label table is not there: {labels}", where="prepare.labels")
    table = read_label_table(filesystem.read_bytes(labels), schema, mapping, where=labels)
    matched, rejects = match_files(table, list_files(source))
    if not matched:
        raise DataError(
            f"none of the {len(table.rows)} usable rows of the table names a file in {source}",
            where=labels,
            hint='check --source; a mapping with file_pattern (for example "{file}.jpeg") completes bare names',
        )
    kept, duplicates = drop_duplicates(matched, lambda name: file_digest(filesystem.join(source, name)))
    splits = split_patients((photograph.patient_group for photograph in kept), section.splits, seed)
    shards = tuple(plan_shards(kept, splits, open_secret(), max_samples=samples_per_shard(section)))
    assigned = list(splits.values())
    rejected = (*rejects, *duplicates)
    properties: dict[str, Any] = {
        "image_size_px": section.image_size_px,
        "image_format": section.image_format,
        "crop": CROP,
        "max_pixels": section.max_pixels,
        "source": table.mapping.source,
        "splits": list(section.splits),
        "split_seed": seed,
        "num_patients": {split: assigned.count(split) for split in SPLITS},
        "num_inputs": len(matched) + len(rejects),
    }
    properties["inputs_sha256"] = _fingerprint(schema, properties, shards, rejected)
    return PreparationPlan(
        schema, table.mapping.source, shards, rejected, properties["num_inputs"], properties, table.warnings
    )


def _fingerprint(
    schema: LabelSchema, properties: dict[str, Any], shards: tuple[PlannedShard, ...], rejects: tuple[Reject, ...]
) -> str:
    """Hash all that decides what the set will hold; keys stand for names, so that it gives nothing away."""
    digest = hashlib.sha256(json.dumps([schema.to_document(), properties], sort_keys=True).encode())
    for shard in shards:
        for sample in shard.samples:
            row = [shard.name, sample.key, dict(sample.labels), sample.size_bytes]
            digest.update(json.dumps(row, sort_keys=True).encode())
    for reject in rejects:
        digest.update(json.dumps(asdict(reject), sort_keys=True).encode())
    return digest.hexdigest()
