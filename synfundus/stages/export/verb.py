"""`synfundus export` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import Option, Verb

if TYPE_CHECKING:
    from synfundus.config.generation import ExportConfig


def _dry_run(section: ExportConfig, seed: int) -> str:
    from synfundus.stages.export.job import rehearse

    del seed
    return rehearse(section)


VERB = Verb(
    name="export",
    help="Write the model of a run, or of one of its checkpoints, as a diffusers folder.",
    order=430,
    example="synfundus export --run-dir runs/model --out model",
    options=(
        Option("--run-dir", "export.run_dir", "Run of `train`.", required=True, role="input"),
        Option("--out", "export.out", "Folder to write.", required=True, role="output"),
        Option(
            "--checkpoint",
            "export.checkpoint",
            "Its name, images-NNNNNNNNNNNN; default: the finished model, or the newest.",
        ),
        Option("--weights", "export.weights", "Weights of a checkpoint to take."),
    ),
    sections=("export",),
    dry_run=_dry_run,
    closing=("next: synfundus sample --model {out} --out SAMPLES --num-images 16",),
)
