"""The exported model: a folder whose parts diffusers opens, and synfundus as a whole.

::

    unet/ vae/ scheduler/        stock diffusers folders: `from_pretrained` opens each
    conditioner/                 the label embedding
    model_index.json             its parts, as diffusers lists them
    synfundus.json               labels, latent normalisation, noise schedule, fingerprints; written last
    MODEL_CARD.md                for people
    preview.png                  where `export` found one in the run
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__ as diffusers_version

from synfundus import __version__
from synfundus.artifacts.autoencoder_folder import NETWORK_FILE, forget_origin
from synfundus.artifacts.model import Model, ModelSetup, denoiser_latent_shape
from synfundus.artifacts.model_card import PREVIEW_NAME, model_card
from synfundus.diffusion.sampling import SamplerName, SamplerSettings, Scheduler, scheduler_for
from synfundus.errors import CheckpointError, ConfigError, ManifestMismatch
from synfundus.labels.schema import LabelSchema
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.autoencoder import fingerprint as autoencoder_fingerprint
from synfundus.models.conditioner import LabelConditioner
from synfundus.models.diffusers_classes import UNet2DConditionModel
from synfundus.models.unet import ConditionalDenoiser
from synfundus.models.weight_files import hash_network
from synfundus.storage import documents, filesystem
from synfundus.storage.local_folder import folder_to_read, folder_to_replace, require_replaceable
from synfundus.storage.locations import resolved

DOCUMENT_NAME = "synfundus.json"
FORMAT_NAME = "synfundus-pipeline"
FORMAT_VERSION = 1
_PARTS = ("unet", "vae", "scheduler", "conditioner")
_OWN = (
    rf"({'|'.join(_PARTS)})(/{NETWORK_FILE})?|model_index\.json|MODEL_CARD\.md|preview\.png|{re.escape(DOCUMENT_NAME)}"
)
_AGAIN = "export it again: `synfundus export` does, and of the export/ in a run the same `synfundus train`"
_STOCK_SAMPLER: SamplerName = "dpmpp"
_STOCK_FLOW_SAMPLER: SamplerName = "euler"


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


_MOMENT: Mapping[str, Any] = {"images_seen": None, "weights": "averaged", "ema_sigma_rel": None}
"""What tells the models of a run apart, and what a document means that does not say it."""


def check_out(out: str, *, run: str, fingerprint: str = "", training: Mapping[str, Any]) -> None:
    """Refuse to write a model to a folder that holds anything but the same; call it before the work.

    Args:
        out: The folder.
        run: From `run_identity`.
        fingerprint: Of the model, where it is known before the work.
        training: What is known before the work of its training summary.

    Raises:
        ConfigError: It holds something else, another model, or the finished model of a run.
    """
    parent, _, name = resolved(out).rpartition("/")
    if name == "export" and not parent.endswith("/") and filesystem.exists(filesystem.join(parent, "run.json")):
        raise ConfigError("a run keeps its own model here", where=out, hint="give another --out")
    require_replaceable(out, last=(DOCUMENT_NAME,), own=_OWN)
    if not filesystem.exists(filesystem.join(out, DOCUMENT_NAME)):
        return
    found, its_training = named_model(out)
    there, of_run = found or "of no name", str(its_training.get("run") or "")
    changed = [
        f"{name} {its_training.get(name, usual)} there, {training.get(name, usual)} here"
        for name, usual in _MOMENT.items()
        if its_training.get(name, usual) != training.get(name, usual)
    ]
    if there == fingerprint or (run and of_run == run and not changed):
        return
    made = f", of run {of_run[:12]}" if of_run else ""
    ours = " and ".join(f"{what} {one[:12]}" for what, one in (("model", fingerprint), ("run", run)) if one)
    known = f": {'; '.join(changed)}" if run and of_run == run else ""
    raise ConfigError(
        f"another model is here: {there[:12]}{made}; to be written is {ours or 'one of no known run'}{known}",
        where=out,
        hint="give another --out, or remove this folder if the model in it is no longer needed",
    )


def denoiser_fingerprint(folder: Path) -> str:
    """Return the sha256 over weights and configs of U-Net and conditioner; without keys that begin with ``_``."""
    digest = hashlib.sha256()
    for part in ("unet", "conditioner"):
        hash_network(folder / part, digest, prefix=f"{part}/")
    return digest.hexdigest()


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Replace non-finite numbers in a value by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value


def _model_index(autoencoder: LatentAutoencoder, scheduler: Scheduler) -> dict[str, Any]:
    return {
        "_class_name": "SynfundusPipeline",
        "_diffusers_version": diffusers_version,
        "conditioner": ["synfundus.models.conditioner", "LabelConditioner"],
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", autoencoder.class_name],
    }


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


def save_pipeline(
    folder: str | Path,
    *,
    denoiser: ConditionalDenoiser,
    setup: ModelSetup,
    training_summary: Mapping[str, Any],
    preview: bytes = b"",
) -> str:
    """Write a pipeline folder; an existing one is replaced as a whole. Returns the model's fingerprint.

    Args:
        folder: Where to write it.
        denoiser: U-Net and conditioner, fp32.
        setup: Autoencoder and settings.
        training_summary: Figures for the model card; no names of patients, files or sources.
        preview: A grid of generated images for the model card, PNG; empty for none.

    Raises:
        ManifestMismatch: Autoencoder or label schema are not those the model was trained with.
    """
    check_schema(setup.label_schema, denoiser.conditioner, where=str(folder))
    autoencoder = setup.autoencoder
    with folder_to_replace(str(folder), last=(DOCUMENT_NAME,), own=_OWN) as work:
        denoiser.unet.save_pretrained(work / "unet", safe_serialization=True)
        denoiser.conditioner.save_pretrained(work / "conditioner")
        autoencoder.save_pretrained(work / "vae")
        flow = setup.schedule_settings["prediction_type"] == "flow_velocity"
        scheduler = scheduler_for(_STOCK_FLOW_SAMPLER if flow else _STOCK_SAMPLER, setup.schedule_settings)
        scheduler.save_pretrained(work / "scheduler")
        forget_origin(work)
        _check_autoencoder(work / "vae", setup.autoencoder_fingerprint, where=str(folder))
        fingerprint = denoiser_fingerprint(work)
        document = setup_document(setup)
        document["fingerprints"]["model"] = fingerprint
        document |= {
            "latent_shape": denoiser_latent_shape(denoiser),
            "training": _finite(training_summary),
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {"synfundus": __version__, "diffusers": diffusers_version, "torch": torch.__version__},
        }
        (work / "model_index.json").write_bytes(documents.dump_json(_model_index(autoencoder, scheduler)))
        if preview:
            (work / PREVIEW_NAME).write_bytes(preview)
        (work / "MODEL_CARD.md").write_text(
            model_card(
                document,
                setup.label_schema,
                linear_path=autoencoder.linear_path is not None,
                autoencoder_class=autoencoder.class_name,
                block_size_px=autoencoder.block_size_px,
                preview=bool(preview),
            ),
            encoding="utf-8",
        )
        documents.write_document(str(work / DOCUMENT_NAME), document, format_name=FORMAT_NAME, version=FORMAT_VERSION)
    return fingerprint


def resave_pipeline(folder: str | Path, pipeline: Model, *, run: str, preview: bytes = b"") -> str:
    """Write a loaded pipeline to a folder, with its current weights. Returns the model's fingerprint.

    Args:
        folder: Where to write it.
        pipeline: The model.
        run: From `run_identity`; empty where it is not known.
        preview: As in `save_pipeline`.

    Raises:
        ManifestMismatch: As in `save_pipeline`.
    """
    summary = pipeline.training_summary | ({"run": run} if run else {})
    return save_pipeline(folder, denoiser=pipeline.denoiser, setup=pipeline, training_summary=summary, preview=preview)


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
    _check_autoencoder(folder / "vae", fingerprints["autoencoder"], where=str(folder))
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


def _check_autoencoder(folder: Path, expected: str, *, where: str) -> None:
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
    missing = [part for part in _PARTS if not (folder / part).is_dir()]
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
