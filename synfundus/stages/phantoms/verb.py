"""`synfundus phantoms` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import Option, Verb

if TYPE_CHECKING:
    from synfundus.config.photographs import PhantomsConfig


def _compare(section: PhantomsConfig, seed: int) -> None:
    from synfundus.stages.phantoms.job import compare_claim

    compare_claim(section, seed)


VERB = Verb(
    name="phantoms",
    help="Draw procedural fundus photographs with ground truth.",
    order=110,
    example="synfundus phantoms --out photographs --num-images 500 --image-size 256",
    options=(
        Option(
            "--out",
            "phantoms.out",
            "Folder for the photographs and labels.csv.",
            required=True,
            role="output",
            proof=("phantoms.json",),
        ),
        Option("--num-images", "phantoms.num_images", "Number of photographs."),
        Option("--image-size", "phantoms.image_size_px", "Width and height of the photographs, in pixels."),
        Option(
            "--variety",
            "phantoms.variety",
            "Photographs clear and alike (demo), or as different as those of many clinics (wide).",
        ),
        Option("--workers", "phantoms.workers", "Worker processes that draw; 0: the main process."),
    ),
    sections=("seed", "phantoms"),
    compare=_compare,
    closing=("next: synfundus prepare{recipe} --source {out} --labels {out}/labels.csv --out SET",),
)
