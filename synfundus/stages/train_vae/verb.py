"""`synfundus train-vae` on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from synfundus.stages.verb import CACHE, DATA_HELP, DISTRIBUTED, MICRO_BATCH_HELP, Option, Verb, next_command

if TYPE_CHECKING:
    from synfundus.config.training import TrainVaeConfig


def _dry_run(section: TrainVaeConfig, seed: int) -> str:
    from synfundus.stages.rehearsal import RUN_BESIDE, open_set, require_autoencoder, require_free

    del seed
    text = open_set(str(section.data), "images")
    if section.init_from:
        require_autoencoder(section.init_from)
    require_free(section.run_dir, "run.json", beside=RUN_BESIDE, flag="--run-dir")
    return text


def _closing(section: TrainVaeConfig, summary: Mapping[str, Any]) -> list[str]:
    del summary
    return [next_command("encode-latents", "--data", section.data, "--vae", section.run_dir, "--out", "LATENTS")]


VERB = Verb(
    name="train-vae",
    help="Train the autoencoder.",
    order=210,
    example="synfundus train-vae --preset demo-cpu --data images --run-dir runs/vae",
    options=(
        Option("--data", "train_vae.data", DATA_HELP, required=True, role="input"),
        Option("--run-dir", "train_vae.run_dir", "Folder of the run.", required=True, role="run"),
        Option(
            "--init-from", "train_vae.init_from", "Start from a diffusers AutoencoderKL or AutoencoderDC.", role="input"
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
    closing=_closing,
)
