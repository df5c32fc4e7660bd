"""A network's parameters, operations and kept activations, counted on the meta device: nothing is computed."""

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
        parameters: Numbers that are trained.
        flops_forward: Operations of the forward pass, a multiply-add as two.
        flops_recomputed: Operations the backward pass does again because the network checkpoints them; 0 if it does
            not. Whole blocks are counted, though torch stops at the last tensor that it needs.
        activation_bytes: What is kept for the backward pass, parameters aside, in the precision of the network.
    """

    parameters: int
    flops_forward: int
    flops_recomputed: int
    activation_bytes: int


class _FusedAttention(torch.autograd.Function):
    """What a fused kernel keeps of attention: its inputs and its output, not the weights of all pairs."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ANN401 - torch's own
        """Return the output's shape."""
        output = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
        context.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        """Return the gradients' shapes."""
        del gradients
        return tuple(torch.empty_like(tensor) for tensor in context.saved_tensors[:3])


class _CountAttention(TorchFunctionMode):
    """Stands in for ``scaled_dot_product_attention``: on the meta device torch has only the kernel that keeps all."""

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
        """Count attention, and let everything else pass."""
        del types
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs or {})
        query, key, value = named["query"], named["key"], named["value"]
        pairs = query.shape[:-1].numel() * key.shape[-2]
        self.flops += 2 * pairs * (query.shape[-1] + value.shape[-1])
        return _FusedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]


class _CountCheckpoints:
    """Counts what is computed under `torch.utils.checkpoint`: the backward pass computes it again.

    A checkpoint within a checkpoint is counted twice, as it is computed.

    Args:
        so_far: Returns the operations counted until now.
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
        torch.utils.checkpoint.checkpoint = self._counted  # networks look it up there when they call it

    def __exit__(self, *_: object) -> None:
        torch.utils.checkpoint.checkpoint = self._checkpoint


def meta_copy(network: Network) -> Network:
    """Return a copy of a network on the meta device; its weights are not copied on the way."""
    tensors: dict[int, Tensor] = {
        id(own): nn.Parameter(torch.empty_like(own, device="meta"), requires_grad=own.requires_grad)
        for own in network.parameters()
    }
    tensors |= {id(own): torch.empty_like(own, device="meta") for own in network.buffers()}
    return copy.deepcopy(network, tensors)


def count_network(network: nn.Module, *inputs: Tensor) -> NetworkCount:
    """Count a network on the meta device.

    Args:
        network: On the meta device, in the precision it will have.
        inputs: Its arguments, on the meta device too.
    """
    own = {tensor.untyped_storage()._cdata for tensor in network.parameters()}
    kept: dict[int, int] = {}
    alive: list[Any] = []  # a storage that is gone would lend its address to the next

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
