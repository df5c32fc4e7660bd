"""`synfundus progress` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import DEVICE, Option, Verb

if TYPE_CHECKING:
    from synfundus.config.applications import ProgressConfig


def _problems(section: ProgressConfig, look: bool) -> list[str]:
    del look
    moving = any(".." in str(value) for value in section.label.values())
    return [] if moving else ["--label NAME=FIRST..LAST is missing: which label changes?"]


def _dry_run(section: ProgressConfig, seed: int) -> str:
    from synfundus.stages.progress.job import rehearse

    del seed
    return rehearse(section)


def _compare(section: ProgressConfig, seed: int) -> None:
    from synfundus.stages.progress.job import compare_claim

    compare_claim(section, seed)


VERB = Verb(
    name="progress",
    help="Show one eye as a disease advances.",
    order=414,
    example="synfundus progress --model runs/model --out eye --label dr_grade=0..4 --label eye_side=left",
    options=(
        Option(
            "--model",
            "progress.model",
            "Run of `train`, or an exported pipeline.",
            required=True,
            role="input",
            holds="model",
        ),
        Option("--out", "progress.out", "Folder to write.", required=True, role="output", proof=("request.json",)),
        Option("--label", "progress.label", "NAME=FIRST..LAST changes, NAME=VALUE stays (repeatable).", "mapping"),
        Option("--frames", "progress.frames", "Pictures from the first values to the last."),
        Option("--index", "progress.index", "Number of the first eye: its noise is that of this image of `sample`."),
        Option("--num-eyes", "progress.num_eyes", "Eyes to show."),
        Option("--judge", "progress.judge", "Folder written by `judge`: what it reads in each frame.", role="input"),
        Option("--gif", "progress.gif", "Also an animated GIF.", "flag"),
        DEVICE,
    ),
    sections=("seed", "progress", "sample", "launch", "storage"),
    distributed=True,
    one_process=True,
    problems=_problems,
    dry_run=_dry_run,
    compare=_compare,
    closing=("synthetic, and no forecast for a patient; frames with their figures: {out}/frames.csv",),
)
