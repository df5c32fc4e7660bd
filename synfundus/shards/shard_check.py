"""Reading every byte of a shard and comparing it with everything that is recorded about it.

The tar is walked the way a plain webdataset reader walks it; what is met must be what the index lists, in the same
order, with the same checksums; hashes must be those of the manifest; every sample must decode. Where the walk ends
early, the samples behind are read by the index, as the loader would, so that what is still good is known by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import CorruptShard, StorageError
from synfundus.labels.schema import LabelSchema
from synfundus.shards.images import IMAGE_EXTENSIONS
from synfundus.shards.members import check_kind, decode_json
from synfundus.shards.reader import SampleDecoder
from synfundus.storage import filesystem
from synfundus.storage.manifest import ShardEntry, ShardSet
from synfundus.storage.shard_index import MAX_MEMBER_BYTES, MAX_MEMBERS_PER_SAMPLE, MAX_SAMPLE_BYTES, ShardIndex
from synfundus.storage.tar_walk import TarMember, TarWalk
from synfundus.storage.tarshard import TarShardReader

SampleVisitor = Callable[[str, Mapping[str, bytes]], None]
"""(key, members) of a sample that is good."""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong: where (``train/000000.tar#key``, or a shard, or a file), and what."""

    place: str
    reason: str


@dataclass
class ShardReport:
    """What was found in one shard.

    Attributes:
        name: The shard below its set.
        num_samples: Samples the manifest records.
        good: Samples that are listed, match every hash and decode.
        problems: Everything that is wrong.
    """

    name: str
    num_samples: int
    good: int = 0
    problems: list[Problem] = field(default_factory=list)

    def add(self, reason: str, *, key: str = "") -> None:
        """Record a problem of the shard, or of a sample of it."""
        self.problems.append(Problem(f"{self.name}#{key}" if key else self.name, reason))


class KeysSeen:
    """Finds keys that two shards of a set share."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def add(self, key: str, report: ShardReport) -> None:
        """Note a key of a shard; a key of another shard is a problem of this one."""
        first = self._first.setdefault(key, report.name)
        if first != report.name:
            report.add(f"the key is also in {first}", key=key)


def open_shard(shard_set: ShardSet, entry: ShardEntry, report: ShardReport) -> TarShardReader | None:
    """Open a shard by its index; what prevents it is recorded."""
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
    """Return the labels an index holds for a sample.

    Args:
        states: Label states ``[k]``.
        schema: The set's labels.
        where: Name of the sample, for the message.

    Raises:
        CorruptShard: States the schema does not have.
    """
    values = states.tolist()
    if len(values) != len(schema.labels) or any(
        not 0 <= state <= most for state, most in zip(values, schema.num_values, strict=True)
    ):
        raise CorruptShard("label states in the index do not fit the schema", where=where)
    return schema.decode(values)


class _Comparison:
    """What the walk has met so far against what the index lists."""

    def __init__(self, index: ShardIndex, decode: SampleDecoder, report: ShardReport, visit: SampleVisitor) -> None:
        self._index = index
        self._decode = decode
        self._report = report
        self._visit = visit
        self._rows = {key: row for row, key in enumerate(index.keys)}
        self._met: set[str] = set()
        self._expected_row = 0

    def _check_sample(self, key: str, members: list[TarMember], row: int) -> str:
        """Say how a sample differs from the index; empty if it does not."""
        found = {member.extension: (member.offset, len(member.data), member.crc32) for member in members}
        if len(found) != len(members):
            return "a member is there twice"
        for extension, *listed in self._index.members(row):
            met = found.pop(extension, None)
            if met != tuple(listed):
                return _difference(extension, met, (listed[0], listed[1]))
        return f"member .{min(found)} is not in the index" if found else ""

    def add(self, key: str, members: list[TarMember]) -> None:
        """Compare the members that stood together under one key."""
        row = self._rows.get(key)
        if key in self._met:
            self._report.add("its members are not together, or the key is there twice", key=key)
            return
        self._met.add(key)
        if row is None:
            self._report.add("the sample is not in the index", key=key)
            return
        if row != self._expected_row:
            self._report.add(f"it stands at another place than the index says (sample {row})", key=key)
        self._expected_row = row + 1
        problem = self._check_sample(key, members, row)
        if problem:
            self._report.add(problem, key=key)
        else:
            self.decode(key, {member.extension: member.data for member in members})

    def decode(self, key: str, members: Mapping[str, bytes]) -> None:
        """Decode a sample whose bytes are the ones the index lists, and count it if that goes well."""
        where = f"{self._report.name}#{key}"
        try:
            for extension in members:
                check_kind(extension, where=where)
            arrays = self._decode(key, members, where)
            states = self._index.states
            if states is not None and not np.array_equal(arrays["states"], states[self._rows[key]]):
                raise CorruptShard("its labels in the index are not those of its document", where=where)
            _check_image_hash(members, where)
        except CorruptShard as error:
            self._report.add(error.message, key=key)
            return
        self._report.good += 1
        self._visit(key, members)

    def unseen(self) -> Iterator[tuple[int, str]]:
        """Yield (row, key) of what the index lists and the walk has not met."""
        return ((row, key) for row, key in enumerate(self._index.keys) if key not in self._met)


def _difference(extension: str, met: tuple[int, int, int] | None, listed: tuple[int, int]) -> str:
    """Say how a member that was met, if it was, differs from the (offset, size) in the index."""
    if met is None:
        return f"member .{extension} is missing"
    if met[:2] != listed:
        return f"member .{extension} lies at byte {met[0]} with {met[1]} bytes, by the index {listed[0]}, {listed[1]}"
    return f"member .{extension} does not match its checksum"


def _check_image_hash(members: Mapping[str, bytes], where: str) -> None:
    """Compare an image with the hash its document records.

    Raises:
        CorruptShard: It is another image.
    """
    name = next((extension for extension in IMAGE_EXTENSIONS if extension in members), None)
    recorded = decode_json(members["json"], where=where).get("sha256_image")
    if name is not None and recorded is not None and hashlib.sha256(members[name]).hexdigest() != recorded:
        raise CorruptShard("the image is not the one its document records (sha256_image)", where=where)


def _groups(walk: TarWalk) -> Iterator[tuple[str, list[TarMember]]]:
    """Yield members that stand together under one key. What was met of a sample before the walk broke is left out."""
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
    """Walk the tar once: compare the samples, then the hash of the whole."""
    most = entry.num_samples
    try:
        opened = filesystem.open_read(url, sha256=entry.sha256)
    except CorruptShard as error:  # what a store has is copied as a whole, and is another object than was written
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
                if count > most:
                    raise CorruptShard(f"it holds more than the {most} samples the manifest records", where=url)
        except CorruptShard as error:
            report.add(error.message)
        sha256, num_bytes = walk.finish()
    if num_bytes != entry.bytes:
        report.add(f"it has {num_bytes} bytes, the manifest records {entry.bytes}")
    elif sha256 != entry.sha256:
        report.add(f"its sha256 is {sha256}, the manifest records {entry.sha256}")
    elif compare is None:
        report.add("the tar itself is whole: copy the index again, or write it again from the tar")


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
    """Read a shard completely and record what is wrong.

    Args:
        shard_set: Its set.
        entry: What the manifest records.
        reader: What `open_shard` returned; it is closed.
        report: Where to record it.
        decode: Decoder of the set's samples.
        keys: Keys of the shards checked before.
        visit: Called for each good sample.
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
