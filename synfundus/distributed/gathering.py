"""Joins the slices of all ranks into the tensors of a network, on rank 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from synfundus.distributed.flat_layout import FlatLayout
from synfundus.distributed.world import World


def gather_named(layout: FlatLayout, partitions: Sequence[Tensor], world: World) -> dict[str, Tensor] | None:
    """Join slices of all ranks into full fp32 tensors by name on rank 0; None elsewhere. Collective.

    Args:
        layout: The place of each parameter.
        partitions: This rank's slices, one per group. With one rank on the CPU the result may be views of them.
        world: The job, in any of its process groups.
    """
    named: dict[str, Tensor] = {}
    for group, partition in zip(layout.groups, partitions, strict=True):
        flat = world.gather(partition.detach().to("cpu", torch.float32).contiguous())
        if flat is None:
            continue
        for parameter in group.parameters:
            named[parameter.name] = flat[parameter.offset : parameter.offset + parameter.numel].view(parameter.shape)
    return named if world.rank == 0 else None
