"""`synfundus verify-latents` on the command line."""

from synfundus.stages.verb import CACHE, DEVICE, VAE_HELP, Option, Verb

VERB = Verb(
    name="verify-latents",
    help="Decode a sample of a latent set and report its PSNR.",
    order=230,
    options=(
        Option(
            "--latents", "verify_latents.latents", "Set of latents (`encode-latents`).", required=True, role="input"
        ),
        Option("--vae", "verify_latents.vae", VAE_HELP, required=True, role="input"),
        Option("--data", "verify_latents.data", "Set of images the latents were made of.", role="input"),
        CACHE,
        DEVICE,
    ),
    sections=("seed", "verify_latents", "storage", "launch", "telemetry"),
    distributed=True,
    one_process=True,
)
