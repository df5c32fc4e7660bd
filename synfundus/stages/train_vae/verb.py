"""`synfundus train-vae` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import CACHE, DATA_HELP, DISTRIBUTED, MICRO_BATCH_HELP, Option, Verb

if TYPE_CHECKING:
    from synfundus.config.training import TrainVaeConfig


def _dry_run(section: TrainVaeConfig, seed: int) -> str:
    del seed
    if section.init_from:
        from synfundus.stages.train_vae.start import check_start

        check_start(section, str(section.run_dir))
    return ""


def _compare(section: TrainVaeConfig, seed: int) -> None:
    from synfundus.stages.train_vae.start import compare_claim

    compare_claim(section, seed)


VERB = Verb(
    name="train-vae",
    help="Train the autoencoder.",
    order=210,
    example="synfundus train-vae --preset demo-cpu --data images --run-dir runs/vae",
    options=(
        Option("--data", "train_vae.data", DATA_HELP, required=True, role="input", holds="images"),
        Option("--run-dir", "train_vae.run_dir", "Folder of the run.", required=True, role="run", proof=("run.json",)),
        Option(
            "--init-from",
            "train_vae.init_from",
            "Start from a diffusers AutoencoderKL or AutoencoderDC, or `drawn`: shipped weights, of drawn eyes.",
            role="input",
            holds="autoencoder",
            names=("drawn",),
        ),
        Option("--budget-images", "train_vae.loop.budget_images", "Images to train on, epochs included."),
        Option("--micro-batch", "train_vae.loop.micro_batch_size", MICRO_BATCH_HELP),
        CACHE,
        *DISTRIBUTED,
    ),
    sections=("seed", "train_vae", "storage", "launch", "telemetry"),
    distributed=True,
    script="vae.sh",
    trains="train_vae",
    dry_run=_dry_run,
    compare=_compare,
    closing=("next: synfundus encode-latents{recipe} --data {data} --vae {run_dir} --out LATENTS",),
)
