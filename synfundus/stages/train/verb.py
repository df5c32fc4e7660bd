"""`synfundus train` on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from synfundus.stages.verb import CACHE, DISTRIBUTED, MICRO_BATCH_HELP, Option, Verb, next_command

if TYPE_CHECKING:
    from synfundus.config.diffusion import TrainConfig


def _dry_run(section: TrainConfig, seed: int) -> str:
    from synfundus.stages.rehearsal import rehearse_train

    del seed
    return rehearse_train(section.latents, vae=section.vae, flip=section.diffusion.flip, run_dir=section.run_dir)


def _closing(section: TrainConfig, summary: Mapping[str, Any]) -> list[str]:
    del summary
    return [next_command("sample", "--model", section.run_dir, "--out", "SAMPLES", "--num-images", 16)]


VERB = Verb(
    name="train",
    help="Train the conditional diffusion model on latents.",
    order=310,
    example="synfundus train --preset demo-cpu --latents latents --run-dir runs/model",
    options=(
        Option(
            "--latents",
            "train.latents",
            "Latent set; several with shares: A:0.7, then B:0.3 (repeatable).",
            kind="many",
            required=True,
            role="input",
        ),
        Option("--run-dir", "train.run_dir", "Folder of the run.", required=True, role="run"),
        Option("--vae", "train.vae", "Autoencoder for previews; default: the one of the latent set.", role="input"),
        Option("--init-from", "train.init_from", "Start from an exported model or a diffusers U-Net.", role="input"),
        Option("--budget-images", "train.loop.budget_images", "Images to train on, epochs included."),
        Option("--micro-batch", "train.loop.micro_batch_size", MICRO_BATCH_HELP),
        CACHE,
        *DISTRIBUTED,
    ),
    sections=("seed", "train", "storage", "launch", "telemetry"),
    distributed=True,
    script="ldm.sh",
    trains="train",
    dry_run=_dry_run,
    closing=_closing,
)
