"""`synfundus verify` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import CACHE, DEVICE, Option, Verb

if TYPE_CHECKING:
    from synfundus.config.sample_sets import VerifyConfig


def _dry_run(section: VerifyConfig, seed: int) -> str:
    from synfundus.stages.verify.job import rehearse

    return rehearse(section, seed)


VERB = Verb(
    name="verify",
    help="Draw some images of a set again and compare pixels.",
    order=412,
    example="synfundus verify --samples samples --model runs/model",
    options=(
        Option("--samples", "verify.samples", "Set of generated images.", required=True, role="input"),
        Option(
            "--model",
            "verify.model",
            "The model that drew them: run of `train`, or an exported pipeline.",
            required=True,
            role="input",
            holds="model",
        ),
        Option(
            "--guide-model", "verify.guide_model", "The guiding model, if they were drawn with one: as of `sample`."
        ),
        Option("--num-images", "verify.num_images", "Images to draw again, a random choice by the seed."),
        CACHE,
        DEVICE,
    ),
    sections=("seed", "verify", "storage", "launch", "telemetry"),
    distributed=True,
    one_process=True,
    dry_run=_dry_run,
)
