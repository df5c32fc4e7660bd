"""Third stage of `synfundus prepare`: all ranks assemble the shards from the images of the first stage."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from synfundus.artifacts.shard_records import ShardRecords
from synfundus.distributed.world import World, of_rank
from synfundus.errors import CorruptShard
from synfundus.labels.schema import LabelSchema
from synfundus.photographs.crosswalk import close_to_others, write_private
from synfundus.shards.members import decode_json, label_states
from synfundus.stages.prepare.decision import Decision
from synfundus.stages.prepare.places import RECORD_FORMAT, RECORD_VERSION, PreparePaths
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import SPLITS, ShardEntry
from synfundus.storage.tarshard import ShardFiles, index_url, write_shard
from synfundus.telemetry.console import Console

_REQUESTS_AT_ONCE = 16
_SAMPLES_AHEAD = 32

Members = Mapping[str, bytes]
Row = dict[str, Any]


@dataclass(frozen=True)
class ShardTask:
    """A shard to assemble: name, split, number of samples, and the hash of its plan."""

    name: str
    split: str
    num_samples: int
    plan_sha256: str


def plan_shard_tasks(paths: PreparePaths, decision: Decision) -> list[ShardTask]:
    """Write the plans of the shards and return the tasks; shards of an earlier plan are removed."""
    images = {one.sample.key: one for one in decision.kept}
    tasks = []
    for shard in decision.shards:
        lines = [
            documents.dump_line({"key": one.sample.key, "chunk": one.chunk, "spans": one.spans})
            for one in (images[sample.key] for sample in shard.samples)
        ]
        data = b"".join(lines)
        write_private(paths.shard_url(shard.name, "plan.jsonl"), data)
        tasks.append(ShardTask(shard.name, shard.split, len(lines), hashlib.sha256(data).hexdigest()))
    planned = {name for task in tasks for name in (task.name, index_url(task.name))}
    for name in filesystem.list_files(paths.out):
        if name.split("/")[0] in SPLITS and name not in planned:
            filesystem.remove(filesystem.join(paths.out, name))
    return tasks


def assemble_shards(
    paths: PreparePaths,
    image_format: str,
    tasks: Sequence[ShardTask],
    schema: LabelSchema,
    world: World,
    console: Console,
) -> None:
    """Assemble shards of this rank; the record of each is written last.

    Raises:
        CorruptShard: The work folder is damaged; the next run prepares the damaged chunk again.
        StorageError: The disk or the store failed.
    """
    extensions, records = ("json", image_format), _records(paths)
    total = sum(task.num_samples for task in tasks)
    with console.progress(of_rank("writing shards", world), total=total, unit="images") as progress:
        for task in tasks:
            if records.read(task.name, plan_sha256=task.plan_sha256) is not None:
                progress.advance(task.num_samples)
                continue
            files = _write_shard(paths, extensions, task, schema, progress.advance)
            records.write(ShardEntry.of(task.name, task.split, files), plan_sha256=task.plan_sha256)
            close_to_others(records.url(task.name))


def _write_shard(
    paths: PreparePaths, extensions: tuple[str, str], task: ShardTask, schema: LabelSchema, advance: Callable[[], None]
) -> ShardFiles:
    """Write a shard, with the label states of its samples in the index."""
    states: list[NDArray[np.int64]] = []

    def noted(samples: Iterator[tuple[str, Members]]) -> Iterator[tuple[str, Members]]:
        for key, members in samples:
            advance()
            where = f"{task.name}#{key}"
            states.append(label_states(decode_json(members["json"], where=where), schema, where=where))
            yield key, members

    rows = documents.read_lines(paths.shard_url(task.name, "plan.jsonl"))
    with closing(_samples(paths, extensions, rows)) as samples:
        return write_shard(
            filesystem.join(paths.out, task.name),
            noted(samples),
            extensions=extensions,
            states=lambda: np.reshape(states, (len(states), len(schema.labels))).astype(np.int16),
        )


def _samples(
    paths: PreparePaths, extensions: tuple[str, str], rows: Sequence[Row]
) -> Generator[tuple[str, Members], None, None]:
    """Yield the samples of a shard in order, prefetched from an object store."""

    def read(row: Row) -> tuple[str, Members]:
        return row["key"], _read_members(paths, extensions, row)

    if filesystem.is_local(paths.work):
        yield from map(read, rows)
        return
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        try:
            pending: deque[Future[tuple[str, Members]]] = deque()
            for row in rows:
                pending.append(pool.submit(read, row))
                if len(pending) >= _SAMPLES_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read_members(paths: PreparePaths, extensions: tuple[str, str], row: Row) -> Members:
    """Read the members of a sample, which are consecutive in the tar of its chunk.

    Raises:
        CorruptShard: The bytes do not match their checksum. The record of the chunk is removed.
    """
    spans: list[list[int]] = row["spans"]
    start = spans[0][0]

    def parts(data: bytes) -> list[bytes]:
        return [data[offset - start : offset - start + size] for offset, size, _ in spans]

    def check(data: bytes) -> str:
        for (_, size, crc), part in zip(spans, parts(data), strict=True):
            if len(part) != size or crc32(part) != crc:
                return f"sample {row['key']} does not match its checksum"
        return ""

    try:
        data = filesystem.read_checked(
            paths.chunk_url(row["chunk"], "tar"), start, spans[-1][0] + spans[-1][1] - start, check
        )
    except CorruptShard as error:
        filesystem.remove(paths.chunk_url(row["chunk"], "done.json"))
        raise CorruptShard(
            error.message, where=error.where, hint="run the command again to prepare this chunk again"
        ) from error
    return dict(zip(extensions, parts(data), strict=True))


def _records(paths: PreparePaths) -> ShardRecords:
    return ShardRecords(paths.out, RECORD_FORMAT, RECORD_VERSION, folder=paths.shards)


def finished_entries(paths: PreparePaths, tasks: Sequence[ShardTask]) -> tuple[ShardEntry, ...]:
    """Return the entries of all shards.

    Raises:
        DataError: One is missing.
    """
    records = _records(paths)
    found = [records.require(task.name, plan_sha256=task.plan_sha256) for task in tasks]
    return tuple(ShardEntry(**record["entry"]) for record in found)
