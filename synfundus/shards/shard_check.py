"""Read every byte of a shard and compare it with its index and the manifest.

The tar is read sequentially, like by plain webdataset; the members must be those in the index, in the same order, with
the same checksums; hashes must match the manifest; every sample must decode. If the tar is invalid at some point, the
remaining samples are read through the index, like by the loader, so that the valid ones are known by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import CorruptShard, StorageError
from synfundus.labels.schema import LabelSchema
from synfundus.shards.members import check_kind, decode_json
from synfundus.shards.reader import SampleDecoder
from synfundus.shards.source import IMAGE_EXTENSIONS
from synfundus.storage import filesystem
from synfundus.storage.manifest import ShardEntry, ShardSet
from synfundus.storage.shard_index import MAX_MEMBER_BYTES, MAX_MEMBERS_PER_SAMPLE, MAX_SAMPLE_BYTES, ShardIndex
from synfundus.storage.tar_walk import TarMember, TarWalk
from synfundus.storage.tarshard import TarShardReader

SampleVisitor = Callable[[str, Mapping[str, bytes]], None]
"""(key, members) of a valid sample."""


@dataclass(frozen=True)
class Problem:
    """A problem: where (``train/000000.tar#key``, a shard or a file), and what is wrong."""

    place: str
    reason: str


@dataclass
class ShardReport:
    """The result for one shard.

    Attributes:
        name: Name of the shard in its set.
        num_samples: Samples recorded in the manifest.
        good: Samples that are listed, match every hash and decode.
        problems: All problems.
    """

    name: str
    num_samples: int
    good: int = 0
    problems: list[Problem] = field(default_factory=list)

    def add(self, reason: str, *, key: str = "") -> None:
        """Record a problem of the shard, or of one of its samples."""
        self.problems.append(Problem(f"{self.name}#{key}" if key else self.name, reason))


class KeysSeen:
    """Finds keys that occur in two shards of a set."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def add(self, key: str, report: ShardReport) -> None:
        """Add a key of a shard; a key that is also in another shard is a problem."""
        first = self._first.setdefault(key, report.name)
        if first != report.name:
            report.add(f"the key is also in {first}", key=key)


def open_shard(shard_set: ShardSet, entry: ShardEntry, report: ShardReport) -> TarShardReader | None:
    """Open a shard by its index; return None and record the problem if that fails."""
    try:
        reader = TarShardReader(shard_set.shard_url(entry), index_sha256=entry.index_sha256)
        num_samples = len(reader.index.keys)
    except (CorruptShard, StorageError) as error:
        report.add(f"its index cannot be used: {error.message}")
        return None
    if num_samples != entry.num_samples:
        report.add(f"its index lists {num_samples} samples, the manifest {entry.num_samples}")
    return reader


def states_to_labels(states: NDArray[np.int16], schema: LabelSchema, *, where: str) -> dict[str, int | None]:
    """Return the labels of a sample from its states in the index.

    Args:
        states: Label states ``[k]``.
        schema: Label schema of the set.
        where: Name of the sample, for messages.

    Raises:
        CorruptShard: States the schema does not have.
    """
    values = states.tolist()
    if len(values) != len(schema.labels) or any(
        not 0 <= state <= highest for state, highest in zip(values, schema.num_values, strict=True)
    ):
        raise CorruptShard("label states in the index do not fit the schema", where=where)
    return schema.decode(values)


class _Comparison:
    """Compares the members read from the tar with the index."""

    def __init__(self, index: ShardIndex, decode: SampleDecoder, report: ShardReport, visit: SampleVisitor) -> None:
        self._index = index
        self._decode = decode
        self._report = report
        self._visit = visit
        self._rows = {key: row for row, key in enumerate(index.keys)}
        self._seen: set[str] = set()
        self._expected_row = 0

    def _check_sample(self, key: str, members: list[TarMember], row: int) -> str:
        """Describe how a sample differs from the index; empty if it does not."""
        found = {member.extension: (member.offset, len(member.data), member.crc32) for member in members}
        if len(found) != len(members):
            return "a member occurs twice"
        for extension, *listed in self._index.members(row):
            read = found.pop(extension, None)
            if read != tuple(listed):
                return _difference(extension, read, (listed[0], listed[1]))
        return f"member .{min(found)} is not in the index" if found else ""

    def add(self, key: str, members: list[TarMember]) -> None:
        """Compare consecutive members with the same key."""
        row = self._rows.get(key)
        if key in self._seen:
            self._report.add("its members are not consecutive, or the key occurs twice", key=key)
            return
        self._seen.add(key)
        if row is None:
            self._report.add("the sample is not in the index", key=key)
            return
        if row != self._expected_row:
            self._report.add(f"its position differs from the index (sample {row})", key=key)
        self._expected_row = row + 1
        problem = self._check_sample(key, members, row)
        if problem:
            self._report.add(problem, key=key)
        else:
            self.decode(key, {member.extension: member.data for member in members})

    def decode(self, key: str, members: Mapping[str, bytes]) -> None:
        """Decode a sample whose bytes match the index, and count it if it is valid."""
        where = f"{self._report.name}#{key}"
        try:
            for extension in members:
                check_kind(extension, where=where)
            arrays = self._decode(key, members, where)
            states = self._index.states
            if states is not None and not np.array_equal(arrays["states"], states[self._rows[key]]):
                raise CorruptShard("its labels in the index differ from its JSON", where=where)
            _check_image_hash(members, where)
        except CorruptShard as error:
            self._report.add(error.message, key=key)
            return
        self._report.good += 1
        self._visit(key, members)

    def unseen(self) -> Iterator[tuple[int, str]]:
        """Yield (row, key) of samples in the index that were not read from the tar."""
        return ((row, key) for row, key in enumerate(self._index.keys) if key not in self._seen)


def _difference(extension: str, read: tuple[int, int, int] | None, listed: tuple[int, int]) -> str:
    """Describe how a member, None if it was not read, differs from the (offset, size) in the index."""
    if read is None:
        return f"member .{extension} is missing"
    if read[:2] != listed:
        return f"member .{extension} is at byte {read[0]} with {read[1]} bytes, in the index {listed[0]}, {listed[1]}"
    return f"member .{extension} does not match its checksum"


def _check_image_hash(members: Mapping[str, bytes], where: str) -> None:
    """Compare an image with the hash in its JSON.

    Raises:
        CorruptShard: The hash differs.
    """
    name = next((extension for extension in IMAGE_EXTENSIONS if extension in members), None)
    recorded = decode_json(members["json"], where=where).get("sha256_image")
    if name is not None and recorded is not None and hashlib.sha256(members[name]).hexdigest() != recorded:
        raise CorruptShard("the image does not match sha256_image in its JSON", where=where)


def _groups(walk: TarWalk) -> Iterator[tuple[str, list[TarMember]]]:
    """Yield consecutive members with the same key; a sample that is incomplete because of an error is left out."""
    members: list[TarMember] = []
    for member in walk:
        if members and members[0].key != member.key:
            yield members[0].key, members
            members = []
        if len(members) == MAX_MEMBERS_PER_SAMPLE:
            raise CorruptShard(f"sample {member.key} has more than {MAX_MEMBERS_PER_SAMPLE} members", where="")
        members.append(member)
        if sum(len(one.data) for one in members) > MAX_SAMPLE_BYTES:
            raise CorruptShard(f"sample {member.key} has more than {MAX_SAMPLE_BYTES} bytes", where="")
    if members:
        yield members[0].key, members


def _walk(url: str, entry: ShardEntry, report: ShardReport, compare: _Comparison | None) -> None:
    """Read the tar once: compare the samples, then the hash of the file."""
    try:
        opened = filesystem.open_read(url, sha256=entry.sha256)
    except CorruptShard as error:  # a store has another object than was written
        try:
            opened = filesystem.open_read(url)
        except CorruptShard:
            report.add(error.message)
            return
    with opened as stream:
        walk = TarWalk(
            stream, num_bytes=filesystem.file_size(url), max_member_bytes=MAX_MEMBER_BYTES, where=report.name
        )
        try:
            for count, (key, members) in enumerate(_groups(walk), start=1):
                if compare is not None:
                    compare.add(key, members)
                if count > entry.num_samples:
                    raise CorruptShard(f"it has more than the {entry.num_samples} samples of the manifest", where=url)
        except CorruptShard as error:
            report.add(error.message)
        sha256, num_bytes = walk.finish()
    if num_bytes != entry.bytes:
        report.add(f"it has {num_bytes} bytes, the manifest records {entry.bytes}")
    elif sha256 != entry.sha256:
        report.add(f"its sha256 is {sha256}, the manifest records {entry.sha256}")
    elif compare is None:
        report.add("the tar itself is complete: copy the index again, or write it again from the tar")


def check_shard(
    shard_set: ShardSet,
    entry: ShardEntry,
    reader: TarShardReader | None,
    report: ShardReport,
    *,
    decode: SampleDecoder,
    keys: KeysSeen,
    visit: SampleVisitor,
) -> None:
    """Read a shard completely and record its problems.

    Args:
        shard_set: Its set.
        entry: Its entry in the manifest.
        reader: Result of `open_shard`; it is closed.
        report: Where to record problems.
        decode: Decoder of the samples of the set.
        keys: Keys of the shards checked before.
        visit: Called for each valid sample.
    """
    compare = None if reader is None else _Comparison(reader.index, decode, report, visit)
    try:
        _walk(shard_set.shard_url(entry), entry, report, compare)
    except StorageError as error:
        report.add(f"it cannot be read: {error.message}")
        return
    if reader is None or compare is None:
        return
    for key in reader.index.keys:
        keys.add(key, report)
    for row, key in list(compare.unseen()):
        try:
            compare.decode(key, reader.read(row))
        except (CorruptShard, StorageError) as error:
            report.add(error.message.removeprefix(f"sample {key}: "), key=key)
    reader.close()
