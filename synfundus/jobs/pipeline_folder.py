"""The exported model: a folder that diffusers opens part by part, and `sample` as a whole.

::

    unet/ vae/ scheduler/     stock diffusers folders
    conditioner/              the label conditioner: config.json + model.safetensors
    model_index.json          what the parts are
    synfundus.json            label schema, latent statistics, schedule, fingerprints
    MODEL_CARD.md
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from synfundus import __version__
from synfundus.diffusion.sampling import build_scheduler
from synfundus.errors import CheckpointError, ManifestMismatch
from synfundus.jobs.model_card import model_card
from synfundus.models.autoencoder import LatentCodec, fingerprint
from synfundus.models.conditioner import LabelConditioner
from synfundus.models.unet import ConditionalDenoiser
from synfundus.storage import documents, filesystem
from synfundus.storage.label_schema import LabelSchema

FORMAT_NAME = "synfundus-pipeline"
FORMAT_VERSION = 1
INFO_NAME = "synfundus.json"


@dataclass(frozen=True)
class Pipeline:
    """A trained model, ready to generate.

    Attributes:
        folder: Where it came from.
        denoiser: Averaged weights, fp32, eval mode.
        codec: The autoencoder, fp32, eval mode.
        schedule_settings: Arguments of `diffusion.sampling.build_scheduler` but the sampler.
        label_schema: Labels it can be conditioned on.
        latent_shape: ``(c, lh, lw)``.
        latent_mean: Per-channel mean of the training latents, ``[c]``.
        latent_std: Per-channel standard deviation, ``[c]``.
        image_size_px: Edge of the generated images, in pixels.
        model_fingerprint: sha256 over the weights of denoiser and conditioner.
        vae_fingerprint: Fingerprint of the autoencoder.
        info: The whole synfundus.json.
    """

    folder: Path
    denoiser: ConditionalDenoiser
    codec: LatentCodec
    schedule_settings: dict[str, Any]
    label_schema: LabelSchema
    latent_shape: tuple[int, int, int]
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    image_size_px: int
    model_fingerprint: str
    vae_fingerprint: str
    info: Mapping[str, Any]


def _model_fingerprint(folder: Path) -> str:
    """Return the sha256 over the weights of the U-Net and the conditioner."""
    digest = hashlib.sha256()
    for part in ("unet", "conditioner"):
        for path in sorted((folder / part).glob("*.safetensors")):
            digest.update(f"{part}/{path.name}\0".encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def save_pipeline(
    folder: Path,
    *,
    denoiser: ConditionalDenoiser,
    codec: LatentCodec,
    schedule_settings: Mapping[str, Any],
    label_schema: LabelSchema,
    latent_mean: Sequence[float],
    latent_std: Sequence[float],
    image_size_px: int,
    latent_set_identity: str,
    vae_fingerprint: str,
    training_summary: Mapping[str, Any],
) -> None:
    """Write a pipeline folder; one that is there is replaced as a whole."""
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    denoiser.unet.save_pretrained(building / "unet", safe_serialization=True)
    denoiser.conditioner.save_pretrained(building / "conditioner")
    codec.save_pretrained(building / "vae")
    build_scheduler(sampler="ddim", **schedule_settings).save_pretrained(building / "scheduler")
    info = {
        "label_schema": label_schema.to_document(),
        "latent_mean": list(latent_mean),
        "latent_std": list(latent_std),
        "image_size_px": image_size_px,
        "schedule": dict(schedule_settings),
        "latent_set_identity": latent_set_identity,
        "autoencoder_fingerprint": vae_fingerprint,
        "model_fingerprint": _model_fingerprint(building),
        "training": documents.plain(_finite(training_summary)),
        "synfundus_version": __version__,
    }
    url = str(building / INFO_NAME)
    documents.write_document(url, info, format_name=FORMAT_NAME, version=FORMAT_VERSION)
    index = {
        "_class_name": "SynfundusPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "conditioner": ["synfundus.models.conditioner", "LabelConditioner"],
    }
    filesystem.write_bytes(str(building / "model_index.json"), documents.dump_json(index))
    filesystem.write_bytes(str(building / "MODEL_CARD.md"), model_card(info).encode())
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def _finite(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Replace figures that JSON has no word for."""
    return {name: None if isinstance(value, float) and value != value else value for name, value in figures.items()}


def find_pipeline(model: str) -> Path:
    """Return the pipeline folder of a run of train, or the folder itself.

    Raises:
        CheckpointError: There is none; says whether a run is there that has not finished.
    """
    folder = filesystem.local_path(model)
    for candidate in (folder / "export", folder):
        if (candidate / INFO_NAME).is_file():
            return candidate
    if (folder / "run.json").is_file():
        raise CheckpointError(
            "this run has not finished: it has no export yet",
            where=model,
            hint="let `synfundus train` finish (the same command goes on), or give another --model",
        )
    raise CheckpointError("no model here", where=model, hint="give a run of `synfundus train` or an exported folder")


def load_pipeline(folder: Path, *, device: torch.device) -> Pipeline:
    """Open a pipeline folder.

    Raises:
        CheckpointError: A part is missing or damaged.
        ManifestMismatch: The autoencoder or the weights are not the ones that were exported together.
    """
    info = documents.read_document(str(folder / INFO_NAME), format_name=FORMAT_NAME, version=FORMAT_VERSION)
    schema = LabelSchema.from_document(info["label_schema"], where=str(folder / INFO_NAME))
    try:
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the U-Net cannot be opened: {error}", where=str(folder / "unet")) from error
    conditioner = LabelConditioner.from_pretrained(folder / "conditioner")
    denoiser = ConditionalDenoiser(unet=unet, conditioner=conditioner)
    codec = LatentCodec.from_pretrained(folder / "vae")
    found = {"autoencoder": fingerprint(folder / "vae"), "model": _model_fingerprint(folder)}
    for part, actual in found.items():
        expected = str(info[f"{part}_fingerprint"])
        if actual != expected:
            raise ManifestMismatch(
                f"the {part} in this folder is {actual[:12]}, the model was exported with {expected[:12]}",
                where=str(folder),
                hint="export the model again; its parts belong together",
            )
    edge = int(info["image_size_px"]) // codec.downsample_factor
    return Pipeline(
        folder=folder,
        denoiser=denoiser.eval().requires_grad_(False).to(device),
        codec=codec.eval().requires_grad_(False).to(device),
        schedule_settings=dict(info["schedule"]),
        label_schema=schema,
        latent_shape=(codec.latent_channels, edge, edge),
        latent_mean=tuple(info["latent_mean"]),
        latent_std=tuple(info["latent_std"]),
        image_size_px=int(info["image_size_px"]),
        model_fingerprint=found["model"],
        vae_fingerprint=found["autoencoder"],
        info=info,
    )
