"""What `synfundus prepare` leaves behind for people: the crosswalk, the rejects, flags and look-alikes by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from synfundus.photographs.crosswalk import (
    CROSSWALK_NAME,
    FLAGS_NAME,
    LOOK_ALIKES_NAME,
    crosswalk_table,
    open_crosswalk,
    write_private,
    write_private_lines,
)
from synfundus.photographs.crosswalk import REJECTS_NAME as NAMED_REJECTS
from synfundus.photographs.ingest import Reject, sample_key
from synfundus.photographs.near_duplicates import NearDuplicate
from synfundus.stages.prepare.chunks import ChunkResults
from synfundus.stages.prepare.decision import Decision
from synfundus.stages.prepare.look_alikes import LOOKS_NAME, OtherSet, SeenElsewhere, save_looks
from synfundus.stages.prepare.places import Places
from synfundus.stages.prepare.plan import InputPlan
from synfundus.storage import filesystem
from synfundus.storage.locations import resolved
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import Console

Line = dict[str, Any]


def write_crosswalk(places: Places, plan: InputPlan, decision: Decision) -> list[dict[str, str]]:
    """Write who is who outside the set; returns the rejects as the set may show them: by key alone."""
    secret = open_crosswalk(places.crosswalk, out=resolved(places.out))
    rejects: list[tuple[str, Reject]] = [
        (sample_key(secret, reject.source), reject) for reject in (*plan.rejects, *decision.duplicates)
    ]
    for one in decision.unusable:
        reject = Reject(one.sample.source, one.sample.patient, one.stage, one.reason, one.detail)
        rejects.append((one.sample.key, reject))
    rows = [
        (sample.key, sample.source, sample.patient, shard.split, "")
        for shard in decision.shards
        for sample in shard.samples
    ]
    rows += [(key, reject.source, reject.patient, "", reject.reason) for key, reject in rejects]
    write_private(filesystem.join(places.crosswalk, CROSSWALK_NAME), crosswalk_table(rows))
    named: list[Line] = [{"key": key, **asdict(reject)} for key, reject in rejects]
    write_private_lines(filesystem.join(places.crosswalk, NAMED_REJECTS), named)
    bare = [{"key": key, "stage": reject.stage, "reason": reject.reason} for key, reject in rejects]
    return sorted(bare, key=lambda row: (row["key"], row["reason"]))


def write_findings(places: Places, results: ChunkResults, decision: Decision, others: Sequence[OtherSet]) -> None:
    """Write flags and look-alikes by name, and how the images of the set look."""
    flags = [{**_who(decision, row), "flags": list(one.flags)} for row, one in enumerate(decision.kept) if one.flags]
    write_private_lines(filesystem.join(places.crosswalk, FLAGS_NAME), flags)
    lines = [_within(decision, pair) for pair in decision.same]
    lines += [_elsewhere(decision, one, others) for one in decision.elsewhere]
    write_private_lines(filesystem.join(places.crosswalk, LOOK_ALIKES_NAME), lines)
    save_looks(
        filesystem.join(places.crosswalk, LOOKS_NAME),
        [one.sample.key for one in decision.kept],
        [one.look for one in decision.kept],
        results.thumbnails,
        decision.kept_rows,
    )


def _who(decision: Decision, row: int) -> Line:
    sample = decision.kept[row].sample
    return {
        "key": sample.key,
        "source": sample.source,
        "patient_id": sample.patient,
        "split": decision.splits[sample.key],
    }


def _within(decision: Decision, pair: NearDuplicate) -> Line:
    other = {f"other_{name}": value for name, value in _who(decision, pair.second).items()}
    measure = {"similarity": round(pair.similarity, 4), "mirrored": pair.mirrored}
    return {"kind": "within", **_who(decision, pair.first), **other, **measure}


def _elsewhere(decision: Decision, one: SeenElsewhere, others: Sequence[OtherSet]) -> Line:
    measure = {"similarity": round(one.similarity, 4), "mirrored": one.mirrored}
    other = {"other_set": others[one.other_set].url, "other_key": one.other_key, "other_split": one.other_split}
    return {"kind": "elsewhere", **_who(decision, one.row), **other, **measure}


def report(console: Console, shard_set: ShardSet, decision: Decision) -> None:
    """Show what became of the inputs, and what is known about the labels."""
    properties = shard_set.properties
    num_rejects = sum(shard_set.rejects.values())
    console.message(f"{properties['num_inputs']} inputs = {shard_set.num_samples()} samples + {num_rejects} rejects")
    if num_rejects:
        console.table("rejects", ["reason", "inputs"], [[name, str(n)] for name, n in shard_set.rejects.items()])
    header, *rows = decision.labels.value_rows()
    console.table("labels", header, rows)
    for flag, number in properties["flags"].items():
        console.warning(f"{number} samples are flagged {flag}: see {FLAGS_NAME} in the crosswalk folder")
    found = properties["look_alikes"]
    if found["groups"]:
        console.message(
            f"{found['photographs']} photographs look like another one, in {found['groups']} groups, "
            f"{found['groups_across_patients']} of them across patients: each group is in one split"
        )
    if found["in_other_sets"]:
        console.warning(
            f"{found['in_other_sets']} photographs look like one of another set; they are in its split, except for "
            f"{found['in_another_split_there']}: see {LOOK_ALIKES_NAME} in the crosswalk folder"
        )
