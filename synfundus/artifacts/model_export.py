"""Writes an exported model: `save_pipeline` and what it needs; what is written stands in `model_folder`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__ as diffusers_version

from synfundus import __version__
from synfundus.artifacts.autoencoder_folder import NETWORK_FILE, forget_origin
from synfundus.artifacts.cards.model_card import CARD_NAME, PREVIEW_NAME, model_card, opening_of_parts, opening_of_stock
from synfundus.artifacts.model import Model, ModelSetup, denoiser_latent_shape
from synfundus.artifacts.model_folder import (
    DOCUMENT_NAME,
    FORMAT_NAME,
    FORMAT_VERSION,
    PARTS,
    check_autoencoder,
    check_schema,
    denoiser_fingerprint,
    named_model,
    setup_document,
)
from synfundus.artifacts.stock_pipeline import FOLDER_NAME as STOCK_NAME
from synfundus.artifacts.stock_pipeline import why_not, write_stock_pipeline
from synfundus.diffusion.sampling import scheduler_for
from synfundus.errors import ConfigError
from synfundus.models.unet import ConditionalDenoiser
from synfundus.storage import documents, filesystem
from synfundus.storage.local_folder import folder_to_replace, require_replaceable
from synfundus.storage.locations import resolved

_OLD_CARD = "MODEL_CARD.md"
"""The card of earlier versions, which also wrote a model_index.json that nothing could open."""
_FILES = (DOCUMENT_NAME, PREVIEW_NAME, _OLD_CARD, "model_index.json")
_OWN = rf"(diffusers/)?({'|'.join(PARTS)})(/{NETWORK_FILE})?|diffusers(/({NETWORK_FILE}|{CARD_NAME}))?"
_OWN = "|".join([_OWN, *map(re.escape, _FILES)])

_MOMENT: Mapping[str, Any] = {"images_seen": None, "weights": "averaged", "ema_sigma_rel": None}
"""What tells the models of a run apart, and what a document means that does not say it."""


def _own(folder: str) -> str:
    """Return the pattern of what is ours in a model folder; beside the card of an earlier version README.md is not."""
    older = filesystem.exists(filesystem.join(folder, _OLD_CARD))
    return _OWN if older else f"{_OWN}|{re.escape(CARD_NAME)}"


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
    require_replaceable(out, last=(DOCUMENT_NAME,), own=_own(out))
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


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Replace non-finite numbers in a value by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value


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
    with folder_to_replace(str(folder), last=(DOCUMENT_NAME,), own=_own(str(folder))) as work:
        denoiser.unet.save_pretrained(work / "unet", safe_serialization=True)
        denoiser.conditioner.save_pretrained(work / "conditioner")
        autoencoder.save_pretrained(work / "vae")
        flow = setup.schedule_settings["prediction_type"] == "flow_velocity"
        scheduler_for("euler" if flow else "dpmpp", setup.schedule_settings).save_pretrained(work / "scheduler")
        forget_origin(work)
        check_autoencoder(work / "vae", setup.autoencoder_fingerprint, where=str(folder))
        fingerprint = denoiser_fingerprint(work)
        document = setup_document(setup)
        document["fingerprints"]["model"] = fingerprint
        document |= {
            "latent_shape": denoiser_latent_shape(denoiser),
            "training": _finite(training_summary),
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {"synfundus": __version__, "diffusers": diffusers_version, "torch": torch.__version__},
        }
        if preview:
            (work / PREVIEW_NAME).write_bytes(preview)
        card = partial(model_card, document, setup.label_schema)
        if reason := why_not(setup):
            opening = opening_of_parts(
                reason,
                linear_path=autoencoder.linear_path is not None,
                autoencoder_class=autoencoder.class_name,
                block_size_px=autoencoder.block_size_px,
            )
        else:
            scheduler = write_stock_pipeline(work / STOCK_NAME, denoiser, setup)
            shown = partial(opening_of_stock, document, setup.label_schema, scheduler.config.num_train_timesteps)
            here, opening = (shown(place=one) for one in (".", STOCK_NAME))
            text = card(opening=here, library="diffusers")
            (work / STOCK_NAME / CARD_NAME).write_text(text, encoding="utf-8")
        (work / CARD_NAME).write_text(card(opening=opening, preview=bool(preview)), encoding="utf-8")
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
