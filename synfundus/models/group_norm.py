"""Group normalisation that keeps NHWC memory on a GPU, forward and backward.

CUDA's kernel of torch up to 2.14 returns NCHW whatever it gets (pytorch issue 111824), so every convolution after it
converts its input back. Both passes here read and write NHWC rows ``[n, h*w, c]`` and need two operations alone: sums
over the rows of an image, and a combination of two tensors with factors for each image and channel.

Source: Wu and He 2018, "Group Normalization"; the gradient as in torch's own kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Sums = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Combination = Callable[[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None], Tensor]


@dataclass(frozen=True)
class RowOperations:
    """The two operations on rows ``[n, r, c]``.

    Attributes:
        sums: ``(a, b)`` -> the sums over the rows of ``a`` and of ``a * b``, ``[n, c]``, fp32.
        combine: ``(a, p, s, (b, q))`` -> ``a * p + s + b * q`` in fp32, rounded to the type of ``a``; p, s and q are
            ``[n, c]``, fp32; without the pair ``a * p + s``.
    """

    sums: Sums
    combine: Combination


def _sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = a.float(), b.float()
    return a.sum(dim=1), (a * b).sum(dim=1)


def _combine(a: Tensor, p: Tensor, s: Tensor, more: tuple[Tensor, Tensor] | None) -> Tensor:
    result = a.float() * p[:, None] + s[:, None]
    if more is not None:
        b, q = more
        result = result + b.float() * q[:, None]
    return result.to(a.dtype)


PLAIN = RowOperations(_sums, _combine)
"""In torch's own operations: any device, slow."""


def statistics(sums: Tensor, squares: Tensor, *, rows: int, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return the mean and the reciprocal standard deviation of each group, both ``[n, g]``.

    Args:
        sums: Sum of each channel ``[n, c]``.
        squares: Sum of the squares of each channel ``[n, c]``.
        rows: Positions they were summed over.
        groups: Number of groups.
        eps: Added to the variance.
    """
    count = rows * sums.shape[1] // groups
    mean = over_groups(sums, groups) / count
    variance = over_groups(squares, groups) / count - mean.square()
    return mean, (variance.clamp(min=0.0) + eps).rsqrt()


def over_groups(values: Tensor, groups: int) -> Tensor:
    """Add up the channels ``[n, c]`` of each group: ``[n, g]``."""
    return values.reshape(len(values), groups, -1).sum(dim=2)


def by_channel(values: Tensor, channels: int) -> Tensor:
    """Repeat a value of each group ``[n, g]`` for its channels: ``[n, c]``."""
    return values.repeat_interleave(channels // values.shape[1], dim=1)


class _NormOfRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context is untyped
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        operations: RowOperations,
    ) -> Tensor:
        """Normalise rows ``[n, r, c]``."""
        channels = x.shape[2]
        sums, squares = operations.sums(x, x)
        mean, rstd = statistics(sums, squares, rows=x.shape[1], groups=groups, eps=eps)
        scale = by_channel(rstd, channels) * weight.float()
        shift = bias.float() - by_channel(mean, channels) * scale
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.operations = operations
        return operations.combine(x, scale, shift, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of the rows, the weight and the bias."""
        x, weight, mean, rstd = ctx.saved_tensors
        grad = grad.contiguous()
        groups, channels = mean.shape[1], x.shape[2]
        count = x.shape[1] * channels // groups
        sums, products = ctx.operations.sums(grad, x)
        weighted = weight.float()
        of_grad, of_product = over_groups(sums * weighted, groups), over_groups(products * weighted, groups)
        q = (of_grad * mean - of_product) * rstd.pow(3) / count
        s = -q * mean - of_grad * rstd / count
        p, q, s = by_channel(rstd, channels) * weighted, by_channel(q, channels), by_channel(s, channels)
        of_x = ctx.operations.combine(grad, p, s, (x, q))
        of_weight = ((products - by_channel(mean, channels) * sums) * by_channel(rstd, channels)).sum(dim=0)
        return of_x, of_weight.to(weight.dtype), sums.sum(dim=0).to(weight.dtype), None, None, None


def norm_of_rows(
    x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, eps: float, operations: RowOperations
) -> Tensor:
    """Normalise rows ``[n, r, c]`` in groups of channels, each image for itself.

    Args:
        x: Contiguous.
        weight: Scale of each channel ``[c]``.
        bias: Shift of each channel ``[c]``.
        groups: Number of groups.
        eps: Added to the variance.
        operations: Kernels.
    """
    normalised: Tensor = _NormOfRows.apply(x, weight, bias, groups, eps, operations)  # type: ignore[no-untyped-call]
    return normalised


class ChannelsLastGroupNorm(nn.GroupNorm):
    """A group norm that keeps the NHWC memory of an image; for anything else torch's own.

    Compiled, too, it is torch's own: inductor writes a kernel in the layout around it.

    Attributes:
        operations: Kernels.
    """

    operations: RowOperations = PLAIN

    @classmethod
    def of(cls, norm: nn.GroupNorm, operations: RowOperations) -> ChannelsLastGroupNorm:
        """Return a norm with the same parameters."""
        made = cls(norm.num_groups, norm.num_channels, norm.eps, affine=False)
        made.affine, made.operations = norm.affine, operations
        made.weight, made.bias = norm.weight, norm.bias
        return made.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``[n, c, h, w]``, or any other shape by torch's own."""
        ours = (
            self.affine
            and input.ndim == 4
            and input.is_contiguous(memory_format=torch.channels_last)
            and not input.is_contiguous()
            and not torch.compiler.is_compiling()
        )
        if not ours:
            return super().forward(input)
        if torch.is_autocast_enabled(input.device.type):
            input = input.float()  # as autocast has torch's own do
        rows = input.permute(0, 2, 3, 1).flatten(1, 2)
        normalised = norm_of_rows(
            rows, self.weight, self.bias, groups=self.num_groups, eps=self.eps, operations=self.operations
        )
        images, channels, height, width = input.shape
        return normalised.view(images, height, width, channels).permute(0, 3, 1, 2)
