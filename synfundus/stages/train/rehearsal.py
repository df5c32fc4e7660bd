"""What a dry run of `train` looks at besides the options: sampler, starting weights, mirrored labels, a begun run."""

from __future__ import annotations

from synfundus.artifacts.latent_set import open_latent_sets
from synfundus.config.diffusion import TrainConfig
from synfundus.config.generation import SampleConfig
from synfundus.labels.schema import LabelSchema
from synfundus.stages.rehearsal import read_model, require_model
from synfundus.stages.starting_weights import DRAWN, drawn_denoiser
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole


def rehearse(section: TrainConfig, sample: SampleConfig) -> str:
    """Refuse what the run refuses before it claims its folder; torch is imported only where a network is concerned.

    Raises:
        SynfundusError: As the run.
    """
    latents = open_latent_sets(section.latents).combined
    if section.diffusion.flip:
        from synfundus.stages.reading import check_flip

        check_flip(latents, str(section.run_dir), SilentConsole())
    if section.loop.preview_every_images and section.diffusion.prediction_type == "flow_velocity":
        from synfundus.stages import build

        build.check_sampler(build.sampler_settings(sample).sampler, section.diffusion)
    if section.init_from == DRAWN:
        from synfundus.stages.reading import latent_shape_of

        drawn_denoiser(section.unet, latent_shape_of(latents))
    elif section.init_from:
        _check_start(section.init_from, latents)
    return ""


def _check_start(init_from: str, latents: ShardSet) -> None:
    """Find the weights to start from; a model's document tells of which latents and labels it is."""
    from synfundus.stages.train.start import find_start, require_same_latents

    folder, is_foreign = find_start(init_from)
    if is_foreign:
        return
    document = read_model(folder)
    channels, height, width = document["latent_shape"]
    require_same_latents(
        latents,
        autoencoder=document["fingerprints"]["autoencoder"],
        latent_shape=(channels, height, width),
        schema=LabelSchema.from_document(document["label_schema"], where=require_model(folder)),
        where=folder,
    )


def compare_claim(section: TrainConfig, seed: int) -> None:
    """Refuse the folder of another run, as the run does; of a foreign network the location alone is compared."""
    from synfundus.artifacts.run_folder import compare_run
    from synfundus.stages.train.start import find_start, identity_of

    url, latents = str(section.run_dir), open_latent_sets(section.latents).combined
    own = {"init_from": section.init_from, "unet": section.unet.model_dump(mode="json")}
    if section.init_from and section.init_from != DRAWN and find_start(section.init_from)[1]:
        place = filesystem.join(url, "run.json")
        begun = documents.read_document(place, format_name="synfundus-run", version=1)["identity"]
        own |= {name: begun[name] for name in ("init_fingerprint", "unet") if name in begun}
    compare_run(url, kind="diffusion", identity=identity_of(section, latents, own, seed=seed))
