"""NHWC memory through a whole network of diffusers, where a GPU's convolutions want it.

cuDNN's kernels for tensor cores compute in NHWC and convert what comes as NCHW, before and after each convolution. Two
things in the way turn NHWC into NCHW: CUDA's group norm, and a transformer block's last line. Both are replaced here by
what gives the same values; with NCHW memory the network computes as before.
"""

from __future__ import annotations

import types

import torch
from torch import Tensor, nn

from synfundus.models.diffusers_classes import Transformer2DModel
from synfundus.models.nhwc.group_norm import ChannelsLastGroupNorm, RowOperations


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


def kernels_for(device: torch.device, dtype: torch.dtype) -> RowOperations | None:
    """Return the kernels for group norms, after a trial; None on a CPU, or where torch's own keep NHWC memory.

    Args:
        device: Where they are to run.
        dtype: Type of the images.

    Raises:
        Exception: Whatever Triton, the C compiler it starts, Python's headers, its cache folder or the GPU may raise.
    """
    if device.type != "cuda" or native_norm_keeps(device):
        return None
    from synfundus.models.nhwc.row_kernels import TritonOperations

    operations = TritonOperations()
    norm = ChannelsLastGroupNorm.of(nn.GroupNorm(32, 64, device=device, dtype=dtype), operations)
    image = torch.zeros(2, 64, 16, 16, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.enable_grad():
        torch.autograd.backward(norm(image.requires_grad_()).float().sum())
    torch.cuda.synchronize(device)
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
