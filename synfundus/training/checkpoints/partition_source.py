"""Reads the partitions of a checkpoint, saved on any number of ranks, as slices for another number."""

from __future__ import annotations

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from synfundus.distributed.flat_layout import FlatGroup
from synfundus.errors import CheckpointError
from synfundus.storage import filesystem


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

    def slice(self, number: int, group: FlatGroup, name: str, *, rank: int, world_size: int) -> Tensor:
        """Return a rank's slice of one flat vector, zero in the padding."""
        result = torch.zeros(group.partition_size(world_size), dtype=torch.float32)
        first, _ = group.partition_bounds(rank, world_size)
        pieces = group.saved_pieces(rank, world_size, saved_world_size=self._saved_world_size)
        for saved_rank, begin, stop in pieces:
            saved_first, _ = group.partition_bounds(saved_rank, self._saved_world_size)
            saved = self._file(saved_rank)[f"group{number}.{name}"]
            result[begin - first : stop - first] = saved[begin - saved_first : stop - saved_first]
        return result
