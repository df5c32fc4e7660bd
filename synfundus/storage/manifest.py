"""The manifest of a shard set: images, latents, generated samples, or photographs and generated images together.

A set is a folder with ``manifest.json``, ``train/ val/ test/`` tar shards with their indices, and
``rejects.jsonl``. The manifest is written last: a folder without one is incomplete. The sha256 of the manifest file
is the identity of the set.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast, get_args

from synfundus.errors import ConfigError, DataError, StorageError
from synfundus.labels.schema import LabelSchema
from synfundus.storage import documents, filesystem
from synfundus.storage.tarshard import ShardFiles

MANIFEST_NAME = "manifest.json"
REJECTS_NAME = "rejects.jsonl"
FORMAT_NAME = "synfundus-shard-set"
FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")

_SHARD_NAME = re.compile(r"[a-z]+/\d{6,12}\.tar")
"""Shard names must not refer to files outside the set."""
MAX_SHARD_SAMPLES = 10_000_000
"""Far above any real shard; bounds the memory used to plan the order of a set."""

SetKind = Literal["images", "latents", "samples", "augmented"]


@dataclass(frozen=True)
class ShardEntry:
    """A shard as listed in the manifest.

    Attributes:
        name: Path of the tar relative to the set, e.g. ``train/000000.tar``.
        split: ``train``, ``val`` or ``test``.
        num_samples: Number of samples.
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
        """Return the entry of a written shard."""
        return cls(name, split, files.num_samples, files.tar_bytes, files.tar_sha256, files.index_sha256)


@dataclass(frozen=True)
class ShardSet:
    """A complete shard set.

    Attributes:
        url: Its folder.
        kind: Kind of its samples.
        label_schema: Labels of its samples.
        shards: All shards, in order.
        rejects: Number of rejected inputs by reason.
        properties: Further properties, by kind of set (image size, crop, fingerprints, statistics ...).
        identity: sha256 of the manifest file.
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
        """Return the number of samples of a split, or of all splits.

        Raises:
            ConfigError: No such split.
        """
        if split is not None and split not in SPLITS:
            raise ConfigError(f"there is no split {split!r}", where=self.url, hint=f"one of {', '.join(SPLITS)}")
        return sum(shard.num_samples for shard in self.shards if split in (None, shard.split))

    def shard_url(self, shard: ShardEntry) -> str:
        """Return the location of a shard."""
        return filesystem.join(self.url, shard.name)


def shard_name(split: str, number: int) -> str:
    """Return the name of a shard relative to its set."""
    return f"{split}/{number:06d}.tar"


def apportion(total: int, fractions: Sequence[float]) -> list[int]:
    """Divide samples by fractions that sum to 1, in whole numbers, by largest remainders."""
    exact = [total * fraction for fraction in fractions]
    counts = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def is_complete(url: str) -> bool:
    """Whether a set has its manifest."""
    return filesystem.exists(filesystem.join(url, MANIFEST_NAME))


def save_shard_set(shard_set: ShardSet) -> ShardSet:
    """Write the manifest, which completes the set; return the set with its identity."""
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
    return replace(shard_set, identity=hashlib.sha256(data).hexdigest())


_OTHERS = {
    "secret.key": "a crosswalk, which stays where it is",
    "run.json": "a run",
    "synfundus.json": "a model",
    "classes.csv": "a folder of single images, of `synfundus augment`",
    "metadata.csv": "a folder of single images, of `synfundus sample`",
    "labels.csv": "photographs with a label table",
}
"""What a folder is that holds such a name and no manifest."""
_WRITERS: Mapping[str, str] = {
    "images": "prepare",
    "latents": "encode-latents",
    "samples": "sample --format shards",
    "augmented": "augment --format shards",
}
_INCOMPLETE_HINT = "check the path; a set without a manifest is incomplete: run the command that writes it again"


def _what_is_here(url: str) -> str:
    """Say what a folder without a manifest is; empty if nobody knows."""
    try:
        names = [name for name in _OTHERS if filesystem.exists(filesystem.join(url, name))]
    except StorageError:
        return ""
    return f"this is {_OTHERS[names[0]]}" if names else ""


def load_shard_set(url: str, *, kind: SetKind) -> ShardSet:
    """Read the manifest of a set.

    Raises:
        DataError: No manifest (an incomplete set or a wrong path), another kind, another version.
        StorageError: It is there and cannot be read, or the store does not say whether it is.
    """
    manifest_url = filesystem.join(url, MANIFEST_NAME)
    try:
        data = filesystem.read_bytes(manifest_url)
    except StorageError as error:
        if filesystem.exists(manifest_url):
            raise
        found = _what_is_here(url)
        raise DataError(
            f"no shard set of {kind} here: {found or f'there is no {MANIFEST_NAME}'}",
            where=url,
            hint=f"give a set that `synfundus {_WRITERS[kind]}` has written" if found else _INCOMPLETE_HINT,
        ) from error
    document = documents.parse_document(data, format_name=FORMAT_NAME, version=FORMAT_VERSION, where=manifest_url)
    if document.get("kind") != kind:
        raise DataError(f"this is a set of {document.get('kind')}, a set of {kind} is needed", where=url)
    try:
        shard_set = ShardSet(
            url=url,
            kind=kind,
            label_schema=LabelSchema.from_document(document["label_schema"], where=manifest_url),
            shards=tuple(ShardEntry(**entry) for entry in document["shards"]),
            rejects=document["rejects"],
            properties=document["properties"],
            identity=hashlib.sha256(data).hexdigest(),
        )
        if not isinstance(shard_set.rejects, dict) or not isinstance(shard_set.properties, dict):
            raise TypeError("rejects and properties are mappings")
    except (KeyError, TypeError) as error:
        raise DataError(f"the manifest has a missing or unknown field: {error}", where=manifest_url) from error
    for entry in shard_set.shards:
        whole = [number for number in (entry.num_samples, entry.bytes) if type(number) is int and 0 <= number < 2**60]
        if (
            not _SHARD_NAME.fullmatch(str(entry.name))
            or not entry.name.startswith(f"{entry.split}/")
            or len(whole) < 2
            or entry.num_samples > MAX_SHARD_SAMPLES
        ):
            raise DataError(f"the manifest lists an invalid shard: {entry.name!r}", where=manifest_url)
    return shard_set


def open_set(url: str) -> ShardSet:
    """Open a set of any kind.

    Raises:
        DataError: No manifest, or not the manifest of a set.
    """
    where = filesystem.join(url, MANIFEST_NAME)
    kind: SetKind = "images"
    if filesystem.exists(where):
        document = documents.read_document(where, format_name=FORMAT_NAME, version=FORMAT_VERSION)
        if document.get("kind") not in get_args(SetKind):
            raise DataError(f"unknown kind of set {document.get('kind')!r}", where=where)
        kind = cast(SetKind, document["kind"])
    return load_shard_set(url, kind=kind)
