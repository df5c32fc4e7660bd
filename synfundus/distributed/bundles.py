"""Many small parameters in a few flat ones: ZeRO-2 does work per tensor in every step, whatever its size.

A U-Net has hundreds of biases and norm scales. For a small one on a CPU, ZeRO-2's work per tensor took a fifth of a
step. Here consecutive parameters of an optimizer group share one flat parameter up to a limit; the module computes with
views of it, and autograd joins the gradients of a bundle in one copy. A tensor above the limit is a bundle by itself,
so that gradients are still reduced and freed in pieces during the backward pass. The flat vector that ZeRO-2 partitions
is the same, element by element, as without bundles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NamedParameters = Sequence[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class _Piece:
    """A parameter in a bundle: the modules and attribute names that use it, more than one if it is shared."""

    owners: tuple[tuple[nn.Module, str], ...]
    shape: torch.Size
    size: int


def plan_bundles(sizes: Sequence[int], *, max_elements: int) -> list[range]:
    """Split parameters into consecutive runs of at most ``max_elements``; a larger parameter is a run by itself.

    Args:
        sizes: Number of elements of each parameter.
        max_elements: Limit of a bundle.
    """
    runs: list[range] = []
    first = total = 0
    for number, size in enumerate(sizes):
        if number > first and total + size > max_elements:
            runs.append(range(first, number))
            first, total = number, 0
        total += size
    return [*runs, range(first, len(sizes))] if sizes else []


class BundledModule(nn.Module):
    """A module whose trainable parameters are views of flat ones.

    The module itself is not registered as a submodule: ``parameters()`` returns the bundles alone.

    Args:
        module: What is trained.
        groups: Optimizer groups as lists of (name, parameter), together all trainable parameters of the module.
        max_elements: Most elements of a bundle of several parameters.
    """

    def __init__(self, module: nn.Module, groups: Sequence[NamedParameters], *, max_elements: int) -> None:
        super().__init__()
        self._module = [module]  # in a list: torch would register it
        owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    owners.setdefault(parameter, []).append((part, name))
        self.bundles = nn.ParameterList()
        self._pieces: list[list[_Piece]] = []
        self.groups: list[list[nn.Parameter]] = []
        for group in groups:
            parameters = [parameter for _, parameter in group]
            bundled: list[nn.Parameter] = []
            for run in plan_bundles([p.numel() for p in parameters], max_elements=max_elements):
                members = parameters[run.start : run.stop]
                flat = nn.Parameter(torch.cat([member.detach().reshape(-1) for member in members]))
                bundled.append(flat)
                self.bundles.append(flat)
                self._pieces.append([_Piece(tuple(owners[member]), member.shape, member.numel()) for member in members])
            self.groups.append(bundled)

    @property
    def module(self) -> nn.Module:
        """The module."""
        return self._module[0]

    def bind(self) -> None:
        """Replace the module's parameters by views of the bundles."""
        for flat, pieces in zip(self.bundles, self._pieces, strict=True):
            views: Sequence[Tensor] = flat.split([piece.size for piece in pieces])
            for view, piece in zip(views, pieces, strict=True):
                # most are vectors already; each view saved is an autograd node saved
                shaped = view if len(piece.shape) == 1 else view.view(piece.shape)
                for owner, name in piece.owners:
                    owner._parameters[name] = shaped  # type: ignore[assignment]  # a view serves as a parameter

    def forward(self, *inputs: Any) -> Any:  # noqa: ANN401 - whatever the module takes and returns
        """Run the module on views of the bundles."""
        self.bind()
        return self.module(*inputs)
