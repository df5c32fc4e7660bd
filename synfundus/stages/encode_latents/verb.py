"""`synfundus encode-latents` on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from synfundus.stages.verb import CACHE, DATA_HELP, DISTRIBUTED, VAE_HELP, Option, Verb, next_command

if TYPE_CHECKING:
    from synfundus.config.generation import EncodeLatentsConfig


def _dry_run(section: EncodeLatentsConfig, seed: int) -> str:
    from synfundus.stages.rehearsal import rehearse_encoding

    del seed
    return rehearse_encoding(str(section.data), str(section.vae), section.out)


def _closing(section: EncodeLatentsConfig, summary: Mapping[str, Any]) -> list[str]:
    del summary
    return [next_command("train", "--latents", section.out, "--run-dir", "RUN")]


VERB = Verb(
    name="encode-latents",
    help="Encode images into posterior moments with a frozen autoencoder.",
    order=220,
    example="synfundus encode-latents --data images --vae runs/vae --out latents --flip",
    options=(
        Option("--data", "encode_latents.data", DATA_HELP, required=True, role="input"),
        Option("--vae", "encode_latents.vae", VAE_HELP, required=True, role="input"),
        Option("--out", "encode_latents.out", "Folder of the latent set to write.", required=True, role="output"),
        Option("--flip", "encode_latents.flip", "Also store the moments of the mirrored image.", "flag"),
        Option("--batch-size", "encode_latents.batch_size", "Images per forward pass."),
        CACHE,
        *DISTRIBUTED,
    ),
    sections=("seed", "encode_latents", "storage", "launch", "telemetry"),
    distributed=True,
    script="encode_latents.sh",
    dry_run=_dry_run,
    closing=_closing,
)
