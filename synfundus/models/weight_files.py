"""Finds the weights in folders of diffusers models, reads them without running code, loads them into networks.

Published folders hold one safetensors file, shards with an index, or a half-precision variant of either. Some also, or
only, hold pickled weights: unpickling can run code from the file, so those are never read (ADR-0008).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from synfundus.errors import CheckpointError

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
_HALF_VARIANT = "fp16"
_PLACES = (
    (WEIGHTS_NAME, None),
    ("diffusion_pytorch_model.safetensors.index.json", None),
    ("diffusion_pytorch_model.fp16.safetensors", _HALF_VARIANT),
    ("diffusion_pytorch_model.safetensors.index.fp16.json", _HALF_VARIANT),
)
"""Possible weight files, best first, and diffusers' name of the variant."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a folder.

    Attributes:
        names: Files that hold tensors, in order.
        variant: diffusers' name of the variant, None for the plain one.
    """

    names: tuple[str, ...]
    variant: str | None


def read_config(folder: Path, *, classes: Sequence[str], kind: str) -> dict[str, Any]:
    """Return the config of a model folder.

    Args:
        folder: A local folder.
        classes: Supported classes.
        kind: What the folder should hold, for messages, e.g. ``autoencoder``.

    Raises:
        CheckpointError: No config, an unreadable one, or one of another class.
    """
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"no {kind} here: {CONFIG_NAME} is not JSON", where=str(folder)) from error
    found = config.get("_class_name") if isinstance(config, dict) else None
    if found not in classes:
        raise CheckpointError(
            f"the config names the class {found!r}, expected {' or '.join(map(repr, classes))}", where=str(folder)
        )
    return dict(config)


def find_weights(folder: Path, *, kind: str) -> WeightFiles:
    """Return which files hold the weights.

    Raises:
        CheckpointError: No weights, only pickled ones, or an index that names files elsewhere.
    """
    missing = [] if (folder / CONFIG_NAME).is_file() else [CONFIG_NAME]
    place = next(((name, variant) for name, variant in _PLACES if (folder / name).is_file()), None)
    if place is None:
        missing.append(WEIGHTS_NAME)
    if missing or place is None:
        pickled = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLES)
        raise CheckpointError(
            f"no {kind} here: {' and '.join(missing)} missing"
            + (f"; there is {pickled[0]}, a pickle, and a pickle can run code" if pickled else ""),
            where=str(folder),
            hint="pickled weights are not read: use the safetensors of the same model, or convert them with diffusers "
            "(save_pretrained) on a machine where code may run"
            if pickled
            else f"give a local diffusers folder ({CONFIG_NAME} + {WEIGHTS_NAME}); pickled weights are not read",
        )
    name, variant = place
    return WeightFiles(_shards(folder / name) if name.endswith(".json") else (name,), variant)


def _shards(index: Path) -> tuple[str, ...]:
    """Return the files in an index.

    Raises:
        CheckpointError: Not an index, or it names files that are not beside it.
    """
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError("the index of the weights cannot be read", where=str(index)) from error
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"the index names {name!r}, which is no safetensors file beside it", where=str(index))
        if not (index.parent / name).is_file():
            raise CheckpointError(f"the index names {name}, which is missing", where=str(index))
    if not names:
        raise CheckpointError("the index names no file", where=str(index))
    return tuple(names)


def read_weights(folder: Path, files: WeightFiles) -> dict[str, Tensor]:
    """Return all tensors of a folder, converted to fp32.

    Raises:
        CheckpointError: A file is damaged, or a tensor is stored twice.
    """
    tensors: dict[str, Tensor] = {}
    for name in files.names:
        try:
            part = load_file(folder / name)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"the weights cannot be read: {error}", where=str(folder / name)) from error
        twice = sorted(set(part) & set(tensors))
        if twice:
            raise CheckpointError(f"two files hold {twice[0]}", where=str(folder / name))
        for key, tensor in part.items():
            tensors[key] = tensor.to(torch.float32)
    return tensors


def hash_network(folder: Path, digest: hashlib._Hash, *, prefix: str = "") -> None:
    """Add a network's configs and weights to a hash, by name; config keys that begin with ``_`` do not count.

    Args:
        folder: A local folder.
        digest: Changed in place.
        prefix: Goes before the names of files.
    """
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(f"{prefix}{path.name}\0".encode())
        if path.suffix == ".json":
            digest.update(hashed_config(json.loads(path.read_text(encoding="utf-8"))))
        else:
            hash_file(path, digest)
        digest.update(b"\0")


def hashed_config(config: Mapping[str, Any]) -> bytes:
    """Return what counts of a diffusers config, in one form: keys that begin with ``_`` describe its origin."""
    return json.dumps({key: value for key, value in config.items() if not key.startswith("_")}, sort_keys=True).encode()


def hash_file(path: Path, digest: hashlib._Hash) -> None:
    """Add the content of a file to a hash."""
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)


def replace_weights(network: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Load weights, by name, into a network. One with parameters on the meta device takes the tensors themselves.

    Raises:
        CheckpointError: They are of another network.
    """
    bare = any(parameter.is_meta for parameter in network.parameters())
    try:
        missing, unexpected = network.load_state_dict(dict(weights), strict=False, assign=bare)
    except RuntimeError as error:
        raise CheckpointError(f"these are the weights of another network: {error}", where=where) from error
    lacking = sorted(set(missing) - {name for name, _ in network.named_buffers()})
    if unexpected or lacking:
        raise CheckpointError(
            f"these are the weights of another network: it has no {unexpected}, they lack {lacking}", where=where
        )
