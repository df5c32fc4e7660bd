"""Starting from a pretrained U-Net: finding it, adapting its weights, comparing its scheduler."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synfundus.config.diffusion import DiffusionConfig
from synfundus.errors import CheckpointError, SynfundusError
from synfundus.labels.schema import LabelSchema
from synfundus.models.adapted_unet import CLASS_NAME, Adaptation, adapt_unet
from synfundus.models.conditioner import LabelConditioner
from synfundus.models.unet import ConditionalDenoiser
from synfundus.models.weight_files import (
    CONFIG_NAME,
    WeightFiles,
    find_weights,
    hash_file,
    hashed_config,
    read_config,
    read_weights,
)
from synfundus.storage import filesystem
from synfundus.storage.local_folder import folder_to_read
from synfundus.telemetry.console import Console

_KIND = "U-Net"
_SCHEDULER = ("scheduler", "scheduler_config.json")
_SCHEDULER_DEFAULTS: dict[str, Any] = {
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "rescale_betas_zero_snr": False,
}
"""Defaults of a diffusers scheduler."""
_DIFFUSERS_SCHEDULES = {"cosine": "squaredcos_cap_v2"}
_SHOWN = 12


@dataclass(frozen=True)
class ForeignStart:
    """A network that starts from foreign weights.

    Attributes:
        denoiser: The network.
        adaptation: Which weights were taken, adapted or new.
        architecture: The U-Net's config, without keys that begin with ``_``.
        fingerprint: sha256 over the foreign config and weights.
        scheduler: Config of the foreign scheduler, empty if there is none.
    """

    denoiser: ConditionalDenoiser
    adaptation: Adaptation
    architecture: dict[str, Any]
    fingerprint: str
    scheduler: dict[str, Any]


def find_foreign_unet(location: str) -> str | None:
    """Return the folder of a diffusers U-Net, ``LOCATION/unet`` or the location itself; None where there is neither.

    Raises:
        CheckpointError: There is a network of another kind, which cannot be started from.
        StorageError: The store cannot be read.
    """
    for folder in (filesystem.join(location, "unet"), location):
        if filesystem.exists(filesystem.join(folder, CONFIG_NAME)):
            return folder
    if filesystem.exists(filesystem.join(location, "transformer", CONFIG_NAME)):
        raise CheckpointError(
            "the denoiser of this pipeline is a transformer; synfundus trains U-Nets",
            where=location,
            hint="give a folder of Stable Diffusion 1.x, 2.x or XL, or leave --init-from out",
        )
    return None


def open_foreign_unet(
    folder: str, *, schema: LabelSchema, latent_shape: tuple[int, int, int], dropout: float
) -> ForeignStart:
    """Read a foreign U-Net and adapt it. New weights come from the global generator: seed it.

    Args:
        folder: From `find_foreign_unet`.
        schema: Labels to condition on.
        latent_shape: ``(c, lh, lw)``.
        dropout: In residual blocks.

    Raises:
        CheckpointError: Not a U-Net, pickled or damaged weights.
        ConfigError: An architecture that cannot be adapted.
    """
    try:
        with folder_to_read(folder) as local:
            given = read_config(local, classes=(CLASS_NAME,), kind=_KIND)
            files = find_weights(local, kind=_KIND)
            fingerprint = _fingerprint(local, given, files)
            tensors = read_weights(local, files)
        unet, adaptation = adapt_unet(given, tensors, latent_shape=latent_shape, dropout=dropout)
    except SynfundusError as error:
        error.where = error.where or folder
        raise
    width = int(unet.config.cross_attention_dim)
    conditioner = LabelConditioner(
        num_values=schema.num_values, ordinal=schema.ordinal, token_dim=width, pooled_dim=width
    )
    adaptation.new.update({f"conditioner.{name}": one.numel() for name, one in conditioner.named_parameters()})
    return ForeignStart(
        denoiser=ConditionalDenoiser(unet=unet, conditioner=conditioner),
        adaptation=adaptation,
        architecture={key: value for key, value in unet.config.items() if not key.startswith("_")},
        fingerprint=fingerprint,
        scheduler=_read_scheduler(folder),
    )


def _fingerprint(folder: Path, config: Mapping[str, Any], files: WeightFiles) -> str:
    """Return the sha256 over config and weights; keys that begin with ``_`` do not count."""
    digest = hashlib.sha256(hashed_config(config))
    for name in files.names:
        digest.update(f"\0{name}\0".encode())
        hash_file(folder / name, digest)
    return digest.hexdigest()


def _read_scheduler(folder: str) -> dict[str, Any]:
    """Return the config of the scheduler beside a U-Net, with diffusers' defaults; empty where there is none."""
    above = folder.rstrip("/").rpartition("/")[0] or "."
    url = filesystem.join(above, *_SCHEDULER)
    if not folder.rstrip("/").endswith("unet") or not filesystem.exists(url):
        return {}
    try:
        found = json.loads(filesystem.read_bytes(url))
        kind = str(found.get("_class_name"))
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError("the scheduler's config cannot be read", where=url) from error
    if "FlowMatch" in kind or found.get("prediction_type") == "flow_prediction":
        length = found.get("num_train_timesteps", _SCHEDULER_DEFAULTS["num_train_timesteps"])
        return {"prediction_type": "flow_velocity", "num_train_timesteps": length}
    return {key: found.get(key, default) for key, default in _SCHEDULER_DEFAULTS.items()}


def scheduler_differences(theirs: Mapping[str, Any], section: DiffusionConfig) -> list[str]:
    """List the differences between a foreign scheduler and the run: prediction type first, then noise schedule."""
    if not theirs:
        return []
    ours: dict[str, Any] = {
        "prediction_type": section.prediction_type,
        "num_train_timesteps": section.num_train_timesteps,
        "beta_schedule": _DIFFUSERS_SCHEDULES.get(section.beta_schedule, section.beta_schedule),
        "beta_start": section.beta_start,
        "beta_end": section.beta_end,
        "rescale_betas_zero_snr": section.zero_terminal_snr,
    }
    if section.prediction_type == "flow_velocity":
        ours = {key: ours[key] for key in ("prediction_type", "num_train_timesteps")}
    elif ours["beta_schedule"] == theirs.get("beta_schedule") == _DIFFUSERS_SCHEDULES["cosine"]:
        ours.update({key: theirs[key] for key in ("beta_start", "beta_end")})  # the cosine has none
    return [
        f"{key} {theirs[key]!r} there, {ours[key]!r} here" for key in ours if theirs.get(key, ours[key]) != ours[key]
    ]


def announce(start: ForeignStart, folder: str, section: DiffusionConfig, console: Console) -> None:
    """Report the initial weights of a run, and differences in the objective."""
    report = start.adaptation
    console.message(
        f"started from {folder}: {len(report.taken)} tensors ({_parameters(report.taken)}) taken, "
        f"{len(report.adapted)} adapted, {len(report.new)} new ({_parameters(report.new)}), "
        f"{len(report.unused)} unused ({_parameters(report.unused)}); its architecture replaces the unet section"
    )
    for name, what in report.adapted.items():
        console.message(f"adapted: {name} {what}")
    for title, names in (("new", report.new), ("unused", report.unused)):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            console.message(f"{title}: {', '.join(list(names)[:_SHOWN])}{more}")
    for note in report.notes:
        console.warning(note)
    differences = scheduler_differences(start.scheduler, section)
    if differences:
        console.warning(
            f"the U-Net in {folder} was trained with another objective than this run (diffusion section): "
            f"{'; '.join(differences)}; it has to learn that anew"
        )


def _parameters(sizes: Mapping[str, int]) -> str:
    return f"{sum(sizes.values()):,} parameters"
