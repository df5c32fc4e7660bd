"""`synfundus prepare`: from photographs and a label table to a de-identified image set.

Three stages: all ranks read every photograph once, in chunks of the table, each with a pool of processes; rank 0 drops
duplicates and assigns the patients to splits; all ranks write the shards. Names and patients are only in the crosswalk
folder, outside the set. Finished chunks and shards have records there, so a stopped run resumes; the output does not
depend on the number of ranks or processes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from synfundus.config.photographs import PrepareConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.agreement import on_rank_0, require_same
from synfundus.distributed.world import World, share_of, without_timeout
from synfundus.errors import CorruptShard, DataError, StorageError
from synfundus.labels.schema import LabelSchema
from synfundus.photographs.crosswalk import REJECTS_NAME as NAMED_REJECTS
from synfundus.photographs.crosswalk import open_crosswalk, read_secret, read_withdrawn
from synfundus.photographs.preparation import SYNTHETIC
from synfundus.stages import Summary
from synfundus.stages.prepare.chunks import ChunkResults, pending_chunks, prepare_chunks, read_chunks
from synfundus.stages.prepare.decision import Decision, decide
from synfundus.stages.prepare.look_alikes import OtherSet, find_other_sets, thumbnail_buffer
from synfundus.stages.prepare.places import (
    PreparePaths,
    announce_crosswalk,
    check_out,
    claim,
    find_paths,
    require_same_set,
)
from synfundus.stages.prepare.plan import InputPlan, plan_inputs
from synfundus.stages.prepare.report import report, write_crosswalk, write_findings
from synfundus.stages.prepare.shards import ShardTask, assemble_shards, finished_entries, plan_shard_tasks
from synfundus.storage import documents, filesystem
from synfundus.storage.locations import resolved
from synfundus.storage.manifest import REJECTS_NAME, SPLITS, ShardSet, load_shard_set, save_shard_set
from synfundus.storage.writer_lock import write_alone
from synfundus.telemetry.console import Console

_COMPARED, _BEGINNING_BYTES = 16, 2**16


@dataclass(frozen=True)
class _Assignment:
    """What every rank needs for the first stage.

    Attributes:
        complete: Whether the set is already complete.
        collection: Name of the collection.
        schema: Label schema of the set.
        chunks: (number, number of photographs) of each unfinished chunk.
        compared: Names of some photographs, of which all ranks must have the same copy.
    """

    complete: bool
    collection: str
    schema: LabelSchema
    chunks: tuple[tuple[int, int], ...]
    compared: tuple[str, ...] = ()


def _plan(
    section: PrepareConfig,
    paths: PreparePaths,
    others: Sequence[OtherSet],
    open_secret: Callable[[], bytes],
    *,
    seed: int,
) -> InputPlan:
    return plan_inputs(
        section,
        source=paths.source,
        compared_with=[other.identity for other in others],
        open_secret=open_secret,
        withdrawn=lambda: read_withdrawn(paths.crosswalk),
        seed=seed,
    )


def compare_set(section: PrepareConfig, seed: int) -> None:
    """Refuse a complete set of something else, as the run does; writes nothing."""
    paths = find_paths(section)
    others = find_other_sets(section.compare_with)
    require_same_set(paths, _plan(section, paths, others, lambda: read_secret(paths.crosswalk), seed=seed))


class _Rank0:
    """The work of rank 0."""

    def __init__(self, section: PrepareConfig, seed: int, paths: PreparePaths, console: Console) -> None:
        self._section = section
        self._seed = seed
        self._paths = paths
        self._console = console
        self._plan: InputPlan | None = None
        self._others: tuple[OtherSet, ...] = ()
        self._decision: Decision | None = None
        self._tasks: list[ShardTask] = []

    @property
    def plan(self) -> InputPlan:
        """Return the inputs."""
        assert self._plan is not None
        return self._plan

    def begin(self) -> _Assignment:
        """Find the inputs and claim the folders."""
        paths, section = self._paths, self._section
        if not check_out(paths):
            write_alone(paths.out)
        complete = check_out(paths)
        self._others = find_other_sets(section.compare_with)

        def open_secret() -> bytes:
            return open_crosswalk(paths.crosswalk, out=resolved(paths.out))

        plan = self._plan = _plan(section, paths, self._others, open_secret, seed=self._seed)
        for warning in plan.warnings:
            self._console.warning(warning)
        if complete:
            require_same_set(paths, plan)
            filesystem.remove(paths.work, recursive=True)  # a run may have been killed between its last two steps
            return _Assignment(True, plan.collection, plan.schema, ())
        claim(paths, plan)
        pending = pending_chunks(paths, plan.num_chunks)
        chunks = tuple((number, len(plan.chunk(number))) for number in pending)
        apart = -(-len(plan.samples) // _COMPARED)
        compared = tuple(sample.source for sample in plan.samples[::apart])
        return _Assignment(False, plan.collection, plan.schema, chunks, compared)

    def decide(self) -> list[ShardTask]:
        """Drop duplicates, assign splits, plan the shards and write the findings; return the shards."""
        paths, plan = self._paths, self.plan
        with thumbnail_buffer(len(plan.samples)) as thumbnails:
            results = read_chunks(paths, plan, thumbnails)
            decision = self._decision = decide(self._section, plan, results, self._others, self._console)
            self._check(decision, results)
            write_findings(paths, results, decision, self._others)
        self._tasks = plan_shard_tasks(paths, decision)
        return self._tasks

    def _check(self, decision: Decision, results: ChunkResults) -> None:
        """Check the number of inputs.

        Raises:
            DataError: Inputs are not samples + rejects, or nothing is usable.
        """
        plan = self.plan
        reasons = [one.reason for one in (*plan.rejects, *decision.duplicates)]
        reasons += [one.reason for one in results.unusable]
        if len(decision.kept) + len(reasons) != plan.num_inputs:
            raise DataError(
                f"{len(decision.kept)} samples + {len(reasons)} rejects is not {plan.num_inputs} inputs",
                where=self._paths.out,
            )
        if not decision.kept:
            write_crosswalk(self._paths, plan, decision)
            counts = dict(sorted(Counter(reasons).items()))
            raise DataError(
                f"none of {plan.num_inputs} inputs is usable: {json.dumps(counts)}",
                where=filesystem.join(self._paths.crosswalk, NAMED_REJECTS),
                hint="generated images are no photographs: --allow-synthetic lets them in"
                if SYNTHETIC in counts
                else "",
            )

    def publish(self) -> None:
        """Write the crosswalk, then the manifest, and remove the working files.

        Raises:
            DataError: A shard is missing, or inputs are not samples + rejects.
        """
        paths, plan, decision = self._paths, self.plan, self._decision
        assert decision is not None
        entries = finished_entries(paths, self._tasks)
        rejects = write_crosswalk(paths, plan, decision)
        num_samples = sum(entry.num_samples for entry in entries)
        if num_samples + len(rejects) != plan.num_inputs:
            raise DataError(
                f"{num_samples} samples + {len(rejects)} rejects is not {plan.num_inputs} inputs", where=paths.out
            )
        documents.write_lines(filesystem.join(paths.out, REJECTS_NAME), rejects)
        counts = dict(sorted(Counter(row["reason"] for row in rejects).items()))
        shard_set = save_shard_set(
            ShardSet(paths.out, "images", plan.schema, entries, rejects=counts, properties=decision.properties)
        )
        filesystem.remove(paths.work, recursive=True)
        report(self._console, shard_set, decision, paths, plan)


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Prepare an image set. Collective; a stopped run is resumed.

    Returns:
        ``out``, ``crosswalk``, ``identity``, ``num_inputs``, ``num_samples``, ``splits``, ``num_patients``,
        ``rejects`` (number by reason), ``flags``, ``look_alikes``, ``seconds`` and ``images_per_s`` of this run.

    Raises:
        ConfigError: An input is not given or missing, or ``--out`` contains something else.
        DataError: A table that cannot be read, or no usable photograph.
    """
    began = time.perf_counter()
    section = config.prepare
    paths = on_rank_0(lambda: find_paths(section), world)  # other nodes may see other permissions
    rank_0 = _Rank0(section, config.seed, paths, console)
    world = without_timeout(world)  # a stage can take hours, and longer on one rank than on another
    assignment = on_rank_0(rank_0.begin, world)
    if assignment.complete:
        console.message(f"the set is complete: {paths.out}")
        announce_crosswalk(paths, console)
        return _summary(paths, load_shard_set(paths.out, kind="images"), seconds=0.0, num_done=0)
    require_same({"the photographs": _beginnings(paths.source, assignment.compared)} if world.size > 1 else {}, world)
    prepare_chunks(section, paths, assignment.collection, share_of(assignment.chunks, world), world, console)
    world.barrier()
    tasks = on_rank_0(rank_0.decide, world)
    assemble_shards(paths, section.image_format, share_of(tasks, world), assignment.schema, world, console)
    world.barrier()
    on_rank_0(rank_0.publish, world)
    announce_crosswalk(paths, console)
    num_done = sum(number for _, number in assignment.chunks)
    seconds = time.perf_counter() - began
    return _summary(paths, load_shard_set(paths.out, kind="images"), seconds=seconds, num_done=num_done)


def _beginnings(source: str, names: Sequence[str]) -> str:
    """Return a hash of how some photographs begin: the copy on another host may be of other photographs."""
    digest = hashlib.sha256()
    for name in names:
        try:
            digest.update(filesystem.read_range(filesystem.join(source, name), 0, _BEGINNING_BYTES))
        except (StorageError, CorruptShard):
            digest.update(b"unreadable")
    return digest.hexdigest()


def _summary(paths: PreparePaths, shard_set: ShardSet, *, seconds: float, num_done: int) -> Summary:
    return {
        "out": paths.out,
        "crosswalk": paths.crosswalk,
        "identity": shard_set.identity,
        "num_inputs": shard_set.properties["num_inputs"],
        "num_samples": shard_set.num_samples(),
        "splits": {split: shard_set.num_samples(split) for split in SPLITS},
        "num_patients": shard_set.properties["num_patients"],
        "rejects": dict(shard_set.rejects),
        "flags": shard_set.properties["flags"],
        "look_alikes": shard_set.properties["look_alikes"],
        "seconds": round(seconds, 3),
        "images_per_s": round(num_done / seconds, 1) if seconds > 0 else 0.0,
    }
