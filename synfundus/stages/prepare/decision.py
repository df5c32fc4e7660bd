"""Second stage of `synfundus prepare`: what goes into the set, into which split and shard. One rank decides.

By now every photograph has been looked at once. What is there twice is dropped by name; patients who share a
photograph, or have photographs that look the same, count as one; then the patients are divided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from synfundus.config.photographs import PrepareConfig
from synfundus.labels.counts import LabelCounts, count_labels
from synfundus.photographs.ingest import (
    PlannedSample,
    PlannedShard,
    Reject,
    drop_duplicates,
    plan_shards,
    split_patients,
)
from synfundus.photographs.near_duplicates import MIN_SIMILARITY, SEARCH_STEPS, Groups, NearDuplicate, groups_of
from synfundus.photographs.preparation import Unusable
from synfundus.stages.prepare.chunks import ChunkResults, LookedAt
from synfundus.stages.prepare.look_alikes import OtherSet, SeenElsewhere, look_alikes_elsewhere, look_alikes_within
from synfundus.stages.prepare.plan import InputPlan, samples_per_shard
from synfundus.storage.manifest import SPLITS
from synfundus.telemetry.console import Console


@dataclass(frozen=True)
class Decision:
    """What becomes of every input.

    Attributes:
        kept: Photographs of the set, in the order of the table.
        kept_rows: Their rows among the small copies.
        shards: Who goes where.
        splits: Split of each kept photograph by its key.
        unusable: Photographs that could not be prepared.
        duplicates: Photographs that are there already.
        same: Pairs within the set that look the same; rows of `kept`.
        elsewhere: Photographs that look like one of another set; rows of `kept`.
        labels: What is known about the set's labels.
        properties: What the manifest records, the inputs' properties included.
    """

    kept: tuple[LookedAt, ...]
    kept_rows: tuple[int, ...]
    shards: tuple[PlannedShard, ...]
    splits: dict[str, str]
    unusable: tuple[Unusable, ...]
    duplicates: tuple[Reject, ...]
    same: tuple[NearDuplicate, ...]
    elsewhere: tuple[SeenElsewhere, ...]
    labels: LabelCounts
    properties: dict[str, Any]


def decide(
    section: PrepareConfig, plan: InputPlan, results: ChunkResults, others: Sequence[OtherSet], console: Console
) -> Decision:
    """Decide on every photograph.

    Args:
        section: Options of `prepare`.
        plan: The inputs.
        results: What the first stage found.
        others: Sets to compare with.
        console: Where progress is shown.
    """
    contents = {one.sample.key: (one.file_sha256, one.image_sha256) for one in results.looked_at}
    samples, duplicates, copies = drop_duplicates([one.sample for one in results.looked_at], contents)
    keys = {sample.key for sample in samples}
    rows = tuple(row for row, one in enumerate(results.looked_at) if one.sample.key in keys)
    kept = tuple(results.looked_at[row] for row in rows)
    same, elsewhere = _compare(section, kept, rows, results, others, console)
    groups: Groups[str] = Groups()
    for pair_of_patients in plan.same_person:
        groups.join(pair_of_patients)
    for first, second in copies:
        groups.join((first.patient_group, second.patient_group))
    for pair in same if section.near_duplicates else ():
        groups.join(kept[row].sample.patient_group for row in (pair.first, pair.second))
    group_of = {sample.key: groups.find(sample.patient_group) for sample in samples}
    given = _splits_elsewhere(section, kept, elsewhere, groups)
    split_of_group = split_patients(group_of.values(), section.splits, plan.properties["split_seed"], given=given)
    splits = {key: split_of_group[group] for key, group in group_of.items()}
    labels = count_labels((sample.labels for sample in samples), plan.schema)
    properties = {
        **plan.properties,
        "num_patients": _num_patients(samples, splits),
        "flags": dict(sorted(Counter(flag for one in kept for flag in one.flags).items())),
        "look_alikes": _look_alike_counts(kept, same, elsewhere, splits),
        "label_counts": labels.to_document(),
    }
    shards = tuple(plan_shards(samples, splits, max_samples=samples_per_shard(section)))
    return Decision(
        kept=kept,
        kept_rows=rows,
        shards=shards,
        splits=splits,
        unusable=tuple(results.unusable),
        duplicates=tuple(duplicates),
        same=same,
        elsewhere=elsewhere,
        labels=labels,
        properties=properties,
    )


def _compare(
    section: PrepareConfig,
    kept: Sequence[LookedAt],
    rows: Sequence[int],
    results: ChunkResults,
    others: Sequence[OtherSet],
    console: Console,
) -> tuple[tuple[NearDuplicate, ...], tuple[SeenElsewhere, ...]]:
    """Look for photographs that look the same, in the set and in others."""
    searches = section.near_duplicates + len(others)
    if not searches or not kept:
        return (), ()
    looks = [one.look for one in kept]
    thumbnails = results.thumbnails
    if len(rows) != len(results.looked_at):
        thumbnails = thumbnails[np.asarray(rows)]
    with console.progress("looking for near-duplicates", total=searches * SEARCH_STEPS, unit="steps") as progress:
        same = look_alikes_within(looks, thumbnails, progress.advance) if section.near_duplicates else []
        elsewhere = look_alikes_elsewhere(looks, thumbnails, others, progress.advance)
    return tuple(same), tuple(elsewhere)


def _splits_elsewhere(
    section: PrepareConfig, kept: Sequence[LookedAt], elsewhere: Sequence[SeenElsewhere], groups: Groups[str]
) -> dict[str, str]:
    """Return the split of groups with photographs of another set: the one most of these have there, if it is wanted.

    What is trained on in one set must not be held out in the other: both may be trained on together.
    """
    wanted = {split for split, fraction in zip(SPLITS, section.splits, strict=True) if fraction > 0}
    found: dict[str, Counter[str]] = {}
    for one in elsewhere:
        if one.other_split in wanted:
            group = groups.find(kept[one.row].sample.patient_group)
            found.setdefault(group, Counter())[one.other_split] += 1
    return {
        group: max(counts, key=lambda split: (counts[split], SPLITS.index(split))) for group, counts in found.items()
    }


def _num_patients(samples: Sequence[PlannedSample], splits: dict[str, str]) -> dict[str, int]:
    patients: dict[str, set[str]] = {split: set() for split in SPLITS}
    for sample in samples:
        patients[splits[sample.key]].add(sample.patient_group)
    return {split: len(found) for split, found in patients.items()}


def _look_alike_counts(
    kept: Sequence[LookedAt], same: Sequence[NearDuplicate], elsewhere: Sequence[SeenElsewhere], splits: dict[str, str]
) -> dict[str, Any]:
    groups = groups_of(same)
    across = [group for group in groups if len({kept[row].sample.patient_group for row in group}) > 1]
    return {
        "threshold": MIN_SIMILARITY,
        "groups": len(groups),
        "photographs": sum(map(len, groups)),
        "groups_across_patients": len(across),
        "in_other_sets": len({one.row for one in elsewhere}),
        "in_another_split_there": len(
            {one.row for one in elsewhere if one.other_split != splits[kept[one.row].sample.key]}
        ),
    }
