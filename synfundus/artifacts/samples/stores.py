"""Writing generated images: as PNG files or as a shard set.

Images are written in parts, the images of one batch, each by one rank and as a whole: a stop loses at most the parts
that are being generated. A shard is merged from its parts as soon as the last one is there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from synfundus.artifacts.samples import layouts as sample_layouts
from synfundus.artifacts.shard_records import ShardRecords
from synfundus.errors import DataError
from synfundus.labels.plan import LabelRow
from synfundus.labels.schema import LabelSchema
from synfundus.storage import filesystem
from synfundus.storage.manifest import ShardEntry, ShardSet, save_shard_set, shard_name
from synfundus.storage.shard_index import index_url
from synfundus.storage.tarshard import TarShardReader, write_shard

PARTS_DIR = "parts"
"""Folder of the parts of shards that are not complete; it is gone when the set is."""
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_PART_NAME = re.compile(r"\d{8,}-\d{8,}\.(tar|idx\.npz)")
_SPLIT = "train"
_EXTENSIONS = ("json", "png")
_SHARD_BYTES = 256 * 2**20
_SHARD_IMAGES = 8192
_BYTES_PER_PIXEL = 1.5
"""Approximate size of a PNG of a fundus, to plan the shards before the images exist."""

Encoded = Sequence[tuple[int, bytes]]
"""Images and their PNG, in order."""


@dataclass(frozen=True)
class Standing:
    """How far a set has come.

    Attributes:
        finished: Numbers of the parts that are there.
        unmerged: Shards whose parts are all there, and that are not merged.
    """

    finished: tuple[int, ...]
    unmerged: tuple[str, ...] = ()


class SampleStore(Protocol):
    """Storage of generated images."""

    def parts(self) -> list[range]:
        """Return the images of each part, in order."""

    def standing(self) -> Standing:
        """Look at what is there; for rank 0 alone."""

    def write(self, encoded: Encoded) -> None:
        """Write a part."""

    def shard_of(self, part: int) -> str:
        """Return the name of the shard that a part belongs to; empty where parts are not merged."""

    def merge(self, shard: str) -> list[int]:
        """Merge a shard whose parts are all there; returns the parts that are damaged and were removed instead."""

    def file_name(self, image: int) -> str:
        """Return the name of an image in the folder."""

    def read(self, image: int) -> bytes:
        """Return the PNG of an image."""

    def publish(self, *, properties: Mapping[str, Any]) -> None:
        """Check that every image exists and complete the set."""


def _in_parts(images: range, size: int) -> Iterator[range]:
    """Cut images into parts of a size."""
    return (images[first : first + size] for first in range(0, len(images), size))


class PngStore:
    """PNG files, named by a layout."""

    def __init__(
        self, out: str, *, num_images: int, batch_size: int, name: Callable[[int], str] = sample_layouts.file_name
    ) -> None:
        self._out = out
        self._name = name
        self._num_images = num_images
        self._batch_size = batch_size

    def parts(self) -> list[range]:
        """Return the batches."""
        return list(_in_parts(range(self._num_images), self._batch_size))

    def file_name(self, image: int) -> str:
        """Return the name of an image in the folder."""
        return self._name(image)

    def _url(self, image: int) -> str:
        return filesystem.join(self._out, self.file_name(image))

    def _listed(self) -> set[str]:
        return set(filesystem.list_files(self._out))

    def standing(self) -> Standing:
        """Return the parts of which every image exists and is complete."""
        listed, local = self._listed(), filesystem.is_local(self._out)

        def is_there(image: int) -> bool:
            # an object store lists only complete files
            return self.file_name(image) in listed and (not local or is_complete_png(self._url(image)))

        return Standing(tuple(number for number, images in enumerate(self.parts()) if all(map(is_there, images))))

    def write(self, encoded: Encoded) -> None:
        """Write the images of a part."""
        for image, data in encoded:
            filesystem.write_bytes(self._url(image), data)

    def shard_of(self, part: int) -> str:
        """Return nothing: files are not merged."""
        del part
        return ""

    def merge(self, shard: str) -> list[int]:
        """Return nothing: files are not merged."""
        del shard
        return []

    def read(self, image: int) -> bytes:
        """Return the PNG of an image."""
        return filesystem.read_bytes(self._url(image))

    def publish(self, *, properties: Mapping[str, Any]) -> None:
        """Check that every image exists.

        Raises:
            DataError: Images are missing (a rank was stopped).
        """
        listed = self._listed()
        missing = [image for image in range(self._num_images) if self.file_name(image) not in listed]
        if missing:
            raise DataError(
                f"{len(missing)} of {self._num_images} images are missing, first {self.file_name(missing[0])}",
                where=self._out,
                hint="run the same command again: existing images are kept",
            )


class ShardStore:
    """A shard set of kind ``samples``; the parts of a shard that is not complete are in ``parts/``."""

    def __init__(
        self, out: str, *, rows: Sequence[LabelRow], schema: LabelSchema, seed: int, image_size_px: int, batch_size: int
    ) -> None:
        self._out = out
        self._records = ShardRecords(out, "synfundus-sample-shard", 1)
        self._rows = rows
        self._schema = schema
        self._seed = seed
        self._size = image_size_px
        by_bytes = int(_SHARD_BYTES / (image_size_px**2 * _BYTES_PER_PIXEL))
        self._images_per_shard = max(1, min(by_bytes, _SHARD_IMAGES) // batch_size) * batch_size
        shards = list(_in_parts(range(len(rows)), self._images_per_shard))
        self._shards = {shard_name(_SPLIT, number): images for number, images in enumerate(shards)}
        self._parts = [part for images in shards for part in _in_parts(images, batch_size)]

    def parts(self) -> list[range]:
        """Return the batches; none is in two shards."""
        return self._parts

    @staticmethod
    def _key(image: int) -> str:
        return f"{image:08d}"

    def file_name(self, image: int) -> str:
        """Return the member name of an image in its shard."""
        return f"{self._key(image)}.png"

    def _shard(self, image: int) -> str:
        return shard_name(_SPLIT, image // self._images_per_shard)

    def shard_of(self, part: int) -> str:
        """Return the shard of a part."""
        return self._shard(self._parts[part][0])

    def _part_name(self, images: range) -> str:
        return f"{self._key(images[0])}-{self._key(images[-1])}.tar"

    def _part_url(self, images: range) -> str:
        return filesystem.join(self._out, PARTS_DIR, self._part_name(images))

    def standing(self) -> Standing:
        """Return the parts that are there, all those of a merged shard among them.

        The shard of fewer images that ended a smaller request counts as missing.
        """
        listed = set(filesystem.list_names(filesystem.join(self._out, PARTS_DIR)))
        merged = {shard for shard, images in self._shards.items() if self._is_merged(shard, len(images))}
        finished, incomplete = [], set(merged)
        for number, images in enumerate(self._parts):
            if self.shard_of(number) in merged or index_url(self._part_name(images)) in listed:
                finished.append(number)
            else:
                incomplete.add(self.shard_of(number))
        return Standing(tuple(finished), tuple(shard for shard in self._shards if shard not in incomplete))

    def _is_merged(self, shard: str, num_images: int) -> bool:
        record = self._records.read(shard)
        return record is not None and record["entry"]["num_samples"] == num_images

    def _document(self, image: int, data: bytes) -> bytes:
        row = self._rows[image]
        document = {
            "labels": row,
            "eye_side": row.get("eye_side"),
            "source": "synthetic",
            "size_px": self._size,
            "sha256_image": hashlib.sha256(data).hexdigest(),
            "seed": self._seed,
            "index": image,
        }
        return json.dumps(document, sort_keys=True).encode()

    def write(self, encoded: Encoded) -> None:
        """Write a part and, last, its index."""
        samples: list[tuple[str, Mapping[str, bytes]]] = [
            (self._key(image), {"json": self._document(image, data), "png": data}) for image, data in encoded
        ]
        url = self._part_url(range(encoded[0][0], encoded[-1][0] + 1))
        write_shard(url, samples, extensions=_EXTENSIONS)

    def merge(self, shard: str) -> list[int]:
        """Write a shard from its parts, its index, and last its record; then remove the parts.

        A part that does not match its checksums is removed; the shard is then not written.
        """
        numbers = [number for number in range(len(self._parts)) if self.shard_of(number) == shard]
        damaged = [number for number in numbers if not self._is_sound(self._parts[number])]
        if not damaged:
            samples = (sample for number in numbers for sample in self._read_part(self._parts[number]))
            files = write_shard(filesystem.join(self._out, shard), samples, extensions=_EXTENSIONS)
            self._records.write(ShardEntry.of(shard, _SPLIT, files))
        for number in damaged or numbers:
            url = self._part_url(self._parts[number])
            filesystem.remove(index_url(url))
            filesystem.remove(url)
        return damaged

    def _read_part(self, images: range) -> Iterator[tuple[str, Mapping[str, bytes]]]:
        reader = TarShardReader(self._part_url(images), index_sha256=None)
        try:
            for number in range(len(images)):
                yield reader.index.key(number), reader.read(number)
        finally:
            reader.close()

    def _is_sound(self, images: range) -> bool:
        if not filesystem.exists(self._part_url(images)):
            return False
        try:
            keys = [key for key, _ in self._read_part(images)]
        except DataError:
            return False
        return keys == [self._key(image) for image in images]

    def read(self, image: int) -> bytes:
        """Return the PNG of an image."""
        reader = TarShardReader(filesystem.join(self._out, self._shard(image)), index_sha256=None)
        try:
            return reader.read(image % self._images_per_shard)["png"]
        finally:
            reader.close()

    def publish(self, *, properties: Mapping[str, Any]) -> None:
        """Write the manifest from the shards' records, and remove what is left of parts.

        Raises:
            DataError: A shard is missing (a rank was stopped), or has another number of images.
        """
        entries = tuple(ShardEntry(**self._records.require(shard)["entry"]) for shard in self._shards)
        if (written := sum(entry.num_samples for entry in entries)) != len(self._rows):
            raise DataError(
                f"the shards hold {written} of {len(self._rows)} images",
                where=self._out,
                hint="run the same command again",
            )
        self._remove_parts()
        save_shard_set(
            ShardSet(
                url=self._out,
                kind="samples",
                label_schema=self._schema,
                shards=entries,
                properties=dict(properties),
            )
        )

    def _remove_parts(self) -> None:
        """Remove what is left of parts: of a smaller request, or of a rank that was stopped behind a merge."""
        folder = filesystem.join(self._out, PARTS_DIR)
        for name in filter(_PART_NAME.fullmatch, filesystem.list_names(folder)):
            filesystem.remove(filesystem.join(folder, name))
        if not filesystem.list_names(folder):
            filesystem.remove(folder, recursive=True)


def is_complete_png(url: str) -> bool:
    """Whether a PNG file exists and has its first and last chunk."""
    if not filesystem.exists(url):
        return False
    size = filesystem.file_size(url)
    return (
        size > len(_PNG_START) + len(_PNG_END)
        and filesystem.read_range(url, 0, len(_PNG_START)) == _PNG_START
        and filesystem.read_range(url, size - len(_PNG_END), len(_PNG_END)) == _PNG_END
    )
