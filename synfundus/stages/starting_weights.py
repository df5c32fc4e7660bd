"""The starting weights that come with the package: an autoencoder trained on drawn eyes alone, and no patient's.

They are made by ``make starting-weights``, stored in half precision, and used for the one architecture they have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synfundus.config.assets import asset_folders
from synfundus.config.training import AutoencoderConfig
from synfundus.errors import CheckpointError, ConfigError

DRAWN = "drawn"
"""Their name as a value of ``--init-from``."""
_CONFIG_NAME = "config.json"
_LINEAR_PATH_NAME = "linear_path.json"


def shipped_weights() -> Path | None:
    """Return the folder of the shipped autoencoder; None where this installation has none."""
    folders = (folder / DRAWN for folder in asset_folders("starting_weights"))
    return next((folder for folder in folders if (folder / _CONFIG_NAME).is_file()), None)


def folder_of_that_name() -> str:
    """Return how to write the folder of the working folder that has their name too; empty if there is none."""
    return f"; the folder of that name here is written ./{DRAWN}" if Path(DRAWN).is_dir() else ""


def architecture(document: Mapping[str, Any], *, linear_path: bool) -> dict[str, Any]:
    """Return the architecture that a config of diffusers' AutoencoderKL describes, by our names."""
    return {
        "latent_channels": document["latent_channels"],
        "block_out_channels": list(document["block_out_channels"]),
        "block_size_px": math.isqrt(int(document["in_channels"]) // 3),
        "layers_per_block": document["layers_per_block"],
        "norm_num_groups": document["norm_num_groups"],
        "mid_block_attention": document.get("mid_block_add_attention", True),
        "linear_path": linear_path,
    }


def architecture_of(folder: Path) -> dict[str, Any]:
    """Return the architecture of a folder's autoencoder, by our names.

    Raises:
        CheckpointError: The folder is damaged.
    """
    try:
        document = json.loads((folder / _CONFIG_NAME).read_text(encoding="utf-8"))
        return architecture(document, linear_path=(folder / _LINEAR_PATH_NAME).exists())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the starting weights are damaged: {error}", where=str(folder)) from error


def architecture_problem(wanted: AutoencoderConfig, folder: Path) -> str:
    """Return how an architecture differs from that of a folder's autoencoder, both named; empty where it fits.

    Raises:
        CheckpointError: The folder is damaged.
    """
    has = architecture_of(folder)
    asked = wanted.model_dump(mode="json")
    return ", ".join(f"{name} {asked[name]} (they have {has[name]})" for name in has if asked[name] != has[name])


def drawn_weights(wanted: AutoencoderConfig) -> Path:
    """Return the folder of the shipped weights for an architecture.

    Raises:
        ConfigError: There are none, or they are of another architecture.
        CheckpointError: They are damaged.
    """
    folder = shipped_weights()
    if folder is None:
        raise ConfigError(
            f"this installation has no starting weights {DRAWN!r}{folder_of_that_name()}",
            where="train_vae.init_from",
            hint="run `make starting-weights` in a checkout (hours), or give the folder of an autoencoder",
        )
    if problem := architecture_problem(wanted, folder):
        raise ConfigError(
            f"the starting weights {DRAWN!r} do not fit train_vae.autoencoder: {problem}{folder_of_that_name()}",
            where="train_vae.init_from",
            hint="give --preset demo-cpu --set train_vae.autoencoder.latent_channels="
            f"{architecture_of(folder)['latent_channels']}, or leave --init-from out",
        )
    return folder


def fitting_weights(wanted: AutoencoderConfig) -> Path | None:
    """Return the folder of the shipped weights if there are some for an architecture."""
    folder = shipped_weights()
    return None if folder is None or architecture_problem(wanted, folder) else folder
