"""The weights of a checkpoint as folders that diffusers opens, beside the partitions that a resume reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import safetensors.torch
from torch import Tensor

MODEL_NAME = "model.safetensors"
"""Weights of no part, under the network's own names."""
_FORMAT = {"format": "pt"}  # what diffusers and transformers look for


@dataclass(frozen=True)
class ModelPart:
    """A part of a network that is stored in its own folder.

    Attributes:
        folder: Name of the folder, e.g. ``unet``.
        prefix: Prefix of its weights' names in the network, e.g. ``unet.``.
        config: Content of ``config.json``.
        weights_name: Name of the weights file.
    """

    folder: str
    prefix: str
    config: str
    weights_name: str


def model_files(weights: Mapping[str, Tensor], parts: Sequence[ModelPart]) -> dict[str, bytes]:
    """Return the files of a network's weights, by path relative to the checkpoint.

    Args:
        weights: By name in the network, on the CPU.
        parts: Parts with their own folder; the rest goes to ``model.safetensors``.
    """
    rest = {name: tensor.contiguous() for name, tensor in weights.items()}
    files: dict[str, bytes] = {}
    for part in parts:
        names = [name for name in rest if name.startswith(part.prefix)]
        own = {name.removeprefix(part.prefix): rest.pop(name) for name in names}
        files[f"{part.folder}/config.json"] = part.config.encode()
        files[f"{part.folder}/{part.weights_name}"] = safetensors.torch.save(own, metadata=_FORMAT)
    if rest:
        files[MODEL_NAME] = safetensors.torch.save(rest, metadata=_FORMAT)
    return files
