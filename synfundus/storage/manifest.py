"""The manifest of a shard set: images, latents or generated samples.

A set is a folder with ``manifest.json``, ``train/ val/ test/`` tar shards with their indices, and
``rejects.jsonl``. The manifest is written last: a folder without one is unfinished. The sha256 of the
manifest's own bytes is the set's identity.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from synfundus.errors import DataError, StorageError
from synfundus.labels.schema import LabelSchema
from synfundus.storage import documents, filesystem
from synfundus.storage.tarshard import ShardFiles

MANIFEST_NAME = "manifest.json"
REJECTS_NAME = "rejects.jsonl"
FORMAT_NAME = "synfundus-shard-set"
FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")

_SHARD_NAME = re.compile(r"[a-z]+/\d{6,12}\.tar")
"""A manifest must not lead to files outside its set."""
MAX_SHARD_SAMPLES = 10_000_000
"""Far above any shard: what is planned for a set takes memory in proportion to its samples."""

SetKind = Literal["images", "latents", "samples"]


@dataclass(frozen=True)
class ShardEntry:
    """One shard as the manifest lists it.

    Attributes:
        name: Path of the tar below the set, e.g. ``train/000000.tar``.
        split: ``train``, ``val`` or ``test``.
        num_samples: Samples in it.
        bytes: Size of the tar.
        sha256: Hash of the tar.
        index_sha256: Hash of its index.
    """

    name: str
    split: str
    num_samples: int
    bytes: int
    sha256: str
    index_sha256: str

    @classmethod
    def of(cls, name: str, split: str, files: ShardFiles) -> ShardEntry:
        """Build the entry of a shard that was just written."""
        return cls(name, split, files.num_samples, files.tar_bytes, files.tar_sha256, files.index_sha256)


@dataclass(frozen=True)
class ShardSet:
    """A set that is complete.

    Attributes:
        url: Its folder.
        kind: What the samples are.
        label_schema: Labels of its samples.
        shards: All shards, in order.
        rejects: Number of rejected inputs by reason.
        properties: What else this kind of set records (image size, crop, fingerprints, statistics ...).
        identity: sha256 of the manifest's bytes.
    """

    url: str
    kind: SetKind
    label_schema: LabelSchema
    shards: tuple[ShardEntry, ...]
    rejects: Mapping[str, int] = field(default_factory=dict)
    properties: Mapping[str, Any] = field(default_factory=dict)
    identity: str = ""

    def split_shards(self, split: str) -> tuple[ShardEntry, ...]:
        """Return the shards of a split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def num_samples(self, split: str | None = None) -> int:
        """Count the samples of a split, or of all."""
        return sum(shard.num_samples for shard in self.shards if split in (None, shard.split))

    def shard_url(self, shard: ShardEntry) -> str:
        """Return where a shard lies."""
        return filesystem.join(self.url, shard.name)


def shard_name(split: str, number: int) -> str:
    """Return the name of a shard below its set."""
    return f"{split}/{number:06d}.tar"


def is_complete(url: str) -> bool:
    """Whether a set has its manifest."""
    return filesystem.exists(filesystem.join(url, MANIFEST_NAME))


def save_shard_set(shard_set: ShardSet) -> ShardSet:
    """Write the manifest, which publishes the set; returns the set with its identity."""
    splits = {name: shard_set.num_samples(name) for name in sorted({shard.split for shard in shard_set.shards})}
    document = {
        "kind": shard_set.kind,
        "label_schema": shard_set.label_schema.to_document(),
        "totals": {"num_samples": shard_set.num_samples(), "splits": splits},
        "shards": [asdict(shard) for shard in shard_set.shards],
        "rejects": dict(shard_set.rejects),
        "properties": dict(shard_set.properties),
    }
    url = filesystem.join(shard_set.url, MANIFEST_NAME)
    data = documents.write_document(url, document, format_name=FORMAT_NAME, version=FORMAT_VERSION)
    return _with_identity(shard_set, data)


def _with_identity(shard_set: ShardSet, data: bytes) -> ShardSet:
    return ShardSet(
        url=shard_set.url,
        kind=shard_set.kind,
        label_schema=shard_set.label_schema,
        shards=shard_set.shards,
        rejects=shard_set.rejects,
        properties=shard_set.properties,
        identity=hashlib.sha256(data).hexdigest(),
    )


def load_shard_set(url: str, *, kind: SetKind) -> ShardSet:
    """Read the manifest of a set.

    Raises:
        DataError: No manifest (the set is unfinished or the path is wrong), another kind, another version.
    """
    manifest_url = filesystem.join(url, MANIFEST_NAME)
    try:
        data = filesystem.read_bytes(manifest_url)
    except StorageError as error:
        raise DataError(
            f"no shard set of {kind} here: {MANIFEST_NAME} cannot be read",
            where=url,
            hint="check the path; a set without a manifest is unfinished: run the command that writes it again",
        ) from error
    document = documents.parse_document(data, format_name=FORMAT_NAME, version=FORMAT_VERSION, where=manifest_url)
    if document.get("kind") != kind:
        raise DataError(f"a set of {document.get('kind')} is here, a set of {kind} is needed", where=url)
    try:
        shard_set = ShardSet(
            url=url,
            kind=kind,
            label_schema=LabelSchema.from_document(document["label_schema"], where=manifest_url),
            shards=tuple(ShardEntry(**entry) for entry in document["shards"]),
            rejects=document["rejects"],
            properties=document["properties"],
        )
        if not isinstance(shard_set.rejects, dict) or not isinstance(shard_set.properties, dict):
            raise TypeError("rejects and properties are mappings")
    except (KeyError, TypeError) as error:
        raise DataError(f"the manifest lacks or adds a field: {error}", where=manifest_url) from error
    for entry in shard_set.shards:
        whole = [number for number in (entry.num_samples, entry.bytes) if type(number) is int and 0 <= number < 2**60]
        if (
            not _SHARD_NAME.fullmatch(str(entry.name))
            or not entry.name.startswith(f"{entry.split}/")
            or len(whole) < 2
            or entry.num_samples > MAX_SHARD_SAMPLES
        ):
            raise DataError(f"the manifest lists a shard that cannot be one: {entry.name!r}", where=manifest_url)
    return _with_identity(shard_set, data)
