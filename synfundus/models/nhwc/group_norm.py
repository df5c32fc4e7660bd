"""Group normalisation that keeps NHWC memory on a GPU, forward and backward.

CUDA's kernel of torch up to 2.14 returns NCHW whatever it gets (pytorch issue 111824), so every convolution after it
converts its input back. Both passes here read and write NHWC rows ``[n, h*w, c]``: sums over the rows of an image give
factors of each channel, and the result is the rows, and in the backward pass the gradient, times those.

Source: Wu and He 2018, "Group Normalization"; the gradient as in torch's own kernels.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RowOperations(Protocol):
    """Kernels on the rows ``[n, r, c]`` of images; whatever is of a channel or a group is fp32."""

    def sums(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return sums of ``a`` and of ``a * b`` over parts of the rows, both ``[n, parts, c]``."""

    def scale_and_shift(
        self, sums: Tensor, squares: Tensor, weight: Tensor, bias: Tensor, *, rows: int, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return scale and shift ``[n, c]``, mean and reciprocal standard deviation of the groups ``[n, g]``.

        Args:
            sums: Sums of the rows ``[n, parts, c]``.
            squares: Sums of their squares ``[n, parts, c]``.
            weight: Scale of each channel ``[c]``.
            bias: Shift of each channel ``[c]``.
            rows: Number of rows r.
            groups: Number of groups g.
            eps: Added to the variance.
        """

    def gradients(
        self, sums: Tensor, products: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, *, rows: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return p, s and q, with which the rows' gradient is ``dy * p + s + x * q``, and the parameters' gradients.

        Args:
            sums: Sums of the incoming gradient dy ``[n, parts, c]``.
            products: Sums of dy times the rows x ``[n, parts, c]``.
            weight: Scale of each channel ``[c]``.
            mean: From `scale_and_shift`.
            rstd: From `scale_and_shift`.
            rows: Number of rows r.

        Returns:
            p, s, q and each image's gradient of weight and bias, all ``[n, c]``.
        """

    def combine(self, a: Tensor, p: Tensor, s: Tensor, more: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return ``a * p + s``, plus ``b * q`` if ``more`` is ``(b, q)``, computed in fp32, in the type of ``a``.

        Args:
            a: Rows.
            p: Factors ``[n, c]``.
            s: Summands ``[n, c]``.
            more: Other rows and their factors ``[n, c]``.
        """


class PlainOperations:
    """The operations in torch's own: for any device, and what the kernels are compared with."""

    def sums(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """See `RowOperations`; one part."""
        a, b = a.float(), b.float()
        return a.sum(dim=1, keepdim=True), (a * b).sum(dim=1, keepdim=True)

    def scale_and_shift(
        self, sums: Tensor, squares: Tensor, weight: Tensor, bias: Tensor, *, rows: int, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `RowOperations`."""
        channels = weight.shape[0]
        count = rows * channels // groups
        mean = _over_groups(sums.sum(dim=1), groups) / count
        variance = _over_groups(squares.sum(dim=1), groups) / count - mean.square()
        rstd = (variance.clamp(min=0.0) + eps).rsqrt()
        scale = _by_channel(rstd, channels) * weight.float()
        return scale, bias.float() - _by_channel(mean, channels) * scale, mean, rstd

    def gradients(
        self, sums: Tensor, products: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, *, rows: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """See `RowOperations`."""
        sums, products, weight = sums.sum(dim=1), products.sum(dim=1), weight.float()
        channels, groups = weight.shape[0], mean.shape[1]
        count = rows * channels // groups
        of_grad, of_product = _over_groups(sums * weight, groups), _over_groups(products * weight, groups)
        q = (of_grad * mean - of_product) * rstd.pow(3) / count
        s = -q * mean - of_grad * rstd / count
        means, rstds = _by_channel(mean, channels), _by_channel(rstd, channels)
        of_weight = (products - means * sums) * rstds
        return rstds * weight, _by_channel(s, channels), _by_channel(q, channels), of_weight, sums

    def combine(self, a: Tensor, p: Tensor, s: Tensor, more: tuple[Tensor, Tensor] | None) -> Tensor:
        """See `RowOperations`."""
        result = a.float() * p[:, None] + s[:, None]
        if more is not None:
            b, q = more
            result = result + b.float() * q[:, None]
        return result.to(a.dtype)


def _over_groups(values: Tensor, groups: int) -> Tensor:
    """Add up the channels ``[n, c]`` of each group: ``[n, g]``."""
    return values.reshape(len(values), groups, -1).sum(dim=2)


def _by_channel(values: Tensor, channels: int) -> Tensor:
    """Repeat a value of each group ``[n, g]`` for its channels: ``[n, c]``."""
    images, groups = values.shape
    return values[:, :, None].expand(images, groups, channels // groups).reshape(images, channels)


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
        """Normalise contiguous rows ``[n, r, c]`` in groups of channels, each image for itself."""
        sums, squares = operations.sums(x, x)
        rows = x.shape[1]
        scale, shift, mean, rstd = operations.scale_and_shift(
            sums, squares, weight, bias, rows=rows, groups=groups, eps=eps
        )
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.operations = operations
        return operations.combine(x, scale, shift, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Return the gradients of the rows, the weight and the bias."""
        x, weight, mean, rstd = ctx.saved_tensors
        operations: RowOperations = ctx.operations
        grad = grad.contiguous()
        sums, products = operations.sums(grad, x)
        p, s, q, of_weight, of_bias = operations.gradients(sums, products, weight, mean, rstd, rows=x.shape[1])
        of_x = operations.combine(grad, p, s, (x, q))
        return of_x, of_weight.sum(dim=0).to(weight.dtype), of_bias.sum(dim=0).to(weight.dtype), None, None, None


class ChannelsLastGroupNorm(nn.GroupNorm):
    """A group norm that keeps the NHWC memory of an image; for anything else torch's own.

    Compiled, too, it is torch's own: inductor writes a kernel in the layout around it.

    Attributes:
        operations: Kernels.
    """

    operations: RowOperations = PlainOperations()

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
        normalised: Tensor = _NormOfRows.apply(rows, self.weight, self.bias, self.num_groups, self.eps, self.operations)  # type: ignore[no-untyped-call, unused-ignore]
        images, channels, height, width = input.shape
        return normalised.view(images, height, width, channels).permute(0, 3, 1, 2)
