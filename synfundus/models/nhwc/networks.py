"""NHWC memory through a whole network of diffusers, where a GPU's convolutions want it.

cuDNN's kernels for tensor cores compute in NHWC and convert what comes as NCHW, before and after each convolution. Two
things in the way turn NHWC into NCHW: CUDA's group norm, and a transformer block's last line. Both are replaced here by
what gives the same values; with NCHW memory the network computes as before.
"""

from __future__ import annotations

import types
from collections.abc import Callable

import torch
from torch import Tensor, nn

from synfundus.models.attention import reason_of
from synfundus.models.diffusers_classes import Transformer2DModel
from synfundus.models.nhwc.group_norm import ChannelsLastGroupNorm, RowOperations


def keep_channels_last_on(
    device: torch.device, *networks: nn.Module, say: Callable[[str], None], weights: bool = False
) -> None:
    """Have networks of diffusers keep NHWC memory where a device gains by it: on a GPU.

    Args:
        device: Where they are.
        networks: Changed in place; they gain only by weights in NHWC memory.
        say: Called with the reason if their group norms cannot keep NHWC there.
        weights: Whether to turn the weights, for inference alone: they cannot be saved like this.
    """
    if device.type != "cuda":
        return
    operations = kernels_for(device, say=say)
    for network in networks:
        keep_channels_last(network, operations)
        if weights:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def keep_channels_last(network: nn.Module, operations: RowOperations | None) -> None:
    """Have a network of diffusers keep NHWC memory where its input has it.

    Args:
        network: Changed in place; its parameters and their names stay.
        operations: Kernels for the group norms; None leaves torch's own in place.
    """
    for module in list(network.modules()):
        if isinstance(module, Transformer2DModel):
            module._get_output_for_continuous_inputs = types.MethodType(_output_of_transformer, module)
        if operations is None:
            continue
        for name, child in module.named_children():
            if type(child) is nn.GroupNorm:
                setattr(module, name, ChannelsLastGroupNorm.of(child, operations))


def kernels_for(device: torch.device, *, say: Callable[[str], None]) -> RowOperations | None:
    """Return the kernels for group norms on a device; None where they do not run, or torch's own keep NHWC memory.

    Args:
        device: Any.
        say: Called with the reason if they do not run: Triton compiles them with a C compiler and Python's headers.
    """
    if device.type != "cuda" or native_norm_keeps(device):
        return None
    try:
        from synfundus.models.nhwc.row_kernels import TritonOperations

        operations, rows = TritonOperations(), torch.zeros(1, 2, 2, device=device)
        operations.sums(rows, rows)
    except Exception as error:  # noqa: BLE001 - whatever a compiler, its headers or a cache folder may raise
        say(
            f"group norms turn NHWC memory into NCHW, which costs time: their kernels do not run ({reason_of(error)}); "
            "install triton, a C compiler and Python's headers"
        )
        return None
    return operations


def native_norm_keeps(device: torch.device) -> bool:
    """Whether torch's group norm returns NHWC for NHWC on a device."""
    image = torch.zeros(1, 2, 2, 2, device=device).contiguous(memory_format=torch.channels_last)
    normalised = nn.functional.group_norm(image, 1)
    return normalised.is_contiguous(memory_format=torch.channels_last)


def _output_of_transformer(
    block: Transformer2DModel,
    hidden_states: Tensor,
    residual: Tensor,
    batch_size: int,
    height: int,
    width: int,
    inner_dim: int,
) -> Tensor:
    """Add what a transformer block computed to its input; tokens are NHWC memory already, so it only needs a view."""

    def image(tokens: Tensor) -> Tensor:
        return tokens.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)

    if block.use_linear_projection:
        update = image(block.proj_out(hidden_states))
    else:
        update = block.proj_out(image(hidden_states))
    if residual.is_contiguous():
        update = update.contiguous()
    return update + residual
