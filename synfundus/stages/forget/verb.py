"""`synfundus forget` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import Option, Verb

if TYPE_CHECKING:
    from synfundus.config.photographs import ForgetConfig


def _dry_run(section: ForgetConfig, seed: int) -> str:
    from synfundus.stages.forget.plan import describe_withdrawal

    del seed
    return describe_withdrawal(section)


VERB = Verb(
    name="forget",
    help="Write image and latent sets without the photographs of a patient who has withdrawn.",
    order=140,
    example="synfundus forget --crosswalk synfundus-crosswalks/data.images --patient P0042 --out data-2",
    options=(
        Option("--crosswalk", "forget.crosswalk", "Crosswalk of the image set.", required=True, role="input"),
        Option("--patient", "forget.patient", "The patient, as in the label table.", required=True),
        Option("--data", "forget.data", "Image set; default: the one the crosswalk belongs to.", role="input"),
        Option(
            "--latents",
            "forget.latents",
            "Latent set encoded from it (repeatable).",
            "many",
            role="input",
            metavar="PATH",
        ),
        Option(
            "--model",
            "forget.model",
            "Run or export that may have seen them (repeatable).",
            "many",
            role="input",
            metavar="PATH",
        ),
        Option(
            "--out",
            "forget.out",
            "Folder for the new sets: images, latents, ...",
            required=True,
            role="output",
            proof=("forget.json",),
        ),
    ),
    sections=("forget", "storage"),
    dry_run=_dry_run,
    closing=("next: synfundus inspect --data {out}/images --verify",),
)
