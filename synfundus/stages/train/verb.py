"""`synfundus train` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import CACHE, DISTRIBUTED, MICRO_BATCH_HELP, Option, Verb

if TYPE_CHECKING:
    from synfundus.config.diffusion import TrainConfig
    from synfundus.config.schema import RunConfig


def _rehearse(config: RunConfig) -> str:
    from synfundus.stages.train.rehearsal import rehearse

    return rehearse(config.train, config.sample)


def _compare(section: TrainConfig, seed: int) -> None:
    from synfundus.stages.train.rehearsal import compare_claim

    compare_claim(section, seed)


VERB = Verb(
    name="train",
    help="Train the conditional diffusion model on latents.",
    order=310,
    example="synfundus train --preset demo-cpu --latents latents --run-dir runs/model",
    options=(
        Option(
            "--latents",
            "train.latents",
            "Latent set; several by weight: A:0.7, then B:0.3; default 1 each (repeatable).",
            kind="many",
            required=True,
            role="input",
            holds="latents",
        ),
        Option("--run-dir", "train.run_dir", "Folder of the run.", required=True, role="run", proof=("run.json",)),
        Option(
            "--vae",
            "train.vae",
            "Autoencoder for previews; default: the one of the latent set.",
            role="input",
            holds="autoencoder",
        ),
        Option(
            "--init-from",
            "train.init_from",
            "Start from an exported model, a diffusers U-Net, or `drawn` (make starting-weights DENOISER=1).",
            role="input",
            names=("drawn",),
        ),
        Option("--budget-images", "train.loop.budget_images", "Images to train on, epochs included."),
        Option("--micro-batch", "train.loop.micro_batch_size", MICRO_BATCH_HELP),
        CACHE,
        *DISTRIBUTED,
    ),
    sections=("seed", "train", "storage", "launch", "telemetry"),
    distributed=True,
    script="ldm.sh",
    trains="train",
    rehearse=_rehearse,
    compare=_compare,
    closing=("next: synfundus sample --model {run_dir} --out SAMPLES --num-images 16",),
)
