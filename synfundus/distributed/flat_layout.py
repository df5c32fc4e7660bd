"""The place of each parameter in the flat vector that ZeRO-2 partitions, and its way back to named tensors.

ZeRO concatenates the parameters of a group, pads the end to a multiple of the number of ranks, and gives each rank one
equal slice. Without the padding the vector does not depend on the world size, so 3 ranks can read a checkpoint of 8.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from synfundus.distributed.world import World
from synfundus.errors import CheckpointError

ALIGNMENT = 2
"""ZeRO-2 pads a group to a multiple of this times the number of ranks."""


@dataclass(frozen=True)
class FlatParameter:
    """One parameter in its group's flat vector.

    Attributes:
        name: Name in the network.
        shape: Its shape.
        offset: Where it begins in the vector.
        channels_last: The elements of a convolution's weight are in NHWC order, so that a view of them is NHWC memory.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    channels_last: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def flatten(self, tensor: Tensor) -> Tensor:
        """Return the parameter as its part of the vector, a view if its memory is in that order."""
        return flatten(tensor, channels_last=self.channels_last)

    def unflatten(self, part: Tensor) -> Tensor:
        """Return a part of the vector as a view with the parameter's shape."""
        return unflatten(part, self.shape, channels_last=self.channels_last)


def flatten(tensor: Tensor, *, channels_last: bool) -> Tensor:
    """Return the elements of a tensor as a vector, in NHWC order if asked for and the tensor has four axes."""
    return (tensor.permute(0, 2, 3, 1) if channels_last and tensor.ndim == 4 else tensor).reshape(-1)


def unflatten(flat: Tensor, shape: Sequence[int], *, channels_last: bool) -> Tensor:
    """Return a view of a vector from `flatten` with the shape it had."""
    if not channels_last or len(shape) != 4:
        return flat.view(torch.Size(shape))
    out, into, height, width = shape
    return flat.view(out, height, width, into).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class FlatGroup:
    """One optimizer group: its parameters, concatenated."""

    parameters: tuple[FlatParameter, ...]

    @cached_property
    def numel(self) -> int:
        """Elements without padding."""
        return sum(parameter.numel for parameter in self.parameters)

    def partition_size(self, world_size: int) -> int:
        """Elements of one rank's slice, padding included."""
        multiple = ALIGNMENT * world_size
        return math.ceil(self.numel / multiple) * multiple // world_size

    def partition_bounds(self, rank: int, world_size: int) -> tuple[int, int]:
        """Return (first, end) of a rank's slice in the unpadded vector; a slice of padding alone is empty."""
        size = self.partition_size(world_size)
        return min(rank * size, self.numel), min((rank + 1) * size, self.numel)

    def reordered(self, flat: Tensor, saved: FlatGroup) -> Tensor:
        """Return the whole vector of the same parameters, saved in another order, in this one; padding is kept."""
        result = flat.clone()
        for mine, theirs in zip(self.parameters, saved.parameters, strict=True):
            if mine != theirs:
                part = slice(mine.offset, mine.offset + mine.numel)
                result[part] = mine.flatten(theirs.unflatten(flat[part]))
        return result

    def saved_pieces(self, rank: int, world_size: int, *, saved_world_size: int) -> list[tuple[int, int, int]]:
        """Return which slices of another world size make up a rank's slice, in order.

        Returns:
            (saved rank, first, end), bounds in the unpadded vector: together they cover `partition_bounds`.
        """
        first, end = self.partition_bounds(rank, world_size)
        if first >= end:
            return []
        size = self.partition_size(saved_world_size)
        overlapping = range(first // size, (end - 1) // size + 1)
        return [(saved, max(first, saved * size), min(end, (saved + 1) * size)) for saved in overlapping]


@dataclass(frozen=True)
class FlatLayout:
    """All optimizer groups."""

    groups: tuple[FlatGroup, ...]

    @classmethod
    def of(
        cls, groups: Sequence[Sequence[tuple[str, Sequence[int]]]], *, channels_last: Collection[str] = ()
    ) -> FlatLayout:
        """Lay out groups of (name, shape).

        Args:
            groups: Names and shapes of the parameters of each group.
            channels_last: Names of those in NHWC order.
        """
        laid = []
        for group in groups:
            offset = 0
            parameters = []
            for name, shape in group:
                edges = tuple(int(edge) for edge in shape)
                parameter = FlatParameter(name, edges, offset, name in channels_last)
                parameters.append(parameter)
                offset += parameter.numel
            laid.append(FlatGroup(tuple(parameters)))
        return cls(tuple(laid))

    def to_document(self) -> list[list[dict[str, Any]]]:
        """Return the layout as stored in a checkpoint's state.json."""
        return [
            [
                {"name": p.name, "shape": list(p.shape), "offset": p.offset}
                | ({"channels_last": True} if p.channels_last else {})
                for p in group.parameters
            ]
            for group in self.groups
        ]

    @classmethod
    def from_document(cls, document: Sequence[Sequence[Mapping[str, Any]]]) -> FlatLayout:
        """Read the result of `to_document`."""
        last = {entry["name"] for group in document for entry in group if entry.get("channels_last")}
        return cls.of([[(entry["name"], entry["shape"]) for entry in group] for group in document], channels_last=last)

    def regroups(self, saved: FlatLayout) -> bool:
        """Whether a checkpoint has this model's parameters in other groups, as with another kind of weight decay."""
        mine, theirs = ({(p.name, p.shape) for group in one.groups for p in group.parameters} for one in (self, saved))
        return mine == theirs and saved._plain() != self._plain()

    def require_same(self, saved: FlatLayout, *, where: str) -> None:
        """Check that a checkpoint has this model's parameters; the order of their elements may differ.

        Raises:
            CheckpointError: It has not; names the first parameter that differs.
        """
        if saved._plain() == self._plain():
            return
        mine = {p.name: p.shape for group in self.groups for p in group.parameters}
        theirs = {p.name: p.shape for group in saved.groups for p in group.parameters}
        for name in [*theirs, *mine]:
            if mine.get(name) != theirs.get(name):
                raise CheckpointError(
                    f"the checkpoint is of another network: {name} is {theirs.get(name, 'absent')} in the checkpoint, "
                    f"{mine.get(name, 'absent')} in the configured network",
                    where=where,
                    hint="use the config of the run, or another --run-dir",
                )
        raise CheckpointError("the checkpoint groups or orders the parameters differently", where=where)

    def _plain(self) -> FlatLayout:
        """Return the same parameters, all of them in the order of their axes."""
        return FlatLayout.of([[(p.name, p.shape) for p in group.parameters] for group in self.groups])


def gather_named(layout: FlatLayout, partitions: Sequence[Tensor], world: World) -> dict[str, Tensor] | None:
    """Join slices of all ranks into full fp32 tensors by name on rank 0; None elsewhere. Collective.

    Args:
        layout: The place of each parameter.
        partitions: This rank's slices, one per group. With one rank on the CPU the result may be views of them, and
            not contiguous.
        world: The job, in any of its process groups.
    """
    named: dict[str, Tensor] = {}
    for group, partition in zip(layout.groups, partitions, strict=True):
        flat = world.gather(partition.detach().to("cpu", torch.float32).contiguous())
        if flat is None:
            continue
        for parameter in group.parameters:
            named[parameter.name] = parameter.unflatten(flat[parameter.offset : parameter.offset + parameter.numel])
    return named if world.rank == 0 else None
