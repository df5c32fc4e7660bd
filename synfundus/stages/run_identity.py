"""What a training run is bound to: its directory is refused for another."""

from __future__ import annotations

from synfundus.config.schema import RunConfig
from synfundus.storage.manifest import ShardSet


def denoiser_identity(config: RunConfig, latents: ShardSet) -> dict[str, object]:
    """Return what makes a run of `train` this one."""
    ema = config.train.ema.model_dump(mode="json", exclude={"snapshot_every_images"})
    if not config.train.ema.sigma_rel:  # as in runs from before there were any
        del ema["sigma_rel"]
    return {
        "seed": config.seed,
        "latents": latents.identity,
        "diffusion": config.train.diffusion.identity_document(),
        "optim": config.train.optim.model_dump(mode="json"),
        "ema": ema,
        "global_batch_size": config.train.loop.global_batch_size,
        "precision": config.train.loop.precision,
    }


def autoencoder_identity(config: RunConfig, image_set: ShardSet) -> dict[str, object]:
    """Return what makes a run of `train-vae` this one."""
    section = config.train_vae
    return {
        "seed": config.seed,
        "data": image_set.identity,
        "init_from": section.init_from,
        "codec": None if section.init_from else section.autoencoder.model_dump(mode="json"),
        "loss": section.loss.model_dump(mode="json"),
        "optim": section.optim.model_dump(mode="json"),
        "ema": section.ema.model_dump(mode="json"),
        "global_batch_size": section.loop.global_batch_size,
        "precision": section.loop.precision,
    }
