"""Where an autoencoder lies, and opening it."""

from __future__ import annotations

from pathlib import Path

import torch

from synfundus.errors import CheckpointError
from synfundus.models.autoencoder import LatentCodec, fingerprint
from synfundus.storage import filesystem


def find_codec(location: str) -> Path:
    """Return the folder of an autoencoder: in a run of train-vae, in a pipeline folder, or the folder itself.

    Raises:
        CheckpointError: Nothing of that kind is there.
    """
    folder = filesystem.local_path(location)
    for candidate in (folder / "export" / "vae", folder / "vae", folder):
        if (candidate / "config.json").is_file():
            return candidate
    raise CheckpointError(
        "no autoencoder here",
        where=location,
        hint="give a finished run of train-vae, or a folder of a diffusers AutoencoderKL",
    )


def open_codec(folder: Path, *, device: torch.device, dtype: torch.dtype) -> tuple[LatentCodec, str]:
    """Load an autoencoder for inference; returns (codec, fingerprint)."""
    codec = LatentCodec.from_pretrained(folder)
    codec.requires_grad_(False)
    return codec.eval().to(device=device, dtype=dtype), fingerprint(folder)
