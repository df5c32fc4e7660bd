"""`synfundus verify-latents` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import CACHE, DEVICE, VAE_HELP, Option, Verb

if TYPE_CHECKING:
    from synfundus.config.generation import VerifyLatentsConfig


def _dry_run(section: VerifyLatentsConfig, seed: int) -> str:
    from synfundus.artifacts.latent_set import load_sources
    from synfundus.stages.rehearsal import open_set, require_autoencoder

    del seed
    latents = str(section.latents)
    text = open_set(latents, "latents")
    require_autoencoder(str(section.vae))
    return text + open_set(section.data or load_sources(latents).image_set_url, "images")


VERB = Verb(
    name="verify-latents",
    help="Decode some latents of a set and report their PSNR.",
    order=230,
    example="synfundus verify-latents --latents latents --vae runs/vae",
    options=(
        Option("--latents", "verify_latents.latents", "Latent set (`encode-latents`).", required=True, role="input"),
        Option("--vae", "verify_latents.vae", VAE_HELP, required=True, role="input"),
        Option("--data", "verify_latents.data", "Image set the latents were encoded from.", role="input"),
        CACHE,
        DEVICE,
    ),
    sections=("seed", "verify_latents", "storage", "launch", "telemetry"),
    distributed=True,
    one_process=True,
    dry_run=_dry_run,
)
