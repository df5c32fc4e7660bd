"""The autoencoder a run of `train-vae` starts from: random by the seed, or another one's weights."""

from __future__ import annotations

from typing import Any

import torch

from synfundus.artifacts.autoencoder_folder import (
    CONFIG_NAME,
    check_autoencoder,
    find_autoencoder,
    open_autoencoder,
    save_autoencoder,
)
from synfundus.artifacts.run_folder import RunFolder, compare_run
from synfundus.config.training import TrainVaeConfig
from synfundus.distributed.agreement import on_rank_0
from synfundus.distributed.world import World
from synfundus.errors import ConfigError
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.stages import build
from synfundus.stages.starting_weights import DRAWN, drawn_autoencoder, folder_of_that_name
from synfundus.stages.train_vae.held_out import read_images
from synfundus.storage import filesystem
from synfundus.storage.local_folder import folder_to_read
from synfundus.storage.manifest import ShardSet, load_shard_set
from synfundus.telemetry.console import Console

FOLDER_NAME = "init"


def check_start(section: TrainVaeConfig, run_url: str) -> None:
    """Refuse weights that cannot be trained as configured; a run that has begun has its own.

    Raises:
        CheckpointError: Not an autoencoder that can be used.
        ConfigError: One of a class that cannot recompute activations, which was asked for; shipped weights that are not
            there or of another architecture.
    """
    if not section.init_from or filesystem.exists(filesystem.join(run_url, FOLDER_NAME, CONFIG_NAME)):
        return
    found = check_autoencoder(_given_folder(section))["_class_name"]
    if found == "AutoencoderDC" and section.loop.gradient_checkpointing:
        raise ConfigError(
            "AutoencoderDC cannot recompute its activations",
            where="train_vae.loop.gradient_checkpointing",
            hint="turn it off and use a smaller train_vae.loop.micro_batch_size",
        )


def identity_of(section: TrainVaeConfig, image_set: ShardSet, *, seed: int) -> dict[str, Any]:
    """Return the identity of a run."""
    return {"seed": seed, "data": image_set.identity, **section.identity_document()}


def compare_claim(section: TrainVaeConfig, seed: int) -> None:
    """Refuse the folder of another run, as the run does."""
    image_set = load_shard_set(str(section.data), kind="images")
    compare_run(str(section.run_dir), kind="vae", identity=identity_of(section, image_set, seed=seed))


def _given_folder(section: TrainVaeConfig) -> str:
    """Return the folder of the weights to start from."""
    if section.init_from == DRAWN:
        return str(drawn_autoencoder(section.autoencoder))
    return find_autoencoder(str(section.init_from))


def initial_autoencoder(
    section: TrainVaeConfig, image_set: ShardSet, directory: RunFolder, world: World, console: Console, *, seed: int
) -> LatentAutoencoder:
    """Return the autoencoder a run starts from; kept in the run, so every start begins with the same. Collective."""
    folder = directory.path(FOLDER_NAME)

    def write() -> None:
        if filesystem.exists(filesystem.join(folder, CONFIG_NAME)):
            return  # an autoencoder folder is there as a whole or not at all
        if section.init_from:
            autoencoder, fingerprint = open_autoencoder(
                _given_folder(section), device=torch.device("cpu"), dtype=torch.float32
            )
            directory.record_start({"source": section.init_from, "fingerprint": fingerprint})
            note = folder_of_that_name() if section.init_from == DRAWN else ""
            console.message(f"the autoencoder starts from {section.init_from} ({fingerprint[:12]}){note}")
        else:
            size = int(image_set.properties["image_size_px"])
            autoencoder = build.autoencoder(section.autoencoder, image_size_px=size, seed=seed)
        if autoencoder.linear_path is not None and not section.init_from:
            count = section.autoencoder.linear_path_fit_images
            share = float(
                autoencoder.linear_path.fit(read_images(image_set, split="train", count=count, seed=seed)).sum()
            )
            console.message(f"linear path fitted: {100 * share:.1f} % of the variance of the training images")
        save_autoencoder(autoencoder, folder)

    on_rank_0(write, world)
    with folder_to_read(folder) as local:
        return LatentAutoencoder.from_pretrained(local)
