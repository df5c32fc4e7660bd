"""`synfundus prepare`: from photographs and a label table to a de-identified image set.

Rank 0 plans (which photograph is which sample of which shard), every rank prepares every W-th shard with its own
pool of processes, rank 0 publishes. What the plan knows of names and patients lies in the crosswalk folder, outside
the set. A finished shard leaves a record there, so a run that was stopped goes on where it was; the bytes depend
neither on the number of ranks nor of processes.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from synfundus.config.data_sections import PrepareConfig
from synfundus.config.schema import RunConfig
from synfundus.data.crosswalk import (
    CROSSWALK_NAME,
    crosswalk_table,
    open_crosswalk,
    write_private,
    write_private_lines,
)
from synfundus.data.crosswalk import REJECTS_NAME as NAMED_REJECTS
from synfundus.data.ingest import PlannedSample, Reject, sample_key
from synfundus.data.preparation import Prepared, Task, Unusable, run_task
from synfundus.data.process_pool import ProcessMap, process_map
from synfundus.distributed.world import World
from synfundus.errors import DataError, SynfundusError
from synfundus.jobs import Summary
from synfundus.jobs.preparation_places import (
    RECORD_FORMAT,
    RECORD_VERSION,
    Places,
    check_out,
    claim,
    find_places,
    refuse_difference,
)
from synfundus.jobs.preparation_plan import PreparationPlan, plan_preparation
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import (
    REJECTS_NAME,
    SPLITS,
    ShardEntry,
    ShardSet,
    load_shard_set,
    save_shard_set,
)
from synfundus.storage.tarshard import write_shard
from synfundus.telemetry.console import Console, Progress

_TASK_SAMPLES = 16


@dataclass(frozen=True)
class _Assignment:
    """What every rank has to know: small and plain."""

    complete: bool
    collection: str
    fingerprint: str
    shards: tuple[tuple[str, str, int], ...]  # name, split, number of samples


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Prepare the set ``config.prepare`` asks for. Collective; resumes by itself.

    Returns:
        ``out``, ``crosswalk``, ``identity``, ``num_inputs``, ``num_samples``, ``splits``, ``num_patients``,
        ``rejects`` (number by reason), ``seconds`` and ``images_per_s`` of this run.

    Raises:
        ConfigError: Something is not given or not there, or ``--out`` holds something else.
        DataError: A table that cannot be read, or no usable photograph at all.
    """
    began = time.perf_counter()
    places = find_places(config.prepare)
    plan, assignment = _begin(config, places, world, console)
    if assignment.complete:
        console.message(f"the set is complete: {places.out}")
        return _summary(places, load_shard_set(places.out, kind="images"), seconds=0.0, num_done=0)
    mine = assignment.shards[world.rank :: world.size]
    total = sum(number for _, _, number in mine)
    num_done = 0
    with (
        process_map(config.prepare.workers) as mapped,
        console.progress("preparing photographs", total=total, unit="images") as progress,
    ):
        for name, split, number in mine:
            if _read_record(places, name, assignment.fingerprint) is not None:
                progress.advance(number)
                continue
            _prepare_shard(config.prepare, places, assignment, name, split, mapped, progress)
            num_done += number
    world.barrier()
    if plan is not None:
        _report(console, _publish(places, plan, assignment))
    world.barrier()
    seconds = time.perf_counter() - began
    return _summary(places, load_shard_set(places.out, kind="images"), seconds=seconds, num_done=num_done)


def _begin(
    config: RunConfig, places: Places, world: World, console: Console
) -> tuple[PreparationPlan | None, _Assignment]:
    """Plan on rank 0 and tell the others. Collective; returns the plan on rank 0 alone."""
    plan: PreparationPlan | None = None
    outcome: _Assignment | SynfundusError | None = None
    if world.rank == 0:
        try:
            plan, outcome = _plan_and_claim(config, places, console)
        except SynfundusError as error:
            if world.size == 1:
                raise
            outcome = error
    outcome = world.all_gather(outcome)[0]
    if isinstance(outcome, SynfundusError):
        raise outcome
    if outcome is None:
        raise DataError("rank 0 has no plan")
    return plan, outcome


def _plan_and_claim(config: RunConfig, places: Places, console: Console) -> tuple[PreparationPlan, _Assignment]:
    complete = check_out(places)
    plan = plan_preparation(
        config.prepare,
        source=places.source,
        labels=places.labels,
        open_secret=lambda: open_crosswalk(places.crosswalk),
        seed=config.seed,
    )
    for warning in plan.warnings:
        console.warning(warning)
    fingerprint = str(plan.properties["inputs_sha256"])
    if complete:
        refuse_difference(places, plan)
    else:
        claim(places, plan, fingerprint)
    shards = tuple((shard.name, shard.split, len(shard.samples)) for shard in plan.shards)
    return plan, _Assignment(complete, plan.collection, fingerprint, shards)


def _tasks(section: PrepareConfig, places: Places, assignment: _Assignment, shard: str) -> Iterator[Task]:
    rows = documents.read_lines(places.plan_url(shard))
    for at in range(0, len(rows), _TASK_SAMPLES):
        yield Task(
            source=places.source,
            samples=tuple(PlannedSample(**row) for row in rows[at : at + _TASK_SAMPLES]),
            image_size_px=section.image_size_px,
            image_format=section.image_format,
            max_pixels=section.max_pixels,
            collection=assignment.collection,
        )


def _prepare_shard(
    section: PrepareConfig,
    places: Places,
    assignment: _Assignment,
    name: str,
    split: str,
    mapped: ProcessMap,
    progress: Progress,
) -> None:
    """Prepare one shard; its record is written last. A shard without a usable photograph is not written."""
    samples: list[tuple[str, Mapping[str, bytes]]] = []
    unusable: list[Unusable] = []
    for results in mapped(run_task, _tasks(section, places, assignment, name)):
        for result in results:
            if isinstance(result, Prepared):
                samples.append((result.sample.key, result.members))
            else:
                unusable.append(result)
        progress.advance(len(results), rejected=str(len(unusable)))
    entry = None
    if samples:
        files = write_shard(filesystem.join(places.out, name), samples, extensions=("json", section.image_format))
        entry = asdict(ShardEntry.of(name, split, files))
    record = {"fingerprint": assignment.fingerprint, "entry": entry, "unusable": [asdict(one) for one in unusable]}
    data = documents.dump_json({"format": RECORD_FORMAT, "schema_version": RECORD_VERSION, **record})
    write_private(places.record_url(name), data)


def _read_record(places: Places, shard: str, fingerprint: str) -> dict[str, Any] | None:
    """Return the record of a finished shard; None if it is unfinished, of another plan, or the tar is not there."""
    url = places.record_url(shard)
    if not filesystem.exists(url):
        return None
    record = documents.read_document(url, format_name=RECORD_FORMAT, version=RECORD_VERSION)
    if record["fingerprint"] != fingerprint:
        return None
    tar = filesystem.join(places.out, shard)
    if record["entry"] is not None and (
        not filesystem.exists(tar) or filesystem.file_size(tar) != record["entry"]["bytes"]
    ):
        return None
    return record


def _publish(places: Places, plan: PreparationPlan, assignment: _Assignment) -> ShardSet:
    """Write the crosswalk, then the manifest, and remove the working files.

    Raises:
        DataError: A shard is missing, nothing is usable, or in is not out + rejects.
    """
    records = []
    for name, _, _ in assignment.shards:
        record = _read_record(places, name, assignment.fingerprint)
        if record is None:
            raise DataError(f"shard {name} was not prepared", where=places.out, hint="run the command again")
        records.append(record)
    unusable = [Unusable(**{**row, "sample": PlannedSample(**row["sample"])}) for r in records for row in r["unusable"]]
    entries = tuple(ShardEntry(**record["entry"]) for record in records if record["entry"] is not None)
    num_samples = sum(entry.num_samples for entry in entries)
    num_rejects = len(plan.rejects) + len(unusable)
    if num_samples + num_rejects != plan.num_inputs:
        raise DataError(
            f"{num_samples} samples + {num_rejects} rejects is not {plan.num_inputs} inputs", where=places.out
        )
    rejects = _write_crosswalk(places, plan, unusable)
    counts = dict(sorted(Counter(row["reason"] for row in rejects).items()))
    if not entries:
        raise DataError(
            f"none of {plan.num_inputs} inputs is usable: {json.dumps(counts)}",
            where=filesystem.join(places.crosswalk, NAMED_REJECTS),
        )
    documents.write_lines(filesystem.join(places.out, REJECTS_NAME), rejects)
    shard_set = save_shard_set(
        ShardSet(places.out, "images", plan.schema, entries, rejects=counts, properties=plan.properties)
    )
    filesystem.remove(places.work, recursive=True)
    return shard_set


def _write_crosswalk(places: Places, plan: PreparationPlan, unusable: Sequence[Unusable]) -> list[dict[str, str]]:
    """Write who is who outside the set; returns the rejects as the set may show them: by key alone."""
    secret = open_crosswalk(places.crosswalk)
    all_rejects: list[tuple[str, str, Reject]] = [
        (sample_key(secret, reject.source), "", reject) for reject in plan.rejects
    ]
    split_of = {sample.key: shard.split for shard in plan.shards for sample in shard.samples}
    for one in unusable:
        reject = Reject(one.sample.source, one.sample.patient, one.stage, one.reason, one.detail)
        all_rejects.append((one.sample.key, split_of[one.sample.key], reject))
    out_again = {one.sample.key for one in unusable}
    rows = [
        (sample.key, sample.source, sample.patient, shard.split, "")
        for shard in plan.shards
        for sample in shard.samples
        if sample.key not in out_again
    ]
    rows += [(key, reject.source, reject.patient, split, reject.reason) for key, split, reject in all_rejects]
    write_private(filesystem.join(places.crosswalk, CROSSWALK_NAME), crosswalk_table(rows))
    named: list[dict[str, object]] = [{"key": key, **asdict(reject)} for key, _, reject in all_rejects]
    write_private_lines(filesystem.join(places.crosswalk, NAMED_REJECTS), named)
    bare = [{"key": key, "stage": reject.stage, "reason": reject.reason} for key, _, reject in all_rejects]
    return sorted(bare, key=lambda row: (row["key"], row["reason"]))


def _report(console: Console, shard_set: ShardSet) -> None:
    num_rejects = sum(shard_set.rejects.values())
    console.message(
        f"{shard_set.properties['num_inputs']} inputs = {shard_set.num_samples()} samples + {num_rejects} rejects"
    )
    if num_rejects:
        console.table("rejects", ["reason", "inputs"], [[name, str(n)] for name, n in shard_set.rejects.items()])


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
        "seconds": round(seconds, 3),
        "images_per_s": round(num_done / seconds, 1) if seconds > 0 else 0.0,
    }
