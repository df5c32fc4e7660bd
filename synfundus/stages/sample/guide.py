"""The weaker model that guidance leads away from (autoguidance): how it is named and opened, and what it must share."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from synfundus.artifacts import checkpoint_model
from synfundus.artifacts.model import Model
from synfundus.artifacts.model_folder import denoiser_fingerprint, find_pipeline, load_pipeline, setup_document
from synfundus.errors import ManifestMismatch
from synfundus.labels.schema import LabelSchema
from synfundus.labels.schema import difference as label_difference
from synfundus.models.unet import ConditionalDenoiser
from synfundus.stages.rehearsal import read_model
from synfundus.storage import documents, filesystem
from synfundus.telemetry.console import Console, SilentConsole

_SAME = {
    "schedule": "noise schedule",
    "latent_mean": "mean of the latents",
    "latent_std": "spread of the latents",
    "image_size_px": "image size",
    "autoencoder": "autoencoder",
}
"""What must be the same beside the labels, by its key: both predict the same noisy latents, for the same states."""


def split_guide(text: str) -> tuple[str, str | None]:
    """Return the folder that an option names, and the name of the run's checkpoint if it is ``RUN@IMAGES``."""
    found = re.fullmatch(r"(.+)@(\d{1,12})", text)
    return (text, None) if found is None else (found[1], f"images-{int(found[2]):012d}")


def load_guide(text: str, model: Model, *, device: torch.device, console: Console) -> Model:
    """Load a guiding model: the averaged weights of a run at a checkpoint, or an exported folder.

    Args:
        text: ``RUN@IMAGES``, or a folder as `find_pipeline` takes.
        model: The model to guide.
        device: Where to compute.
        console: Shows the checkpoint.

    Returns:
        The guide, with the autoencoder of ``model``; its fingerprint is that of an export of the same weights.

    Raises:
        CheckpointError: There is no such model.
        ManifestMismatch: It was not trained for the same latents and labels.
    """
    folder, checkpoint = split_guide(text)
    if checkpoint is None:
        guide = load_pipeline(find_pipeline(folder), device=device)
    else:
        guide = checkpoint_model.load_checkpoint_model(folder, name=checkpoint, weights="averaged", console=console)
        guide = replace(guide, fingerprint=model_fingerprint(guide.denoiser))
        guide.denoiser.to(device)
    check_guide(setup_document(model), setup_document(guide), where=text)
    return replace(guide, autoencoder=model.autoencoder)


def read_guide(text: str) -> documents.Document:
    """Return the document of a guiding model, without opening its networks.

    Raises:
        CheckpointError: There is no such model.
    """
    folder, checkpoint = split_guide(text)
    if checkpoint is None:
        return read_model(folder)
    checkpoint_model.require_checkpoint(folder, checkpoint)
    url = filesystem.join(folder, checkpoint_model.FOLDER_NAME, checkpoint_model.DOCUMENT_NAME)
    version = checkpoint_model.FORMAT_VERSION
    return documents.read_document(url, format_name=checkpoint_model.FORMAT_NAME, version=version)


def guide_fingerprint(text: str) -> str:
    """Return the fingerprint of a guiding model; that of a checkpoint takes as long as to load it.

    Raises:
        CheckpointError: There is no such model.
    """
    folder, checkpoint = split_guide(text)
    if checkpoint is None:
        return str(read_model(folder)["fingerprints"]["model"])
    load = checkpoint_model.load_checkpoint_model
    return model_fingerprint(load(folder, name=checkpoint, weights="averaged", console=SilentConsole()).denoiser)


def check_guide(model: Mapping[str, Any], guide: Mapping[str, Any], *, where: str) -> None:
    """Refuse a guide of other latents, labels, noise or autoencoder.

    Args:
        model: `setup_document` of the model.
        guide: That of the guide.
        where: Of the guide.

    Raises:
        ManifestMismatch: Names what differs, of the guide and of the model.
    """
    here, there = (dict(documents.as_json({**one, **one["fingerprints"]})) for one in (guide, model))
    differing = [f"{_SAME[key]} {here[key]} instead of {there[key]}" for key in _SAME if here[key] != there[key]]
    labels = [LabelSchema.from_document(one["label_schema"], where=where) for one in (here, there)]
    if told := label_difference(*labels):
        differing.append(f"labels ({told})")
    if differing:
        raise ManifestMismatch(
            f"the guiding model was trained for something else: {'; '.join(differing)}",
            where=where,
            hint="guide with an earlier checkpoint of the model's run, or with another run on the same latents",
        )


def model_fingerprint(denoiser: ConditionalDenoiser) -> str:
    """Return the fingerprint that an export of these weights has."""
    with tempfile.TemporaryDirectory() as scratch:
        denoiser.unet.save_pretrained(Path(scratch) / "unet", safe_serialization=True)
        denoiser.conditioner.save_pretrained(Path(scratch) / "conditioner")
        return denoiser_fingerprint(Path(scratch))
