"""Second stage of `synfundus prepare`, on rank 0: decide which images are in the set, in which split and shard.

Duplicates are rejected; patients who share a photograph or have near-duplicate photographs count as one; then the
patients are assigned to splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from synfundus.config.photographs import PrepareConfig
from synfundus.labels.counts import LabelCounts, count_labels
from synfundus.labels.schema import LabelSchema
from synfundus.labels.seen import LABEL_ROWS, SeenRows
from synfundus.photographs.ingest import (
    PlannedSample,
    PlannedShard,
    Reject,
    drop_duplicates,
    plan_shards,
    split_patients,
)
from synfundus.photographs.near_duplicates import MIN_SIMILARITY, SEARCH_STEPS, Groups, NearDuplicate, groups_of
from synfundus.photographs.preparation import SYNTHETIC, Unusable
from synfundus.stages.prepare.chunks import ChunkResults, StoredImage
from synfundus.stages.prepare.look_alikes import OtherSet, OtherSetMatch, matches_in_other_sets, near_duplicates_within
from synfundus.stages.prepare.plan import InputPlan, samples_per_shard
from synfundus.storage.manifest import SPLITS
from synfundus.telemetry.console import Console


@dataclass(frozen=True)
class Decision:
    """The decision about every input.

    Attributes:
        kept: Images of the set, in table order.
        kept_rows: Their rows in the thumbnails.
        shards: The shards and their samples.
        splits: Split of each kept image by key.
        unusable: Photographs that could not be prepared.
        duplicates: Rejects of duplicate photographs.
        near_duplicates: Pairs within the set; rows of `kept`.
        other_set_matches: Near-duplicates of images in other sets; rows of `kept`.
        labels: Label counts of the set.
        properties: Properties for the manifest, including those of the inputs.
    """

    kept: tuple[StoredImage, ...]
    kept_rows: tuple[int, ...]
    shards: tuple[PlannedShard, ...]
    splits: dict[str, str]
    unusable: tuple[Unusable, ...]
    duplicates: tuple[Reject, ...]
    near_duplicates: tuple[NearDuplicate, ...]
    other_set_matches: tuple[OtherSetMatch, ...]
    labels: LabelCounts
    properties: dict[str, Any]


def decide(
    section: PrepareConfig, plan: InputPlan, results: ChunkResults, others: Sequence[OtherSet], console: Console
) -> Decision:
    """Decide about every photograph.

    Args:
        section: Options of `prepare`.
        plan: The inputs.
        results: Results of the first stage.
        others: Sets to compare with.
        console: Shows progress.
    """
    contents = {one.sample.key: (one.file_sha256, one.image_sha256) for one in results.images}
    samples, duplicates, copies = drop_duplicates([one.sample for one in results.images], contents)
    keys = {sample.key for sample in samples}
    rows = tuple(row for row, one in enumerate(results.images) if one.sample.key in keys)
    kept = tuple(results.images[row] for row in rows)
    pairs, matches = _compare(section, kept, rows, results, others, console)
    groups: Groups[str] = Groups()
    for pair_of_patients in plan.same_person:
        groups.join(pair_of_patients)
    for first, second in copies:
        groups.join((first.patient_group, second.patient_group))
    for pair in pairs if section.near_duplicates else ():
        groups.join(kept[row].sample.patient_group for row in (pair.first, pair.second))
    group_of = {sample.key: groups.find(sample.patient_group) for sample in samples}
    given = _splits_in_other_sets(section, kept, matches, groups)
    split_of_group = split_patients(group_of.values(), section.splits, plan.properties["split_seed"], given=given)
    splits = {key: split_of_group[group] for key, group in group_of.items()}
    labels = count_labels((sample.labels for sample in samples), plan.schema)
    properties = {
        **plan.properties,
        "num_patients": _num_patients(samples, splits),
        "flags": dict(sorted(Counter(flag for one in kept for flag in one.flags).items())),
        "field_of_view_px": _diameters(kept),
        "look_alikes": _near_duplicate_counts(kept, pairs, matches, splits),
        "label_counts": labels.to_document(),
        LABEL_ROWS: _label_rows(samples, splits, plan.schema),
    }
    if number := properties["flags"].get(SYNTHETIC):
        properties["synthetic"] = number
    shards = tuple(plan_shards(samples, splits, max_samples=samples_per_shard(section)))
    return Decision(
        kept=kept,
        kept_rows=rows,
        shards=shards,
        splits=splits,
        unusable=tuple(results.unusable),
        duplicates=tuple(duplicates),
        near_duplicates=pairs,
        other_set_matches=matches,
        labels=labels,
        properties=properties,
    )


def _diameters(kept: Sequence[StoredImage]) -> dict[str, int]:
    """Return smallest, median and largest diameter of the fields of view in the photographs."""
    diameters = sorted(one.diameter_px for one in kept)
    at = {"smallest": 0, "median": len(diameters) // 2, "largest": -1}
    return {name: diameters[index] for name, index in at.items()} if diameters else {}


def _compare(
    section: PrepareConfig,
    kept: Sequence[StoredImage],
    rows: Sequence[int],
    results: ChunkResults,
    others: Sequence[OtherSet],
    console: Console,
) -> tuple[tuple[NearDuplicate, ...], tuple[OtherSetMatch, ...]]:
    """Search near-duplicates in the set and in other sets."""
    searches = section.near_duplicates + len(others)
    if not searches or not kept:
        return (), ()
    hashes = [one.perceptual_hash for one in kept]
    thumbnails = results.thumbnails
    if len(rows) != len(results.images):
        thumbnails = thumbnails[np.asarray(rows)]
    with console.progress("searching near-duplicates", total=searches * SEARCH_STEPS, unit="steps") as progress:
        pairs = near_duplicates_within(hashes, thumbnails, progress.advance) if section.near_duplicates else []
        matches = matches_in_other_sets(hashes, thumbnails, others, progress.advance)
    return tuple(pairs), tuple(matches)


def _splits_in_other_sets(
    section: PrepareConfig, kept: Sequence[StoredImage], matches: Sequence[OtherSetMatch], groups: Groups[str]
) -> dict[str, str]:
    """Return the split of groups with matches in other sets: the most frequent split there, if it has a fraction here.

    A photograph in the train split of one set must not be held out in another, in case both are trained on together.
    """
    wanted = {split for split, fraction in zip(SPLITS, section.splits, strict=True) if fraction > 0}
    found: dict[str, Counter[str]] = {}
    for one in matches:
        if one.other_split in wanted:
            group = groups.find(kept[one.row].sample.patient_group)
            found.setdefault(group, Counter())[one.other_split] += 1
    return {
        group: max(counts, key=lambda split: (counts[split], SPLITS.index(split))) for group, counts in found.items()
    }


def _num_patients(samples: Sequence[PlannedSample], splits: dict[str, str]) -> dict[str, int]:
    patients = {(sample.patient_group, splits[sample.key]) for sample in samples}
    return {split: sum(theirs == split for _, theirs in patients) for split in SPLITS}


def _label_rows(samples: Sequence[PlannedSample], splits: dict[str, str], schema: LabelSchema) -> dict[str, Any]:
    """Return the patients of the train split by row of label states."""
    train = [sample for sample in samples if splits[sample.key] == "train"]
    states = np.array([schema.encode(sample.labels) for sample in train], dtype=np.int16)
    rows = states.reshape(len(train), len(schema.labels))
    return SeenRows.of(rows, [sample.patient_group for sample in train]).to_document()


def _near_duplicate_counts(
    kept: Sequence[StoredImage],
    pairs: Sequence[NearDuplicate],
    matches: Sequence[OtherSetMatch],
    splits: dict[str, str],
) -> dict[str, Any]:
    groups = groups_of(pairs)
    across = [group for group in groups if len({kept[row].sample.patient_group for row in group}) > 1]
    return {
        "threshold": MIN_SIMILARITY,
        "groups": len(groups),
        "photographs": sum(map(len, groups)),
        "groups_across_patients": len(across),
        "in_other_sets": len({one.row for one in matches}),
        "in_another_split_there": len(
            {one.row for one in matches if one.other_split != splits[kept[one.row].sample.key]}
        ),
    }
