"""Photographs and generated images as one training set: shards, or a folder for Hugging Face's imagefolder.

The set is written in parts, a shard of photographs or consecutive generated images, each by one process and with a
record, so that a stopped run keeps them. Photographs are copied bit for bit, in the split they are in; generated images
come after those of the train split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from synfundus.artifacts.samples.layouts import SampleImages
from synfundus.errors import CorruptShard, DataError
from synfundus.labels.plan import LabelRow, label_table
from synfundus.labels.schema import LabelSchema
from synfundus.shards.copying import copy_shard
from synfundus.shards.members import META, decode_json, label_states
from synfundus.shards.reader import ShardSetReader
from synfundus.shards.source import IMAGE_EXTENSIONS
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import SPLITS, ShardEntry, ShardSet, save_shard_set, shard_name
from synfundus.storage.tarshard import write_shard

SYNTHETIC = "synthetic"
"""Column of the table and key of the JSON: 1 for a generated image, 0 for a photograph."""
TABLE_NAME = "metadata.csv"
PARTS_DIR = "parts"
_PART_IMAGES = 1024
_FORMAT, _VERSION = "synfundus-augmented-part", 1
_PART_NAME = re.compile(r"(train|val|test)-\d{6}\.json")
Row = list[Any]
"""File name, 1 if generated, and the label states."""


@dataclass(frozen=True)
class Part:
    """What is written as a whole.

    Attributes:
        split: Its split.
        number: Its number in the split.
        shard: Number of the shard of photographs in the split; None for generated images.
        images: Generated images.
    """

    split: str
    number: int
    shard: int | None = None
    images: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of its record."""
        return f"{self.split}-{self.number:06d}.json"


@dataclass(frozen=True)
class AugmentedSet:
    """A set that is being written.

    Attributes:
        out: Its folder.
        kind: ``shards`` or ``imagefolder``.
        real: The photographs.
        generated: The generated images.
        left_out: Generated images that are left out.
        kept_labels: Labels that generated images have, the others being unknown; None: all they were asked for.
    """

    out: str
    kind: Literal["imagefolder", "shards"]
    real: ShardSet
    generated: SampleImages
    left_out: Collection[int] = ()
    kept_labels: Collection[str] | None = None

    @property
    def schema(self) -> LabelSchema:
        """The labels of both."""
        return self.real.label_schema

    def parts(self) -> list[Part]:
        """Return all parts, in the order of the set."""
        parts = []
        for split in SPLITS:
            parts += [Part(split, number, number) for number in range(len(self.real.split_shards(split)))]
            if split == SPLITS[0]:
                kept = [image for image in range(len(self.generated)) if image not in self.left_out]
                for at in range(0, len(kept), _PART_IMAGES):
                    parts.append(Part(split, len(parts), images=tuple(kept[at : at + _PART_IMAGES])))
        return parts

    def row(self, image: int) -> LabelRow:
        """Return the labels of a generated image."""
        row = self.generated.rows[image]
        if self.kept_labels is None:
            return row
        return {name: value if name in self.kept_labels else None for name, value in row.items()}

    def finished(self) -> set[str]:
        """Return the names of parts that are there."""
        return set(filesystem.list_names(filesystem.join(self.out, PARTS_DIR)))

    def write(self, part: Part) -> None:
        """Write a part and, last, its record.

        Raises:
            CorruptShard: A photograph or a generated image is damaged.
            StorageError: The disk or the store failed.
        """
        record = self._write_shard(part) if self.kind == "shards" else self._write_files(part)
        url = filesystem.join(self.out, PARTS_DIR, part.name)
        documents.write_document(url, record, format_name=_FORMAT, version=_VERSION)

    def _write_shard(self, part: Part) -> dict[str, Any]:
        name = shard_name(part.split, part.number)
        url = filesystem.join(self.out, name)
        if part.shard is not None:
            entry = self.real.split_shards(part.split)[part.shard]
            copy_shard(self.real, entry, url)
            return {"entry": {**asdict(entry), "name": name}}
        states = self._generated_states(part).astype(np.int16)
        samples = (
            (_key(image), {META: self._document(image), "png": self.generated.read(image)}) for image in part.images
        )
        files = write_shard(url, samples, extensions=(META, "png"), states=states)
        return {"entry": asdict(ShardEntry.of(name, part.split, files))}

    def _write_files(self, part: Part) -> dict[str, Any]:
        rows: list[Row] = []
        for name, data, states, synthetic in self._photographs(part) if part.images == () else self._drawn(part):
            filesystem.write_bytes(filesystem.join(self.out, part.split, name), data)
            rows.append([name, synthetic, *states])
        return {"rows": rows}

    def _photographs(self, part: Part) -> Iterator[tuple[str, bytes, Sequence[int], int]]:
        with closing(ShardSetReader(self.real, split=part.split)) as reader:
            shard = int(part.shard or 0)
            for number in range(reader.shard_sizes[shard]):
                key, members = reader.read(shard, number)
                where = reader.sample_name(shard, number)
                kind = next((one for one in IMAGE_EXTENSIONS if one in members), None)
                if kind is None or META not in members:
                    raise CorruptShard(f"sample needs an image and a .json, has {sorted(members)}", where=where)
                states = label_states(decode_json(members[META], where=where), self.schema, where=where)
                yield f"images/{key}.{kind}", members[kind], states.tolist(), 0

    def _drawn(self, part: Part) -> Iterator[tuple[str, bytes, Sequence[int], int]]:
        for image, states in zip(part.images, self._generated_states(part).tolist(), strict=True):
            yield f"images/{_key(image)}.png", self.generated.read(image), states, 1

    def _generated_states(self, part: Part) -> NDArray[np.int64]:
        rows = [self.schema.encode(self.row(image)) for image in part.images]
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.schema.labels))

    def _document(self, image: int) -> bytes:
        row = self.row(image)
        said = {"labels": row, "eye_side": row.get("eye_side"), "source": SYNTHETIC, SYNTHETIC: True, "index": image}
        return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()

    def publish(self, properties: Mapping[str, Any]) -> None:
        """Complete the set from the records of all parts, then remove these.

        Raises:
            DataError: A part is missing: a rank was stopped.
        """
        parts, there = self.parts(), self.finished()
        if missing := [part.name for part in parts if part.name not in there]:
            said = f"{len(missing)} of {len(parts)} parts are missing, first {missing[0].removesuffix('.json')}"
            raise DataError(said, where=self.out, hint="run the same command again: finished parts are kept")
        if self.kind == "shards":
            entries = tuple(ShardEntry(**self._record(part)["entry"]) for part in parts)
            save_shard_set(ShardSet(self.out, "augmented", self.schema, entries, properties=dict(properties)))
        else:
            for split in SPLITS:
                rows = [row for part in parts if part.split == split for row in self._record(part)["rows"]]
                if rows:
                    filesystem.write_bytes(filesystem.join(self.out, split, TABLE_NAME), self._table(rows))
        folder = filesystem.join(self.out, PARTS_DIR)
        for name in filter(_PART_NAME.fullmatch, there):
            filesystem.remove(filesystem.join(folder, name))
        if not filesystem.list_names(folder):
            filesystem.remove(folder, recursive=True)

    def _record(self, part: Part) -> documents.Document:
        url = filesystem.join(self.out, PARTS_DIR, part.name)
        return documents.read_document(url, format_name=_FORMAT, version=_VERSION)

    def _table(self, rows: Sequence[Row]) -> bytes:
        labels = [self.schema.decode(states) for _, _, *states in rows]
        before = {"file_name": [row[0] for row in rows], SYNTHETIC: [row[1] for row in rows]}
        return label_table(labels, self.schema.names, **before)


def _key(image: int) -> str:
    return f"{SYNTHETIC}-{image:08d}"
