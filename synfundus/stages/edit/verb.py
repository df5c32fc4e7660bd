"""`synfundus edit` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import DEVICE, Option, Verb

if TYPE_CHECKING:
    from synfundus.config.applications import EditConfig


def _problems(section: EditConfig, look: bool) -> list[str]:
    del look
    return [] if section.label else ["--label NAME=VALUE is missing: what shall it look like?"]


def _dry_run(section: EditConfig, seed: int) -> str:
    from synfundus.stages.edit.job import rehearse

    del seed
    return rehearse(section)


def _compare(section: EditConfig, seed: int) -> None:
    from synfundus.stages.edit.job import compare_claim

    compare_claim(section, seed)


VERB = Verb(
    name="edit",
    help="Show a photograph as another disease stage would look.",
    order=417,
    example="synfundus edit --model runs/model --image photograph.png --label dr_grade=0..4 --out edited",
    options=(
        Option(
            "--model",
            "edit.model",
            "Run of `train`, or an exported pipeline.",
            required=True,
            role="input",
            holds="model",
        ),
        Option("--image", "edit.image", "Photograph, or generated image.", required=True, role="input"),
        Option("--out", "edit.out", "Folder to write.", required=True, role="output", proof=("request.json",)),
        Option("--label", "edit.label", "NAME=VALUE to give it, or FIRST..LAST for frames (repeatable).", "mapping"),
        Option("--known", "edit.known", "NAME=VALUE that it has, and keeps (repeatable).", "mapping"),
        Option("--method", "edit.method", "Seek the noise it would come from, or add noise and take it away."),
        Option("--strength", "edit.strength", "How far towards noise: more changes more and keeps less."),
        Option("--num-steps", "edit.num_steps", "Solver steps, each way."),
        Option("--frames", "edit.frames", "Pictures from the first values to the last."),
        Option("--judge", "edit.judge", "Folder written by `judge`: what it reads in each picture.", role="input"),
        Option("--gif", "edit.gif", "Also an animated GIF.", "flag"),
        DEVICE,
    ),
    sections=("seed", "edit", "sample", "launch", "storage"),
    distributed=True,
    one_process=True,
    problems=_problems,
    dry_run=_dry_run,
    compare=_compare,
    closing=("drawn by a model, and not anonymous: read {out}/README.md; figures: {out}/frames.csv",),
)
