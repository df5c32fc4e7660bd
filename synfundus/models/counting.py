"""Counts a network's parameters, operations and saved activations on the meta device: nothing is computed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class NetworkCount:
    """What a network needs for one forward and backward pass.

    Attributes:
        parameters: Number of trainable parameters.
        flops_forward: Operations of the forward pass; a multiply-add counts as two.
        flops_recomputed: Operations the backward pass repeats because of gradient checkpointing; 0 without it. Whole
            blocks are counted, although torch stops at the last tensor it needs.
        activation_bytes: Tensors saved for the backward pass, without parameters, in the network's precision.
    """

    parameters: int
    flops_forward: int
    flops_recomputed: int
    activation_bytes: int


class _FusedAttention(torch.autograd.Function):
    """Saves what a fused attention kernel saves: its inputs and its output, not the attention weights."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ANN401 - torch's own
        """Return an output of the right shape."""
        output = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
        context.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        """Return gradients of the right shapes."""
        del gradients
        return tuple(torch.empty_like(tensor) for tensor in context.saved_tensors[:3])


class _CountAttention(TorchFunctionMode):
    """Replaces ``scaled_dot_product_attention``: on the meta device torch has only the unfused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        """Count attention; run everything else unchanged."""
        del types
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs or {})
        query, key, value = named["query"], named["key"], named["value"]
        pairs = query.shape[:-1].numel() * key.shape[-2]
        self.flops += 2 * pairs * (query.shape[-1] + value.shape[-1])
        return _FusedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]


class _CountCheckpoints:
    """Counts operations under `torch.utils.checkpoint`, which the backward pass repeats.

    Those of a nested checkpoint count twice, as they are repeated twice.

    Args:
        so_far: Returns the operations counted so far.
    """

    def __init__(self, so_far: Callable[[], int]) -> None:
        self.so_far = so_far
        self.flops = 0
        self._checkpoint = torch.utils.checkpoint.checkpoint

    def _counted(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the function returns
        before = self.so_far()
        result = self._checkpoint(*args, **kwargs)
        self.flops += self.so_far() - before
        return result

    def __enter__(self) -> None:
        torch.utils.checkpoint.checkpoint = self._counted  # networks look it up there at each call

    def __exit__(self, *_: object) -> None:
        torch.utils.checkpoint.checkpoint = self._checkpoint


def meta_copy(network: Network) -> Network:
    """Return a copy of a network on the meta device, without copying its weights."""
    tensors: dict[int, Tensor] = {
        id(own): nn.Parameter(torch.empty_like(own, device="meta"), requires_grad=own.requires_grad)
        for own in network.parameters()
    }
    tensors |= {id(own): torch.empty_like(own, device="meta") for own in network.buffers()}
    return copy.deepcopy(network, tensors)


def count_network(network: nn.Module, *inputs: Tensor) -> NetworkCount:
    """Count a network on the meta device.

    Args:
        network: On the meta device, in the precision of the run.
        inputs: Its arguments, also on the meta device.
    """
    own = {tensor.untyped_storage()._cdata for tensor in network.parameters()}
    kept: dict[int, int] = {}
    alive: list[Any] = []  # a freed storage's address would be reused

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    counter, attention = FlopCounterMode(display=False), _CountAttention()
    checkpoints = _CountCheckpoints(lambda: int(counter.get_total_flops()) + attention.flops)
    with checkpoints, counter, attention, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(*inputs)
    alive.append(output)
    return NetworkCount(
        parameters=sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
        flops_forward=checkpoints.so_far(),
        flops_recomputed=checkpoints.flops,
        activation_bytes=sum(kept.values()),
    )
