"""The weights of a checkpoint as folders that diffusers opens, beside the partitions that a resume reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from synfundus.distributed.flat_layout import FlatGroup, FlatLayout
from synfundus.errors import CheckpointError
from synfundus.storage import filesystem

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


def partition_name(rank: int, world_size: int) -> str:
    """Return the path of a rank's partitions, relative to the checkpoint."""
    return f"zero/rank-{rank:05d}-of-{world_size:05d}.safetensors"


class PartitionSource:
    """Re-slices the partitions of a checkpoint; each file is read once."""

    def __init__(self, url: str, *, saved_world_size: int) -> None:
        self._url = url
        self._saved_world_size = saved_world_size
        self._files: dict[int, dict[str, Tensor]] = {}

    def _file(self, rank: int) -> dict[str, Tensor]:
        if rank not in self._files:
            name = partition_name(rank, self._saved_world_size)
            try:
                self._files[rank] = safetensors.torch.load(filesystem.read_bytes(filesystem.join(self._url, name)))
            except safetensors.SafetensorError as error:
                raise CheckpointError(f"{name} is not a safetensors file: {error}", where=self._url) from error
        return self._files[rank]

    def slice(
        self, number: int, group: FlatGroup, name: str, *, rank: int, world_size: int, saved: FlatGroup | None = None
    ) -> Tensor:
        """Return a rank's slice of one flat vector, zero in the padding.

        Args:
            number: Number of the group.
            group: The group as it is wanted.
            name: Name of the vector.
            rank: The rank.
            world_size: Number of ranks to slice for.
            saved: The group as it was saved, with elements in another order: then the whole vector is read.
        """
        result = torch.zeros(group.partition_size(world_size), dtype=torch.float32)
        first, end = group.partition_bounds(rank, world_size)
        if saved is not None and saved != group:
            whole = group.reordered(self.slice(number, saved, name, rank=0, world_size=1), saved)
            result[: end - first] = whole[first:end]
            return result
        pieces = group.saved_pieces(rank, world_size, saved_world_size=self._saved_world_size)
        for saved_rank, begin, stop in pieces:
            saved_first, _ = group.partition_bounds(saved_rank, self._saved_world_size)
            partition = self._file(saved_rank)[f"group{number}.{name}"]
            result[begin - first : stop - first] = partition[begin - saved_first : stop - saved_first]
        return result

    def regrouped(self, saved: FlatLayout, group: FlatGroup, name: str, *, rank: int, world_size: int) -> Tensor:
        """Return a rank's slice as `slice` does, of parameters saved in other groups: all of them are read."""
        whole: dict[str, Tensor] = {}
        for number, theirs in enumerate(saved.groups):
            flat = self.slice(number, theirs, name, rank=0, world_size=1)
            whole |= {p.name: p.unflatten(flat[p.offset : p.offset + p.numel]) for p in theirs.parameters}
        result = torch.zeros(group.partition_size(world_size), dtype=torch.float32)
        first, end = group.partition_bounds(rank, world_size)
        result[: end - first] = torch.cat([p.flatten(whole[p.name]) for p in group.parameters])[first:end]
        return result
