"""`synfundus prepare`: from photographs and a label table to a de-identified image set.

Three stages. All ranks read every photograph once, in chunks of the table, each with a pool of processes; rank 0 drops
what is there twice and divides the patients; all ranks put the shards together. What is known of names and patients
lies in the crosswalk folder, outside the set. Finished chunks and shards leave records there, so a run that was
stopped goes on where it was; the bytes depend neither on the number of ranks nor of processes.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass

from synfundus.config.photographs import PrepareConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.agreement import on_rank_0
from synfundus.distributed.world import World, share_of, without_timeout
from synfundus.errors import DataError
from synfundus.labels.schema import LabelSchema
from synfundus.photographs.crosswalk import REJECTS_NAME as NAMED_REJECTS
from synfundus.photographs.crosswalk import open_crosswalk
from synfundus.stages import Summary
from synfundus.stages.prepare.chunks import ChunkResults, pending_chunks, prepare_chunks, read_chunks
from synfundus.stages.prepare.decision import Decision, decide
from synfundus.stages.prepare.look_alikes import OtherSet, find_other_sets, room_for_thumbnails
from synfundus.stages.prepare.places import (
    Places,
    check_out,
    claim,
    clear_work,
    find_places,
    refuse_difference,
)
from synfundus.stages.prepare.plan import InputPlan, plan_inputs
from synfundus.stages.prepare.report import report, write_crosswalk, write_findings
from synfundus.stages.prepare.shards import ShardTask, assemble_shards, finished_entries, plan_shard_tasks
from synfundus.storage import documents, filesystem
from synfundus.storage.locations import resolved
from synfundus.storage.manifest import REJECTS_NAME, SPLITS, ShardSet, load_shard_set, save_shard_set
from synfundus.telemetry.console import Console


@dataclass(frozen=True)
class _Assignment:
    """What every rank has to know before the first stage: small and plain.

    Attributes:
        complete: The set is there already.
        collection: Name of the collection.
        schema: Labels of the set.
        chunks: Number of each unfinished chunk and of its photographs.
    """

    complete: bool
    collection: str
    schema: LabelSchema
    chunks: tuple[tuple[int, int], ...]


class _Chief:
    """What rank 0 alone does."""

    def __init__(self, section: PrepareConfig, seed: int, places: Places, console: Console) -> None:
        self._section = section
        self._seed = seed
        self._places = places
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
        """Find the inputs and make the folders ours."""
        places, section = self._places, self._section
        complete = check_out(places)
        self._others = find_other_sets(section.compare_with)
        plan = self._plan = plan_inputs(
            section,
            source=places.source,
            compared_with=[other.identity for other in self._others],
            open_secret=lambda: open_crosswalk(places.crosswalk, out=resolved(places.out)),
            seed=self._seed,
        )
        for warning in plan.warnings:
            self._console.warning(warning)
        if complete:
            refuse_difference(places, plan)
            clear_work(places)  # a run may have ended between its last two steps
            return _Assignment(True, plan.collection, plan.schema, ())
        claim(places, plan)
        pending = pending_chunks(places, plan.num_chunks)
        chunks = tuple((number, len(plan.chunk(number))) for number in pending)
        return _Assignment(False, plan.collection, plan.schema, chunks)

    def decide(self) -> list[ShardTask]:
        """Drop duplicates, divide the patients, plan the shards, write the crosswalk; returns the shards."""
        places, plan = self._places, self.plan
        with room_for_thumbnails(len(plan.samples)) as thumbnails:
            results = read_chunks(places, plan, thumbnails)
            decision = self._decision = decide(self._section, plan, results, self._others, self._console)
            self._check(decision, results)
            write_findings(places, results, decision, self._others)
        self._tasks = plan_shard_tasks(places, decision)
        return self._tasks

    def _check(self, decision: Decision, results: ChunkResults) -> None:
        """Count everybody.

        Raises:
            DataError: In is not out + rejects, or nothing is usable.
        """
        plan = self.plan
        reasons = [one.reason for one in (*plan.rejects, *decision.duplicates)]
        reasons += [one.reason for one in results.unusable]
        if len(decision.kept) + len(reasons) != plan.num_inputs:
            raise DataError(
                f"{len(decision.kept)} samples + {len(reasons)} rejects is not {plan.num_inputs} inputs",
                where=self._places.out,
            )
        if not decision.kept:
            write_crosswalk(self._places, plan, decision)
            counts = dict(sorted(Counter(reasons).items()))
            raise DataError(
                f"none of {plan.num_inputs} inputs is usable: {json.dumps(counts)}",
                where=filesystem.join(self._places.crosswalk, NAMED_REJECTS),
            )

    def publish(self) -> None:
        """Write the crosswalk, then the manifest, and remove the working files.

        Raises:
            DataError: A shard is missing, or in is not out + rejects.
        """
        places, plan, decision = self._places, self.plan, self._decision
        assert decision is not None
        entries = finished_entries(places, self._tasks)
        rejects = write_crosswalk(places, plan, decision)
        num_samples = sum(entry.num_samples for entry in entries)
        if num_samples + len(rejects) != plan.num_inputs:
            raise DataError(
                f"{num_samples} samples + {len(rejects)} rejects is not {plan.num_inputs} inputs", where=places.out
            )
        documents.write_lines(filesystem.join(places.out, REJECTS_NAME), rejects)
        counts = dict(sorted(Counter(row["reason"] for row in rejects).items()))
        shard_set = save_shard_set(
            ShardSet(places.out, "images", plan.schema, entries, rejects=counts, properties=decision.properties)
        )
        clear_work(places)
        report(self._console, shard_set, decision)


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Prepare the set ``config.prepare`` asks for. Collective; resumes by itself.

    Returns:
        ``out``, ``crosswalk``, ``identity``, ``num_inputs``, ``num_samples``, ``splits``, ``num_patients``,
        ``rejects`` (number by reason), ``flags``, ``look_alikes``, ``seconds`` and ``images_per_s`` of this run.

    Raises:
        ConfigError: Something is not given or not there, or ``--out`` holds something else.
        DataError: A table that cannot be read, or no usable photograph at all.
    """
    began = time.perf_counter()
    section = config.prepare
    places = find_places(section)
    chief = _Chief(section, config.seed, places, console)
    world = without_timeout(world)  # a stage may take hours, and one rank longer than another
    assignment = on_rank_0(chief.begin, world)
    if assignment.complete:
        console.message(f"the set is complete: {places.out}")
        return _summary(places, load_shard_set(places.out, kind="images"), seconds=0.0, num_done=0)
    prepare_chunks(section, places, assignment.collection, share_of(assignment.chunks, world), console)
    world.barrier()
    tasks = on_rank_0(chief.decide, world)
    assemble_shards(places, section.image_format, share_of(tasks, world), assignment.schema, console)
    world.barrier()
    on_rank_0(chief.publish, world)
    num_done = sum(number for _, number in assignment.chunks)
    seconds = time.perf_counter() - began
    return _summary(places, load_shard_set(places.out, kind="images"), seconds=seconds, num_done=num_done)


def _summary(places: Places, shard_set: ShardSet, *, seconds: float, num_done: int) -> Summary:
    return {
        "out": places.out,
        "crosswalk": places.crosswalk,
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
