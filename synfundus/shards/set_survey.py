"""Survey a shard set in one pass: its contents, sizes and faults.

Without `verify` only indices are read, and the JSON of the samples if an index has no labels; with it every byte is
read, see `shard_check`.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from synfundus.errors import CorruptShard, DataError, StorageError, SynfundusError
from synfundus.labels.plan import LabelRow
from synfundus.labels.schema import LabelSchema
from synfundus.shards.members import META, decode_json, label_states
from synfundus.shards.reader import SampleDecoder
from synfundus.shards.shard_check import KeysSeen, Problem, ShardReport, check_shard, open_shard, states_to_labels
from synfundus.shards.source import ImageDecoder, LatentDecoder
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import REJECTS_NAME, ShardEntry, ShardSet
from synfundus.storage.shard_index import ShardIndex
from synfundus.storage.tarshard import TarShardReader

Advance = Callable[[int], None]
"""Called with the number of samples since the last call."""

_ADVANCE_EVERY = 64
_INDEX_SUFFIX = ".idx.npz"
_REJECT_FIELDS = frozenset({"key", "name", "stage", "reason"})


def sample_decoder(shard_set: ShardSet) -> SampleDecoder:
    """Return the decoder of the samples of a set.

    Raises:
        DataError: The manifest lacks the size of its samples.
    """
    properties = shard_set.properties
    try:
        if shard_set.kind != "latents":
            return ImageDecoder(schema=shard_set.label_schema, image_size_px=int(properties["image_size_px"]))
        channels, height, width = (int(edge) for edge in properties["moments_shape"])
        flip = bool(properties.get("flip", False))
        return LatentDecoder(schema=shard_set.label_schema, moments_shape=(channels, height, width), with_flip=flip)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the properties of the manifest do not describe its samples: {error}", where=shard_set.url
        ) from error


@dataclass
class MemberSizes:
    """Sizes of the members with one extension, in bytes."""

    count: int = 0
    total_bytes: int = 0
    smallest_bytes: int = 0
    largest_bytes: int = 0

    def add(self, sizes: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """Add the sizes of the members of a shard, ``[n]``."""
        if len(sizes) == 0:
            return
        smallest, largest = int(sizes.min()), int(sizes.max())
        self.smallest_bytes = min(self.smallest_bytes, smallest) if self.count else smallest
        self.largest_bytes = max(self.largest_bytes, largest)
        self.count += len(sizes)
        self.total_bytes += int(sizes.sum())


@dataclass
class SetSurvey:
    """A survey of a set, with its results.

    Attributes:
        shard_set: The set.
        verify: Whether to read every byte.
        reports: One per shard.
        members: Sizes by extension, from the indices.
    """

    shard_set: ShardSet
    verify: bool = False
    reports: list[ShardReport] = field(default_factory=list)
    members: dict[str, MemberSizes] = field(default_factory=dict)
    _keys: KeysSeen = field(default_factory=KeysSeen)

    def label_rows(self, advance: Advance) -> Iterator[LabelRow]:
        """Yield the labels of every valid sample during the survey."""
        decode = sample_decoder(self.shard_set) if self.verify else None
        for entry in self.shard_set.shards:
            report = ShardReport(entry.name, entry.num_samples)
            self.reports.append(report)
            reader = open_shard(self.shard_set, entry, report)
            if reader is not None:
                self._measure(reader)
            if decode is not None:
                yield from self._verified(entry, reader, report, decode, advance)
            elif reader is not None:
                yield from self._documents(entry, reader, report, advance)
            else:
                advance(entry.num_samples)

    def check_other_files(self) -> None:
        """Check the other files: rejects that the manifest does not count, and shards it does not list."""
        report = ShardReport(REJECTS_NAME, 0)
        where = filesystem.join(self.shard_set.url, REJECTS_NAME)
        try:
            rows = documents.read_lines(where) if filesystem.exists(where) else []
            if not all(isinstance(row, dict) for row in rows):
                raise DataError("a line is not an object", where=where)
            extra = {name for row in rows for name in row} - _REJECT_FIELDS
            if extra:
                report.add(f"it has fields that a set must not contain: {', '.join(sorted(extra))}")
            counted, recorded = len(rows), sum(self.shard_set.rejects.values())
            if counted != recorded:
                report.add(f"it has {counted} rejects, the manifest records {recorded}")
        except (DataError, StorageError) as error:
            report.add(f"it cannot be read: {error.message}")
        self.reports.append(report)
        listed = {entry.name.removesuffix(".tar") for entry in self.shard_set.shards}
        for name in sorted(filesystem.list_files(self.shard_set.url)):
            stem = name.removesuffix(".tar").removesuffix(_INDEX_SUFFIX)
            if name.endswith((".tar", _INDEX_SUFFIX)) and stem not in listed:
                stray = ShardReport(name, 0)
                stray.add("the manifest does not list it, but readers that use all tars would read it")
                self.reports.append(stray)

    def _verified(
        self,
        entry: ShardEntry,
        reader: TarShardReader | None,
        report: ShardReport,
        decode: SampleDecoder,
        advance: Advance,
    ) -> list[LabelRow]:
        """Read and check all bytes of a shard."""
        rows: list[LabelRow] = []

        def visit(key: str, members: Mapping[str, bytes]) -> None:
            rows.append(decode_json(members[META], where=key)["labels"])
            if len(rows) % _ADVANCE_EVERY == 0:
                advance(_ADVANCE_EVERY)

        check_shard(self.shard_set, entry, reader, report, decode=decode, keys=self._keys, visit=visit)
        advance(entry.num_samples - len(rows) // _ADVANCE_EVERY * _ADVANCE_EVERY)
        return rows

    def _measure(self, reader: TarShardReader) -> None:
        index = reader.index
        for column, extension in enumerate(index.extensions):
            present = index.offsets[:, column] >= 0
            self.members.setdefault(extension, MemberSizes()).add(index.sizes[present, column])

    def _documents(
        self, entry: ShardEntry, reader: TarShardReader, report: ShardReport, advance: Advance
    ) -> list[LabelRow]:
        """Read the labels of a shard, from its index if that has them, else from the JSON of the samples."""
        rows: list[LabelRow] = []
        keys = reader.index.keys
        try:
            if (found := filesystem.file_size(reader.tar_url)) != entry.bytes:
                report.add(f"it has {found} bytes, the manifest records {entry.bytes}")
            with self._label_reader(entry, reader) as labels:
                for row, key in enumerate(keys):
                    self._keys.add(key, report)
                    try:
                        rows.append(labels(row))
                    except CorruptShard as error:
                        report.add(error.message, key=key)
                    if (row + 1) % _ADVANCE_EVERY == 0:
                        advance(_ADVANCE_EVERY)
        except SynfundusError as error:
            report.add(f"it cannot be read: {error.message}")
        except OSError as error:
            report.add(f"it cannot be read: {error.strerror}")
        advance(entry.num_samples - len(keys) // _ADVANCE_EVERY * _ADVANCE_EVERY)
        report.good = len(rows)
        return rows

    @contextmanager
    def _label_reader(self, entry: ShardEntry, reader: TarShardReader) -> Iterator[Callable[[int], LabelRow]]:
        """Provide a function that returns the labels of a sample by row, or raises CorruptShard.

        Raises:
            CorruptShard: The whole shard differs from the manifest.
            StorageError: It cannot be read.
        """
        schema, states = self.shard_set.label_schema, reader.index.states
        if states is not None:
            yield lambda row: states_to_labels(states[row], schema, where=f"{entry.name}#{reader.index.keys[row]}")
            return
        with filesystem.open_read(reader.tar_url) as stream:
            yield lambda row: _labels(stream, reader.index, row, schema, f"{entry.name}#{reader.index.keys[row]}")

    @property
    def problems(self) -> list[Problem]:
        """All problems, in shard order."""
        return [problem for report in self.reports for problem in report.problems]

    @property
    def good(self) -> int:
        """Number of samples without problems."""
        return sum(report.good for report in self.reports)

    def reasons(self) -> dict[str, int]:
        """Count the problems by reason, without words that contain digits."""
        words = Counter(
            " ".join(word for word in problem.reason.split() if not any(letter.isdigit() for letter in word))
            for problem in self.problems
        )
        return dict(words.most_common())


def _labels(stream: IO[bytes], index: ShardIndex, row: int, schema: LabelSchema, where: str) -> LabelRow:
    """Return the labels in the JSON of a sample.

    Raises:
        CorruptShard: It is missing, damaged, or does not fit the schema.
    """
    entries = {extension: entry for extension, *entry in index.members(row)}
    if META not in entries:
        raise CorruptShard("sample lacks its member .json", where=where)
    offset, size, crc32 = entries[META]
    stream.seek(offset)
    data = stream.read(size)
    if len(data) != size or zlib.crc32(data) != crc32:
        raise CorruptShard("member .json does not match its checksum", where=where)
    document = decode_json(data, where=where)
    label_states(document, schema, where=where)
    labels: LabelRow = document["labels"]
    return labels
