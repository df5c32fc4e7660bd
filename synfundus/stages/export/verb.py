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
    options=(
        Option("--run-dir", "export.run_dir", "Run of `train`.", required=True, role="input"),
        Option("--out", "export.out", "Folder to write.", required=True, role="output"),
        Option("--checkpoint", "export.checkpoint", "images-NNNNNNNNNNNN; default: the finished model, or the newest."),
        Option("--weights", "export.weights", "averaged or raw, of a checkpoint."),
    ),
    sections=("export",),
    dry_run=_dry_run,
)
