"""The settings that a demo's folder is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synfundus.config.generation import SampleConfig
from synfundus.stages import build
from synfundus.storage import documents

_OTHERS = (
    "launch",
    "telemetry",
    "forget",
    "judge",
    "gallery",
    "plan_labels",
    "verify",
    "export_dicom",
    "progress",
    "augment",
    "edit",
)
"""Sections that no stage of a demo takes."""
_FIRST = ("model", "out", "num_images", "label", "labels", "batch_size", "format", "precision", "contact_sheet_images")
"""Fields of `sample`, beside the sampler's, that were there from the first version on."""


def settings_of(config: Mapping[str, Any], section: SampleConfig) -> dict[str, Any]:
    """Return all that the results of a demo depend on, from the whole configuration as JSON.

    What later versions added is left out where it has its default: demos begun before are resumed.
    """
    settings = {name: dict(part) if isinstance(part, Mapping) else part for name, part in config.items()}
    for name in _OTHERS:
        del settings[name]
    defaults = SampleConfig().model_dump(mode="json")
    sample = {
        name: value for name, value in settings["sample"].items() if name in _FIRST or value != defaults.get(name)
    }
    settings["sample"] = sample | documents.as_json(build.sampler_settings(section).to_document())
    for verb in ("train_vae", "train"):
        settings[verb]["loop"]["num_threads"] = 0  # only changes speed
    if settings["demo"]["importer"] is None:
        del settings["demo"]["importer"]
    if settings["demo"]["starting_weights"]:
        del settings["demo"]["starting_weights"]
    return settings
