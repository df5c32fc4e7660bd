"""A group norm of ours beside torch's own: values and gradients of the same image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synfundus.models.nhwc.group_norm import ChannelsLastGroupNorm, PlainOperations, RowOperations

PLAIN = PlainOperations()
SHAPES = [(2, 64, 5, 7), (3, 96, 16, 16), (1, 32, 1, 9), (2, 160, 33, 20)]
Gradients = tuple[Tensor, Tensor, Tensor]


def of(norm: nn.GroupNorm, image: Tensor, towards: Tensor) -> tuple[Tensor, Gradients]:
    """Return what a norm makes of an image, and the gradients of its product with another."""
    leaf = image.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    norm.zero_grad()
    normalised = norm(leaf)
    torch.autograd.backward((normalised.float() * towards).sum())
    assert leaf.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    return normalised.detach(), (leaf.grad, norm.weight.grad.clone(), norm.bias.grad.clone())


def both(
    shape: tuple[int, ...], dtype: torch.dtype, *, offset: float = 0.0, operations: RowOperations = PLAIN
) -> tuple[tuple[Tensor, Gradients], tuple[Tensor, Gradients]]:
    """Return what our norm and torch's own, in fp64, make of the same image."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(32, shape[1])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.to(dtype)
    image = (torch.randn(shape) + offset).to(dtype).contiguous(memory_format=torch.channels_last)
    towards = torch.randn(shape)
    mine = of(ChannelsLastGroupNorm.of(norm, operations), image, towards)
    return mine, of(norm.double(), image.double(), towards.double())


def close(mine: Tensor, theirs: Tensor, *, part: float) -> None:
    """Compare two tensors; the largest difference is a part of the largest value."""
    assert float((mine.double() - theirs).abs().max()) <= part * float(theirs.abs().max())


def check_operations(operations: RowOperations) -> None:
    """Compare operations with torch's own norm on images of all sizes, forward and backward."""
    for dtype, part in ((torch.float32, 2e-6), (torch.bfloat16, 8e-3)):
        for shape in [*SHAPES, (1, 64, 40, 20)]:
            (mine, gradients), (theirs, wanted) = both(shape, dtype, operations=operations)
            close(mine, theirs, part=part)
            for ours, own in zip(gradients, wanted, strict=True):
                close(ours, own, part=part)
