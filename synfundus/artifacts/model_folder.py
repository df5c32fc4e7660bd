"""The exported model: a folder whose parts diffusers opens, and synfundus as a whole.

::

    unet/ vae/ scheduler/        stock diffusers folders: `from_pretrained` opens each
    conditioner/                 the label embedding
    synfundus.json               labels, latent normalisation, noise schedule, fingerprints; written last
    README.md                    the model card: for people, and for Hugging Face
    preview.png                  where `export` found one in the run
    diffusers/                   the same model as a stock pipeline, where there is one: `stock_pipeline`

`model_export` writes it; here it is found and opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from synfundus.artifacts.model import Model, ModelSetup, denoiser_latent_shape
from synfundus.diffusion.sampling import SamplerSettings
from synfundus.errors import CheckpointError, ManifestMismatch
from synfundus.labels.schema import LabelSchema
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.autoencoder import fingerprint as autoencoder_fingerprint
from synfundus.models.conditioner import LabelConditioner
from synfundus.models.diffusers_classes import UNet2DConditionModel
from synfundus.models.unet import ConditionalDenoiser
from synfundus.models.weight_files import hash_network
from synfundus.storage import documents, filesystem
from synfundus.storage.local_folder import folder_to_read

DOCUMENT_NAME = "synfundus.json"
FORMAT_NAME = "synfundus-pipeline"
FORMAT_VERSION = 1
PARTS = ("unet", "vae", "scheduler", "conditioner")
_AGAIN = "export it again: `synfundus export` does, and of the export/ in a run the same `synfundus train`"
FIRST_CHECKPOINT_HINT = "`synfundus watch --run-dir` shows how far it is; see train.loop.checkpoint_every_images"


def find_pipeline(model: str) -> str:
    """Return the pipeline folder of a run of `train`, or the folder itself if it is one.

    Raises:
        CheckpointError: Neither exists; the message says what was found instead.
        StorageError: The store cannot be read.
    """
    for candidate in (filesystem.join(model, "export"), model):
        if filesystem.exists(filesystem.join(candidate, DOCUMENT_NAME)):
            return candidate
    if not filesystem.is_dir(model):
        raise CheckpointError("there is no such folder", where=model, hint="give a run of `synfundus train`")
    if filesystem.is_dir(filesystem.join(model, "export", "vae")) or filesystem.exists(
        filesystem.join(model, "diffusion_pytorch_model.safetensors")
    ):
        raise CheckpointError(
            "this is an autoencoder, no diffusion model",
            where=model,
            hint="give the run of `synfundus train`, not of `train-vae`",
        )
    if filesystem.is_dir(filesystem.join(model, "checkpoints")):
        raise CheckpointError(
            "this run has no export/ yet: its training has not ended",
            where=model,
            hint="`synfundus export --run-dir` exports its newest checkpoint; the same `synfundus train` resumes the "
            "run and exports at the end",
        )
    if filesystem.exists(filesystem.join(model, "run.json")):
        raise CheckpointError("this run has no checkpoint yet", where=model, hint=FIRST_CHECKPOINT_HINT)
    raise CheckpointError(
        f"no model here: neither export/{DOCUMENT_NAME} nor {DOCUMENT_NAME}",
        where=model,
        hint="give a run of `synfundus train`, or a folder written by `synfundus export`",
    )


def run_identity(url: str) -> str:
    """Return the hash of what makes a run that run, the same at all its checkpoints; empty outside a run."""
    url = filesystem.join(url, "run.json")
    return hashlib.sha256(filesystem.read_bytes(url)).hexdigest() if filesystem.exists(url) else ""


def named_model(folder: str) -> tuple[str, Mapping[str, Any]]:
    """Return the fingerprint that a pipeline folder names, empty where it names none, and what it says of its training.

    Raises:
        DataError: Its document cannot be read.
    """
    url = filesystem.join(folder, DOCUMENT_NAME)
    document = documents.read_document(url, format_name=FORMAT_NAME, version=FORMAT_VERSION)
    parts = (document.get(name) for name in ("fingerprints", "training"))
    fingerprints, training = (part if isinstance(part, Mapping) else {} for part in parts)
    return str(fingerprints.get("model") or ""), training


def denoiser_fingerprint(folder: Path) -> str:
    """Return the sha256 over weights and configs of U-Net and conditioner; without keys that begin with ``_``."""
    digest = hashlib.sha256()
    for part in ("unet", "conditioner"):
        hash_network(folder / part, digest, prefix=f"{part}/")
    return digest.hexdigest()


def check_schema(schema: LabelSchema, conditioner: LabelConditioner, *, where: str) -> None:
    """Refuse a label schema that is not the conditioner's.

    Raises:
        ManifestMismatch: Names both sides.
    """
    if (schema.num_values, schema.ordinal) != (conditioner.num_values, conditioner.ordinal):
        raise ManifestMismatch(
            f"the label schema has {len(schema.labels)} labels with {list(schema.num_values)} values, the conditioner "
            f"was built for {conditioner.num_labels} labels with {list(conditioner.num_values)} values",
            where=where,
        )


def setup_document(setup: ModelSetup) -> dict[str, Any]:
    """Return a model's setup for a JSON document, with the autoencoder as its fingerprint."""
    return {
        "label_schema": setup.label_schema.to_document(),
        "latent_mean": [float(value) for value in setup.latent_mean],
        "latent_std": [float(value) for value in setup.latent_std],
        "image_size_px": setup.image_size_px,
        "schedule": dict(setup.schedule_settings),
        "fingerprints": {"autoencoder": setup.autoencoder_fingerprint, "latent_set": setup.latent_set_identity},
        "recommended_sampling": setup.recommended_sampling and setup.recommended_sampling.to_document(),
    }


def read_setup(folder: Path, document: Mapping[str, Any], *, where: str) -> ModelSetup:
    """Read the setup of a document, with the autoencoder in ``vae`` beside it.

    Raises:
        CheckpointError: The autoencoder is missing or unreadable.
        ManifestMismatch: It is another autoencoder.
    """
    fingerprints, sampling = document["fingerprints"], document.get("recommended_sampling")
    check_autoencoder(folder / "vae", fingerprints["autoencoder"], where=str(folder))
    return ModelSetup(
        autoencoder=LatentAutoencoder.from_pretrained(folder / "vae").requires_grad_(False).eval(),
        schedule_settings=dict(document["schedule"]),
        label_schema=LabelSchema.from_document(document["label_schema"], where=where),
        latent_mean=tuple(float(value) for value in document["latent_mean"]),
        latent_std=tuple(float(value) for value in document["latent_std"]),
        image_size_px=int(document["image_size_px"]),
        latent_set_identity=fingerprints["latent_set"],
        autoencoder_fingerprint=fingerprints["autoencoder"],
        recommended_sampling=SamplerSettings.from_document(sampling) if sampling else None,
    )


def check_autoencoder(folder: Path, expected: str, *, where: str) -> None:
    """Refuse a folder with another autoencoder than the model's.

    Raises:
        ManifestMismatch: Names both.
    """
    found = autoencoder_fingerprint(folder)
    if found != expected:
        raise ManifestMismatch(
            f"the autoencoder in the folder is {found[:12]}, the model was trained on latents of {expected[:12]}",
            where=where,
            hint=f"put the autoencoder back that the latents were encoded with, or {_AGAIN}",
        )


def _check_size(document: Mapping[str, Any], denoiser: ConditionalDenoiser, factor: int, *, where: str) -> None:
    """Refuse a document of another size than its parts.

    Raises:
        ManifestMismatch: Names both sides.
    """
    named, built = tuple(int(edge) for edge in document["latent_shape"]), denoiser_latent_shape(denoiser)
    if named != built:
        raise ManifestMismatch(
            f"{DOCUMENT_NAME} names latents of {named}, the U-Net was built for {built}", where=where
        )
    size, made = int(document["image_size_px"]), built[1] * factor
    if size != made:
        raise ManifestMismatch(
            f"{DOCUMENT_NAME} names images of {size} px, U-Net and autoencoder make {made} px", where=where
        )


def open_unet(folder: Path) -> UNet2DConditionModel:
    """Open a folder of a diffusers U-Net.

    Raises:
        CheckpointError: It is none, or cannot be read.
    """
    try:
        return UNet2DConditionModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"no usable U-Net here: {error}", where=str(folder)) from error


def load_pipeline(folder: str | Path, *, device: torch.device) -> Model:
    """Load a pipeline folder and check that its parts belong together.

    Args:
        folder: From `find_pipeline`.
        device: Where to compute.

    Raises:
        CheckpointError: A part is missing or cannot be read.
        ManifestMismatch: Label schema, autoencoder or weights are not those the folder was written with.
    """
    with folder_to_read(str(folder)) as local:
        return replace(_load_checked(local, device), folder=str(folder))


def _load_checked(folder: Path, device: torch.device) -> Model:
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing or not (folder / DOCUMENT_NAME).is_file():
        missing = missing or [DOCUMENT_NAME]
        raise CheckpointError(f"the pipeline folder lacks {', '.join(missing)}", where=str(folder), hint=_AGAIN)
    document = documents.read_document(str(folder / DOCUMENT_NAME), format_name=FORMAT_NAME, version=FORMAT_VERSION)
    try:
        return _load(folder, document, device)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{DOCUMENT_NAME} lacks a field or has a wrong one: {error}", where=str(folder), hint=_AGAIN
        ) from error


def _load(folder: Path, document: Mapping[str, Any], device: torch.device) -> Model:
    setup = read_setup(folder, document, where=str(folder / DOCUMENT_NAME))
    found, named = denoiser_fingerprint(folder), document["fingerprints"]["model"]
    if found != named:
        raise ManifestMismatch(
            f"U-Net and conditioner in the folder are {found[:12]}, {DOCUMENT_NAME} was written for {named[:12]}",
            where=str(folder),
            hint=f"the files were changed after the export: {_AGAIN}",
        )
    conditioner = LabelConditioner.from_pretrained(folder / "conditioner")
    check_schema(setup.label_schema, conditioner, where=str(folder))
    denoiser = ConditionalDenoiser(unet=open_unet(folder / "unet"), conditioner=conditioner)
    _check_size(document, denoiser, setup.autoencoder.downsample_factor, where=str(folder))
    setup.autoencoder.to(device)
    return Model(
        **vars(setup),
        denoiser=denoiser.requires_grad_(False).eval().to(device),
        latent_shape=denoiser_latent_shape(denoiser),
        fingerprint=found,
        training_summary=dict(document["training"]),
        folder=str(folder),
    )
