"""`synfundus judge` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import DATA_HELP, DEVICE, PROCS, Option, Verb

if TYPE_CHECKING:
    from synfundus.config.generation import JudgeConfig


def _problems(section: JudgeConfig, look: bool) -> list[str]:
    del look
    if (section.model is None) == (section.samples is None):
        return ["give either --model, a run or model to generate from, or --samples, a folder written by `sample`"]
    return []


VERB = Verb(
    name="judge",
    help="Check whether generated images show the labels they were asked for.",
    order=415,
    example="synfundus judge --model runs/model --data images --out judged",
    options=(
        Option("--model", "judge.model", "Run of `train`, or model folder, to generate images from.", role="input"),
        Option("--samples", "judge.samples", "Images to judge instead: a folder written by `sample`.", role="input"),
        Option("--data", "judge.data", DATA_HELP, required=True, role="input"),
        Option("--out", "judge.out", "Folder for judge.json, and the images of --model.", required=True, role="output"),
        Option("--num-images", "judge.num_images", "Number of images to generate from --model."),
        PROCS,
        DEVICE,
    ),
    sections=("seed", "judge", "sample", "launch", "telemetry"),
    distributed=True,
    problems=_problems,
)
