"""Which 3x3 convolutions of a network get NHWC memory: input and weight, else cuDNN transposes around them."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


class ConvLayouts:
    """Looks at what the 3x3 convolutions of a network are given while it is entered.

    Args:
        network: Any module.
    """

    def __init__(self, network: nn.Module) -> None:
        self._convolutions = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
        }
        self._nhwc: dict[str, bool] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> ConvLayouts:
        for name, module in self._convolutions.items():

            def look(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                given: tuple[Any, ...] = (inputs[0], module.weight)  # the engine puts views in the place of parameters
                self._nhwc[name] = all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in given)

            self._hooks.append(module.register_forward_pre_hook(look))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    @property
    def counted(self) -> tuple[int, int]:
        """Return how many got NHWC at their last call, and how many were called."""
        return sum(self._nhwc.values()), len(self._nhwc)

    @property
    def others(self) -> list[str]:
        """Return the names of the rest of them."""
        return [name for name, nhwc in self._nhwc.items() if not nhwc]
