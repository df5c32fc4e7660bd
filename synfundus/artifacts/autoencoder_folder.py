"""Finding, opening and writing the folder of an autoencoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin

from synfundus.errors import CheckpointError
from synfundus.models.autoencoder import LatentAutoencoder, check_autoencoder_folder, identity
from synfundus.models.weight_files import WEIGHTS_NAME
from synfundus.storage import filesystem
from synfundus.storage.local_folder import folder_to_read, folder_to_replace
from synfundus.training.checkpoints.stored_weights import ModelPart

CONFIG_NAME = "config.json"
NETWORK_FILE = r"[^/]+\.(json|safetensors)"
"""Pattern of what diffusers and we write into the folder of a network."""
_ORIGIN = "_name_or_path"


def find_autoencoder(location: str) -> str:
    """Return the folder of an autoencoder: in a run of train-vae, in a pipeline folder, or the folder itself.

    Raises:
        CheckpointError: There is none.
        StorageError: The store cannot be read.
    """
    for candidate in (filesystem.join(location, "export", "vae"), filesystem.join(location, "vae"), location):
        if filesystem.exists(filesystem.join(candidate, CONFIG_NAME)):
            return candidate
    raise CheckpointError(
        "there is no autoencoder here",
        where=location,
        hint="give a finished run of train-vae, or a folder of a diffusers AutoencoderKL or AutoencoderDC",
    )


def open_autoencoder(folder: str | Path, *, device: torch.device, dtype: torch.dtype) -> tuple[LatentAutoencoder, str]:
    """Load an autoencoder for inference; returns (autoencoder, fingerprint)."""
    with folder_to_read(str(folder)) as local:
        autoencoder = LatentAutoencoder.from_pretrained(local)
        own = identity(autoencoder, local)
    autoencoder.requires_grad_(False)
    return autoencoder.eval().to(device=device, dtype=dtype), own


def check_autoencoder(folder: str) -> dict[str, Any]:
    """Return the config of an autoencoder folder without loading the weights.

    Raises:
        CheckpointError: It is unusable.
    """
    with folder_to_read(folder) as local:
        return check_autoencoder_folder(local)


def save_autoencoder(autoencoder: LatentAutoencoder, url: str) -> None:
    """Write an autoencoder folder; an existing one is replaced as a whole."""
    with folder_to_replace(url, last=(CONFIG_NAME,), own=NETWORK_FILE) as work:
        autoencoder.save_pretrained(work)
        forget_origin(work)


def autoencoder_parts(autoencoder: LatentAutoencoder) -> tuple[ModelPart, ...]:
    """Return the checkpoint folder with the raw weights of the autoencoder in training, for diffusers."""
    return (ModelPart("vae", "codec.autoencoder.", config_text(autoencoder.network), WEIGHTS_NAME),)


def config_text(network: ConfigMixin) -> str:
    """Return the ``config.json`` of diffusers, without the path the network was loaded from."""
    config = json.loads(network.to_json_string())
    config.pop(_ORIGIN, None)
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def forget_origin(folder: Path) -> None:
    """Remove from diffusers' configs the path the parts were loaded from: it describes the machine, not the model."""
    for path in folder.rglob(CONFIG_NAME):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop(_ORIGIN, None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
