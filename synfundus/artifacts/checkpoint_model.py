"""The model of a run at one of its checkpoints, e.g. of a run that has not finished.

::

    RUN/model/                       written at the start of the run
        vae/                         the autoencoder of the latents
        surroundings.json            labels, latent normalisation, noise schedule, fingerprints; written last
    RUN/checkpoints/images-.../
        unet/ conditioner/           config and raw weights: `from_pretrained` opens each
        zero/                        the averaged weights, in slices
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from synfundus.artifacts.autoencoder_folder import NETWORK_FILE, config_text, forget_origin
from synfundus.artifacts.model import Model, ModelSetup, denoiser_latent_shape
from synfundus.artifacts.model_folder import DOCUMENT_NAME as EXPORT_NAME
from synfundus.artifacts.model_folder import (
    FIRST_CHECKPOINT_HINT,
    check_schema,
    open_unet,
    read_setup,
    setup_document,
)
from synfundus.distributed.flat_layout import FlatLayout, gather_named
from synfundus.distributed.world import LocalWorld
from synfundus.errors import CheckpointError
from synfundus.models.conditioner import CONDITIONER_WEIGHTS_NAME, LabelConditioner
from synfundus.models.unet import ConditionalDenoiser
from synfundus.models.weight_files import WEIGHTS_NAME, replace_weights
from synfundus.storage import documents, filesystem
from synfundus.storage.local_folder import folder_to_read, folder_to_replace
from synfundus.telemetry.console import Console
from synfundus.training.checkpoints import search as checkpoint_search
from synfundus.training.checkpoints.stored_weights import ModelPart, PartitionSource

FOLDER_NAME = "model"
DOCUMENT_NAME = "surroundings.json"
FORMAT_NAME = "synfundus-surroundings"
FORMAT_VERSION = 1

Weights = Literal["averaged", "raw"]


def model_parts(denoiser: ConditionalDenoiser) -> tuple[ModelPart, ...]:
    """Return the network folders of a checkpoint."""
    return (
        ModelPart("unet", "unet.", config_text(denoiser.unet), WEIGHTS_NAME),
        ModelPart("conditioner", "conditioner.", denoiser.conditioner.config_text(), CONDITIONER_WEIGHTS_NAME),
    )


def save_setup(run_url: str, setup: ModelSetup, training_summary: Mapping[str, Any]) -> None:
    """Write the setup of a run's model, once; called on rank 0.

    Args:
        run_url: The run.
        setup: The setup.
        training_summary: Figures for model cards that are known at the start of a run.
    """
    url = filesystem.join(run_url, FOLDER_NAME)
    if filesystem.exists(filesystem.join(url, DOCUMENT_NAME)):
        return
    own = rf"vae(/{NETWORK_FILE})?|{re.escape(DOCUMENT_NAME)}"
    with folder_to_replace(url, last=(DOCUMENT_NAME,), own=own) as work:
        setup.autoencoder.save_pretrained(work / "vae")
        forget_origin(work)
        document = setup_document(setup) | {"training": dict(training_summary)}
        documents.write_document(str(work / DOCUMENT_NAME), document, format_name=FORMAT_NAME, version=FORMAT_VERSION)


def has_only_checkpoints(run_url: str) -> bool:
    """Whether a run of `train` has started but not finished: it has no export."""
    names = ((FOLDER_NAME, DOCUMENT_NAME), ("export", EXPORT_NAME))
    begun, ended = (filesystem.exists(filesystem.join(run_url, *parts)) for parts in names)
    return begun and not ended


def newest_images(run_url: str) -> int:
    """Return the images seen at a run's newest checkpoint, damaged or not; 0 where there is none."""
    root = filesystem.join(run_url, "checkpoints")
    names = checkpoint_search.list_checkpoints(root)[0] if filesystem.is_dir(root) else []
    return int(names[-1].removeprefix("images-")) if names else 0


def load_checkpoint_model(run_url: str, *, name: str | None, weights: Weights, console: Console) -> Model:
    """Load the model of a run at a checkpoint, fp32 on the CPU. One process.

    Args:
        run_url: The run.
        name: Folder name of the checkpoint; None: the newest that verifies.
        weights: Averaged or raw.
        console: Shows the chosen checkpoint, and damaged ones.

    Raises:
        CheckpointError: No such checkpoint, a damaged one, or one of an earlier version without these folders.
    """
    found = _find(run_url, name, console)
    document = documents.read_document(
        filesystem.join(found.url, checkpoint_search.STATE_NAME),
        format_name=checkpoint_search.FORMAT_NAME,
        version=checkpoint_search.FORMAT_VERSION,
    )
    setup, summary = _setup(run_url)
    denoiser = _denoiser(found.url, setup)
    if weights == "averaged":
        replace_weights(denoiser, _averaged(found.url, document), where=found.url)
    console.message(f"{weights} weights at {found.images_seen:,} images, from {found.url}")
    return Model(
        **vars(setup),
        denoiser=denoiser.requires_grad_(False).eval(),
        latent_shape=denoiser_latent_shape(denoiser),
        fingerprint="",
        training_summary={**summary, "images_seen": found.images_seen, "weights": weights},
        folder=found.url,
    )


def require_checkpoint(run_url: str, name: str | None) -> None:
    """Require a checkpoint of this name, or any, damaged or not.

    Raises:
        CheckpointError: There is none.
    """
    root = filesystem.join(run_url, "checkpoints")
    there = filesystem.list_names(root) if filesystem.is_dir(root) else []
    names = sorted(entry for entry in there if entry.startswith("images-"))
    if name is None and not names:
        raise CheckpointError("this run has no checkpoint yet", where=run_url, hint=FIRST_CHECKPOINT_HINT)
    if name is not None and name not in names:
        hint = f"there are: {', '.join(names) or 'none'}"
        raise CheckpointError(f"this run has no checkpoint {name}", where=root, hint=hint)


def _find(run_url: str, name: str | None, console: Console) -> checkpoint_search.FoundCheckpoint:
    root = filesystem.join(run_url, "checkpoints")
    if name is None:
        found = checkpoint_search.find_checkpoint(root, world=LocalWorld()) if filesystem.is_dir(root) else None
        if found is None:
            raise CheckpointError("this run has no checkpoint yet", where=run_url, hint=FIRST_CHECKPOINT_HINT)
        for line in found.passed_over:
            console.warning(f"damaged checkpoint passed over: {line}")
        return found
    require_checkpoint(run_url, name)
    url = filesystem.join(root, name)
    if problem := checkpoint_search.verify(url):
        raise CheckpointError(f"the checkpoint is damaged: {problem}", where=url, hint="take another one")
    return checkpoint_search.FoundCheckpoint(url, int(name.removeprefix("images-")), ())


def _setup(run_url: str) -> tuple[ModelSetup, dict[str, Any]]:
    url = filesystem.join(run_url, FOLDER_NAME)
    if not filesystem.exists(filesystem.join(url, DOCUMENT_NAME)):
        raise CheckpointError(
            f"{FOLDER_NAME}/{DOCUMENT_NAME} is missing: no run of `train`, or one that an earlier version began",
            where=run_url,
            hint="resume the run with the same `synfundus train`, which writes it",
        )
    with folder_to_read(url) as folder:
        path = str(folder / DOCUMENT_NAME)
        document = documents.read_document(path, format_name=FORMAT_NAME, version=FORMAT_VERSION)
        try:
            return read_setup(folder, document, where=path), dict(document["training"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{DOCUMENT_NAME} lacks a field or has a wrong one: {error}", where=url) from error


def _denoiser(url: str, setup: ModelSetup) -> ConditionalDenoiser:
    """Return the network of a checkpoint with its raw weights."""
    if not filesystem.exists(filesystem.join(url, "unet", "config.json")):
        raise CheckpointError(
            "this checkpoint has no unet/: an earlier version wrote it",
            where=url,
            hint="resume the run with the same `synfundus train`, with a larger --budget-images if it has ended; "
            "its next checkpoint has one",
        )
    with (
        folder_to_read(filesystem.join(url, "unet")) as unet,
        folder_to_read(filesystem.join(url, "conditioner")) as conditioner,
    ):
        denoiser = ConditionalDenoiser(
            unet=open_unet(Path(unet)), conditioner=LabelConditioner.from_pretrained(conditioner)
        )
    check_schema(setup.label_schema, denoiser.conditioner, where=url)
    return denoiser


def _averaged(url: str, document: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the complete averaged weights of a checkpoint by name."""
    try:
        layout = FlatLayout.from_document(document["layout"])
        source = PartitionSource(url, saved_world_size=int(document["world_size"]))
        whole = [source.slice(number, group, "ema", rank=0, world_size=1) for number, group in enumerate(layout.groups)]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the partitions lack {error}", where=url) from error
    named = gather_named(layout, whole, LocalWorld())
    assert named is not None
    return named
