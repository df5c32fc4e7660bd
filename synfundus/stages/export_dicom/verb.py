"""`synfundus export-dicom` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import Option, Verb

if TYPE_CHECKING:
    from synfundus.config.sample_sets import ExportDicomConfig


def _dry_run(section: ExportDicomConfig, seed: int) -> str:
    from synfundus.stages.export_dicom.job import rehearse

    del seed
    return rehearse(section)


def _compare(section: ExportDicomConfig, seed: int) -> None:
    from synfundus.stages.export_dicom.job import compare_claim

    del seed
    compare_claim(section)


VERB = Verb(
    name="export-dicom",
    help="Write generated images as DICOM files, said to be synthetic.",
    order=440,
    example="synfundus export-dicom --samples samples --out dicom",
    options=(
        Option("--samples", "export_dicom.samples", "Set of generated images.", required=True, role="input"),
        Option("--out", "export_dicom.out", "Folder to write.", required=True, role="output", proof=("request.json",)),
        Option("--workers", "export_dicom.workers", "Worker processes that encode; 0: the main process."),
    ),
    sections=("export_dicom", "storage"),
    dry_run=_dry_run,
    compare=_compare,
    closing=(
        "every file says that it is synthetic; its labels were requested, nobody has looked",
        "next: synfundus prepare --source {out} --labels {out}/metadata.csv --out IMAGES --allow-synthetic",
    ),
)
