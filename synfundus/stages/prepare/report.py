"""The reports of `synfundus prepare`: crosswalk, and rejects, flags and near-duplicates by file name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from synfundus.photographs.crosswalk import (
    CROSSWALK_NAME,
    FLAGS_NAME,
    HASHES_NAME,
    NEAR_DUPLICATES_NAME,
    crosswalk_table,
    open_crosswalk,
    write_private,
    write_private_lines,
)
from synfundus.photographs.crosswalk import REJECTS_NAME as NAMED_REJECTS
from synfundus.photographs.ingest import Reject, sample_key
from synfundus.photographs.near_duplicates import NearDuplicate
from synfundus.photographs.preparation import SYNTHETIC, TEXT_FLAG
from synfundus.stages.prepare.chunks import ChunkResults
from synfundus.stages.prepare.decision import Decision
from synfundus.stages.prepare.look_alikes import OtherSet, OtherSetMatch, save_hashes
from synfundus.stages.prepare.places import PreparePaths
from synfundus.stages.prepare.plan import InputPlan
from synfundus.stages.prepare.table_notes import reject_warning
from synfundus.storage import filesystem
from synfundus.storage.locations import resolved
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import Console

Line = dict[str, Any]


def write_crosswalk(paths: PreparePaths, plan: InputPlan, decision: Decision) -> list[dict[str, str]]:
    """Write the crosswalk, outside the set; return the rejects for the set, with keys only."""
    secret = open_crosswalk(paths.crosswalk, out=resolved(paths.out))
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
    write_private(filesystem.join(paths.crosswalk, CROSSWALK_NAME), crosswalk_table(rows))
    named: list[Line] = [{"key": key, **asdict(reject)} for key, reject in rejects]
    write_private_lines(filesystem.join(paths.crosswalk, NAMED_REJECTS), named)
    bare = [{"key": key, "stage": reject.stage, "reason": reject.reason} for key, reject in rejects]
    return sorted(bare, key=lambda row: (row["key"], row["reason"]))


def write_findings(paths: PreparePaths, results: ChunkResults, decision: Decision, others: Sequence[OtherSet]) -> None:
    """Write flags and near-duplicates by file name, and the perceptual hashes."""
    flags = [
        {**_who(decision, row), "flags": list(one.flags), "diameter_px": one.diameter_px}
        for row, one in enumerate(decision.kept)
        if one.flags
    ]
    write_private_lines(filesystem.join(paths.crosswalk, FLAGS_NAME), flags)
    lines = []
    for pair in decision.near_duplicates:
        other = {f"other_{name}": value for name, value in _who(decision, pair.second).items()}
        lines.append({"kind": "within", **_who(decision, pair.first), **other, **_measure(pair)})
    for one in decision.other_set_matches:
        other = {"other_set": others[one.other_set].url, "other_key": one.other_key, "other_split": one.other_split}
        lines.append({"kind": "elsewhere", **_who(decision, one.row), **other, **_measure(one)})
    write_private_lines(filesystem.join(paths.crosswalk, NEAR_DUPLICATES_NAME), lines)
    save_hashes(
        filesystem.join(paths.crosswalk, HASHES_NAME),
        [one.sample.key for one in decision.kept],
        [one.perceptual_hash for one in decision.kept],
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


def _measure(one: NearDuplicate | OtherSetMatch) -> Line:
    return {"similarity": round(one.similarity, 4), "mirrored": one.mirrored}


def counted(number: int, what: str) -> str:
    """Return a number of things: ``1 sample``, ``2 samples``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


_MORE = {
    TEXT_FLAG: "names or dates may be readable in them, nothing was removed "
    "(--burned-text quarantine leaves them out); ",
    SYNTHETIC: "a model generated them, and their labels are what it was asked for; ",
}


def report(console: Console, shard_set: ShardSet, decision: Decision, paths: PreparePaths, plan: InputPlan) -> None:
    """Print the numbers of inputs, samples and rejects, and the label counts."""
    properties = shard_set.properties
    num_rejects = sum(shard_set.rejects.values())
    inputs, samples = counted(properties["num_inputs"], "input"), counted(shard_set.num_samples(), "sample")
    console.message(f"{inputs} = {samples} + {counted(num_rejects, 'reject')}")
    if num_rejects:
        console.table("rejects", ["reason", "inputs"], [[name, str(n)] for name, n in shard_set.rejects.items()])
        _report_rejects(console, shard_set, (*plan.rejects, *decision.duplicates), paths)
    header, *rows = decision.labels.value_rows()
    console.table("labels", header, rows)
    for flag, number in properties["flags"].items():
        verb = "is" if number == 1 else "are"
        more = _MORE.get(flag, "")
        console.warning(
            f"{counted(number, 'sample')} {verb} flagged {flag}: {more}see {FLAGS_NAME} in the crosswalk folder"
        )
    found = properties["look_alikes"]
    if found["groups"]:
        console.message(
            f"{found['photographs']} photographs are near-duplicates, in {found['groups']} groups, "
            f"{found['groups_across_patients']} of them across patients: each group is in one split"
        )
    if found["in_other_sets"]:
        apart, verb = found["in_another_split_there"] or "none", "has" if found["in_other_sets"] == 1 else "have"
        console.warning(
            f"{counted(found['in_other_sets'], 'photograph')} {verb} near-duplicates in other sets, {apart} of them in "
            f"another split there: see {NEAR_DUPLICATES_NAME} in the crosswalk folder"
        )


def _report_rejects(console: Console, shard_set: ShardSet, rejects: Sequence[Reject], paths: PreparePaths) -> None:
    """Say which duplicates contradict each other, that there are many rejects, and where the details are."""
    where = filesystem.join(paths.crosswalk, NAMED_REJECTS)
    for reason in ("duplicate_of", "duplicate_row"):
        details = [reject.detail for reject in rejects if reject.reason == reason]
        contradicting = [
            f"{number} of them {said}"
            for found, said in (("; other labels", "with other labels"), ("; other patient", "of another patient"))
            if (number := sum(found in detail for detail in details))
        ]
        if contradicting:
            console.warning(f"{len(details)} {reason}, {', '.join(contradicting)}: the first one is kept")
    many = reject_warning(shard_set.rejects, shard_set.properties["num_inputs"])
    if many:
        console.warning(f"{many}: see {where}")
    else:
        console.message(f"rejects by file name: {where}")
