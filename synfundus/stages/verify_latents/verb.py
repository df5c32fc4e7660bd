"""`synfundus verify-latents` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import CACHE, DEVICE, VAE_HELP, Option, Verb

if TYPE_CHECKING:
    from synfundus.config.generation import VerifyLatentsConfig


def _dry_run(section: VerifyLatentsConfig, seed: int) -> str:
    import torch

    from synfundus.stages.verify_latents.job import open_inputs

    del seed
    open_inputs(section, torch.device("cpu"))
    return ""


VERB = Verb(
    name="verify-latents",
    help="Decode some latents of a set and report their PSNR.",
    order=230,
    example="synfundus verify-latents --latents latents --vae runs/vae",
    options=(
        Option(
            "--latents",
            "verify_latents.latents",
            "Latent set (`encode-latents`).",
            required=True,
            role="input",
            holds="latents",
        ),
        Option("--vae", "verify_latents.vae", VAE_HELP, required=True, role="input", holds="autoencoder"),
        Option(
            "--data", "verify_latents.data", "Image set the latents were encoded from.", role="input", holds="images"
        ),
        CACHE,
        DEVICE,
    ),
    sections=("seed", "verify_latents", "storage", "launch", "telemetry"),
    distributed=True,
    one_process=True,
    dry_run=_dry_run,
)
