"""`synfundus ema` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import Option, Verb

if TYPE_CHECKING:
    from synfundus.config.generation import PostHocEmaConfig


def _dry_run(section: PostHocEmaConfig, seed: int) -> str:
    from synfundus.stages.ema.job import rehearse

    del seed
    return rehearse(section)


VERB = Verb(
    name="ema",
    help="Build the model with a longer or shorter weight average, from the snapshots of a run.",
    order=420,
    example="synfundus ema --run-dir runs/model --sigma-rel 0.10 --out model-ema",
    options=(
        Option("--run-dir", "ema.run_dir", "Run of `train` with snapshots.", required=True, role="input"),
        Option("--sigma-rel", "ema.sigma_rel", "Width of the average, relative to the run, e.g. 0.10.", required=True),
        Option("--at-images", "ema.at_images", "End of the average, in images; default: the last snapshot."),
        Option("--out", "ema.out", "Folder to write; default: inside the run.", role="output"),
    ),
    sections=("ema",),
    dry_run=_dry_run,
    closing=("next: synfundus sample --model {out} --out SAMPLES --num-images 16",),
)
