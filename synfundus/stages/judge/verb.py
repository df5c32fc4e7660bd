"""`synfundus judge` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import DATA_HELP, DEVICE, PROCS, SUBMIT, Option, Verb

if TYPE_CHECKING:
    from synfundus.config.generation import JudgeConfig
    from synfundus.config.schema import RunConfig


def _problems(section: JudgeConfig, look: bool) -> list[str]:
    del look
    if (section.model is None) == (section.samples is None):
        return ["give either --model, a run or model to generate from, or --samples, a folder written by `sample`"]
    return []


def _rehearse(config: RunConfig) -> str:
    from synfundus.stages.judge.job import rehearse

    return rehearse(config.judge, config.sample, seed=config.seed)


VERB = Verb(
    name="judge",
    help="Check whether generated images show the labels they were asked for.",
    order=415,
    example="synfundus judge --model runs/model --data images --out judged",
    options=(
        Option(
            "--model",
            "judge.model",
            "Run of `train`, or model folder, to generate images from.",
            role="input",
            holds="model",
        ),
        Option("--samples", "judge.samples", "Images to judge instead: a folder written by `sample`.", role="input"),
        Option("--data", "judge.data", DATA_HELP, required=True, role="input", holds="images"),
        Option(
            "--out",
            "judge.out",
            "Folder for judge.json, and the images of --model.",
            required=True,
            role="output",
            proof=("request.json",),
        ),
        Option("--num-images", "judge.num_images", "Number of images to generate from --model."),
        PROCS,
        SUBMIT,
        DEVICE,
    ),
    sections=("seed", "judge", "sample", "launch", "telemetry"),
    distributed=True,
    script="judge.sh",
    problems=_problems,
    rehearse=_rehearse,
    closing=("figures and intervals: {out}/judge.json",),
)
