"""The images of a gallery: where they are, and what is known of each. Nothing here decodes one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from synfundus.artifacts.samples.description import PROVENANCE_NAME, TABLE_NAMES, requested_labels
from synfundus.errors import ConfigError, CorruptShard, StorageError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, label_differences
from synfundus.pictures.sheets import patients_note
from synfundus.shards.members import META, decode_json, label_states
from synfundus.shards.reader import ShardSetReader, as_corruption
from synfundus.shards.source import IMAGE_EXTENSIONS
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import MANIFEST_NAME, SPLITS, SetKind, load_shard_set

Mark = Literal["yes", "drawn", ""]
"""Whether a model made the images, a program drew them, or neither is known."""


@dataclass(frozen=True)
class Found:
    """An image as it was stored.

    Attributes:
        name: Its file or key.
        data: Its bytes; empty where there is a problem.
        extension: Kind of the bytes.
        states: State of each label of its schema; none where there is a problem.
        problem: Why it cannot be shown.
    """

    name: str
    data: bytes = b""
    extension: str = "png"
    states: tuple[int, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class FilesPart:
    """Consecutive images of a folder of single files, small enough to be sent to another process."""

    url: str
    rows: tuple[tuple[str, tuple[int, ...]], ...]

    def read(self) -> Iterator[Found]:
        """Yield the images; one that cannot be read as a problem."""
        for name, states in self.rows:
            try:
                data = filesystem.read_bytes(filesystem.join(self.url, name))
            except StorageError as error:
                if not isinstance(as_corruption(error), CorruptShard):
                    raise
                yield Found(name, problem=error.message)
            else:
                yield Found(name, data, name.rpartition(".")[2].lower(), states)


@dataclass(frozen=True)
class ShardsPart:
    """Consecutive images of a shard set: split, shard, sample of each."""

    url: str
    kind: SetKind
    places: tuple[tuple[str, int, int], ...]

    def read(self) -> Iterator[Found]:
        """Yield the images; one that cannot be read as a problem."""
        shard_set = load_shard_set(self.url, kind=self.kind)
        for split in dict.fromkeys(split for split, _, _ in self.places):
            with closing(ShardSetReader(shard_set, split=split)) as reader:
                for _, shard, sample in (place for place in self.places if place[0] == split):
                    yield self._found(reader, shard, sample, shard_set.label_schema)

    @staticmethod
    def _found(reader: ShardSetReader, shard: int, sample: int, schema: LabelSchema) -> Found:
        where = f"{reader.shards[shard].name}#{sample}"
        try:
            key, members = reader.read(shard, sample)
            extension = next((one for one in IMAGE_EXTENSIONS if one in members), "")
            if not extension or META not in members:
                return Found(where, problem=f"sample needs an image and a .json, has {sorted(members)}")
            states = label_states(decode_json(members[META], where=where), schema, where=where)
            return Found(key, members[extension], extension, tuple(states.tolist()))
        except CorruptShard as error:
            return Found(where, problem=error.message)


Part = FilesPart | ShardsPart


@dataclass(frozen=True)
class Collection:
    """Images of one kind.

    Attributes:
        url: Their folder.
        mark: What made them.
        schema: Their labels.
        identity: Hash of what lists them.
        image_size_px: Width and height of an image; 0 if that is not known.
        note: What is to be said of patients; empty if none is shown.
        rows: File and states of each; empty for shards.
        shards: Split, number in it and samples of each shard.
    """

    url: str
    mark: Mark
    schema: LabelSchema
    identity: str
    image_size_px: int
    note: str = ""
    rows: tuple[tuple[str, tuple[int, ...]], ...] = field(default=(), repr=False)
    shards: tuple[tuple[str, int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.rows) or sum(samples for _, _, samples in self.shards)

    @cached_property
    def _places(self) -> list[tuple[str, int, int]]:
        return [(split, number, sample) for split, number, samples in self.shards for sample in range(samples)]

    def part(self, images: range) -> Part:
        """Return some of the images."""
        if self.rows:
            return FilesPart(self.url, self.rows[images.start : images.stop])
        kind: SetKind = "samples" if self.mark == "yes" else "images"
        return ShardsPart(self.url, kind, tuple(self._places[images.start : images.stop]))


def open_samples(url: str) -> Collection:
    """Open generated images: single files with their table, or a shard set.

    Raises:
        ConfigError: There are none.
        DataError: Their table or manifest cannot be read.
    """
    if filesystem.exists(filesystem.join(url, MANIFEST_NAME)):
        return _open_set(url, "samples")
    requested = requested_labels(url)
    if not requested:
        hint = f"give a complete folder written by `sample`, with {TABLE_NAMES[0]}"
        raise ConfigError("there are no samples", where=url, hint=hint)
    place = filesystem.join(url, PROVENANCE_NAME)
    said = (
        documents.read_document(place, format_name="synfundus-samples", version=1) if filesystem.exists(place) else {}
    )
    schema = LabelSchema.from_document(said["label_schema"], where=place) if "label_schema" in said else None
    rows = tuple((name, _states(row, schema or DEFAULT_LABEL_SCHEMA)) for name, row in requested)
    if outside := [name for name, _ in rows if not name or name.startswith("/") or ".." in name.split("/")]:
        raise ConfigError(f"the table of samples names no file of its folder: {outside[0]!r}", where=url)
    table = next(name for name in TABLE_NAMES if filesystem.exists(filesystem.join(url, name)))
    listed = hashlib.sha256(documents.dump_json(dict(said)) + filesystem.read_bytes(filesystem.join(url, table)))
    size_px = int(said.get("image_size_px", 0))
    return Collection(url, "yes", schema or DEFAULT_LABEL_SCHEMA, listed.hexdigest(), size_px, rows=rows)


def _states(row: dict[str, str], schema: LabelSchema) -> tuple[int, ...]:
    """Return the states of the labels an image was asked for.

    Raises:
        ConfigError: A label the schema does not have.
        DataError: A value the label does not have.
    """
    return tuple(schema.encode({label: schema.check_value(label, text) for label, text in row.items() if text}))


def _open_set(url: str, kind: SetKind) -> Collection:
    shard_set = load_shard_set(url, kind=kind)
    shards = [
        (split, number, entry.num_samples)
        for split in SPLITS
        for number, entry in enumerate(shard_set.split_shards(split))
    ]
    size_px = int(shard_set.properties.get("image_size_px", 0))
    if kind == "samples":
        return Collection(url, "yes", shard_set.label_schema, shard_set.identity, size_px, shards=tuple(shards))
    note = patients_note(shard_set.properties)
    mark: Mark = "" if note else "drawn"
    return Collection(url, mark, shard_set.label_schema, shard_set.identity, size_px, note, shards=tuple(shards))


def open_real(url: str, beside: Collection) -> Collection:
    """Open photographs that are shown beside generated images.

    Raises:
        ConfigError: Their labels mean something else.
        DataError: There is no image set.
    """
    found = _open_set(url, "images")
    if differences := label_differences(beside.schema, found.schema):
        raise ConfigError(
            f"the labels of the samples (the first) and of --real (the second) are others: {'; '.join(differences)}",
            where=url,
            hint="give the image set the model was trained with, or leave --real out",
        )
    return found
