"""`synfundus encode-latents` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synfundus.stages.verb import CACHE, DATA_HELP, DISTRIBUTED, VAE_HELP, Option, Verb

if TYPE_CHECKING:
    from synfundus.config.generation import EncodeLatentsConfig


def _dry_run(section: EncodeLatentsConfig, seed: int) -> str:
    del seed
    if section.flip:
        from synfundus.stages.encode_latents.job import open_images

        open_images(section)
    return ""


def _compare(section: EncodeLatentsConfig, seed: int) -> None:
    from synfundus.stages.encode_latents.job import compare_claim

    del seed
    compare_claim(section)


VERB = Verb(
    name="encode-latents",
    help="Encode images into posterior moments with a frozen autoencoder.",
    order=220,
    example="synfundus encode-latents --data images --vae runs/vae --out latents --flip",
    options=(
        Option("--data", "encode_latents.data", DATA_HELP, required=True, role="input", holds="images"),
        Option("--vae", "encode_latents.vae", VAE_HELP, required=True, role="input", holds="autoencoder"),
        Option(
            "--out",
            "encode_latents.out",
            "Folder of the latent set to write.",
            required=True,
            role="output",
            proof=("request.json", "manifest.json"),
        ),
        Option("--flip", "encode_latents.flip", "Also store the moments of the mirrored image.", "flag"),
        Option("--batch-size", "encode_latents.batch_size", "Images per forward pass."),
        CACHE,
        *DISTRIBUTED,
    ),
    sections=("seed", "encode_latents", "storage", "launch", "telemetry"),
    distributed=True,
    script="encode_latents.sh",
    dry_run=_dry_run,
    compare=_compare,
    closing=("next: synfundus train{recipe} --latents {out} --run-dir RUN",),
)
