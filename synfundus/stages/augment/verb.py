"""`synfundus augment` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import DISTRIBUTED, Option, Verb

if TYPE_CHECKING:
    from synfundus.config.applications import AugmentConfig


def _problems(section: AugmentConfig, look: bool) -> list[str]:
    del look
    problems = []
    if not section.fill and not section.balance:
        problems.append("--fill NAME=NUMBER or --balance NAMES is missing: which classes are too small?")
    if section.unchecked and section.judge is not None:
        problems.append("--judge looks at images, --unchecked does not: leave one out")
    return problems


def _dry_run(section: AugmentConfig, seed: int) -> str:
    from synfundus.stages.augment.job import rehearse

    return rehearse(section, seed)


def _compare(section: AugmentConfig, seed: int) -> None:
    from synfundus.stages.augment.job import compare_claim

    compare_claim(section, seed)


VERB = Verb(
    name="augment",
    help="Fill rare classes with generated images: one training set with the photographs.",
    order=413,
    example="synfundus augment --real data/images --model runs/model --fill dr_grade=500 --out augmented",
    options=(
        Option(
            "--real",
            "augment.real",
            "Image set (written by `prepare`).",
            required=True,
            role="input",
            holds="images",
        ),
        Option(
            "--model",
            "augment.model",
            "Run of `train`, or an exported pipeline.",
            required=True,
            role="input",
            holds="model",
        ),
        Option("--out", "augment.out", "Folder to write.", required=True, role="output", proof=("request.json",)),
        Option(
            "--fill", "augment.fill", "NAME=NUMBER: images every value of a label shall have (repeatable).", "mapping"
        ),
        Option(
            "--balance",
            "augment.balance",
            "Labels whose every value shall have as many as the most frequent one: dr_grade,is_gc.",
        ),
        Option("--matched", "augment.matched", "Draw as many images of every value of these labels.", "flag"),
        Option(
            "--all-labels",
            "augment.all_labels",
            "Give generated images all labels they were asked for, not only those of --fill and --balance.",
            "flag",
        ),
        Option("--format", "augment.format", "Single files for imagefolder, or a set of shards."),
        Option("--unchecked", "augment.unchecked", "Take generated images that nobody has looked at.", "flag"),
        Option(
            "--judge",
            "augment.judge",
            "Folder written by `judge`: leave out images whose labels it contradicts, too.",
            role="input",
        ),
        *DISTRIBUTED,
    ),
    sections=("seed", "augment", "sample", "storage", "launch", "telemetry"),
    distributed=True,
    script="augment.sh",
    problems=_problems,
    dry_run=_dry_run,
    compare=_compare,
    closing=(
        "read {out}/README.md: the photographs in it are health data; how a classifier opens it is there",
        "val and test are photographs alone: compare with a classifier of the photographs before you use it",
    ),
)
