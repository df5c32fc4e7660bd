"""`synfundus phantoms` on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from synfundus.stages.verb import Option, Verb, next_command

if TYPE_CHECKING:
    from synfundus.config.photographs import PhantomsConfig


def _dry_run(section: PhantomsConfig, seed: int) -> str:
    from synfundus.stages.rehearsal import require_free

    del seed
    require_free(section.out, "phantoms.json")
    return ""


def _closing(section: PhantomsConfig, summary: Mapping[str, Any]) -> list[str]:
    del summary
    table = f"{section.out}/labels.csv"
    return [next_command("prepare", "--source", section.out, "--labels", table, "--out", "SET")]


VERB = Verb(
    name="phantoms",
    help="Draw procedural fundus photographs with ground truth.",
    order=110,
    example="synfundus phantoms --out photographs --num-images 500 --image-size 256",
    options=(
        Option("--out", "phantoms.out", "Folder for the photographs and labels.csv.", required=True, role="output"),
        Option("--num-images", "phantoms.num_images", "Number of photographs."),
        Option("--image-size", "phantoms.image_size_px", "Width and height of the photographs, in pixels."),
        Option("--workers", "phantoms.workers", "Worker processes that draw; 0: the main process."),
    ),
    sections=("seed", "phantoms"),
    dry_run=_dry_run,
    closing=_closing,
)
