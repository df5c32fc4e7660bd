"""The operations of `group_norm` as Triton kernels. The only module that imports triton; for a GPU."""

# ruff: noqa: ANN001, ANN202 - the arguments of a kernel are addresses, not tensors
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 32
_CHANNELS = 64
_STEPS = 8
"""Blocks of rows that one program adds up."""


@triton.jit  # type: ignore[untyped-decorator]
def _sum_kernel(
    a, b, sums, products, rows, channels, parts, ROWS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr
):
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros((CHANNELS,), tl.float32)
    product = tl.zeros((CHANNELS,), tl.float32)
    for step in range(STEPS):
        row = (part * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = (row[:, None] < rows) & (channel[None, :] < channels)
        at = (image * rows + row[:, None]) * channels + channel[None, :]
        u = tl.load(a + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(b + at, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(u, axis=0)
        product += tl.sum(u * v, axis=0)
    out = (image * parts + part) * channels + channel
    tl.store(sums + out, total, mask=channel < channels)
    tl.store(products + out, product, mask=channel < channels)


@triton.jit  # type: ignore[untyped-decorator]
def _over_parts(values, image, channels, channel, inside, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    total = tl.zeros((WIDTH,), tl.float32)
    for part in range(PARTS):
        total += tl.load(values + (image * PARTS + part) * channels + channel, mask=inside, other=0.0)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _scale_kernel(
    sums, squares, weight, bias, scales, shifts, means, rstds, rows, groups, width, eps, PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    image, group = tl.program_id(0), tl.program_id(1)
    offset = tl.arange(0, WIDTH)
    inside = offset < width
    channel, channels = group * width + offset, groups * width
    count = (rows * width).to(tl.float32)
    mean = tl.sum(_over_parts(sums, image, channels, channel, inside, PARTS, WIDTH), axis=0) / count
    square = tl.sum(_over_parts(squares, image, channels, channel, inside, PARTS, WIDTH), axis=0) / count
    rstd = 1.0 / tl.sqrt(tl.maximum(square - mean * mean, 0.0) + eps)
    scale = rstd * tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32) - mean * scale
    tl.store(scales + image * channels + channel, scale, mask=inside)
    tl.store(shifts + image * channels + channel, shift, mask=inside)
    tl.store(means + image * groups + group, mean)
    tl.store(rstds + image * groups + group, rstd)


@triton.jit  # type: ignore[untyped-decorator]
def _gradient_kernel(
    sums, products, weight, means, rstds, ps, ss, qs, of_weight, of_bias, rows, groups, width,
    PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    image, group = tl.program_id(0), tl.program_id(1)
    offset = tl.arange(0, WIDTH)
    inside = offset < width
    channel, channels = group * width + offset, groups * width
    count = (rows * width).to(tl.float32)
    total = _over_parts(sums, image, channels, channel, inside, PARTS, WIDTH)
    product = _over_parts(products, image, channels, channel, inside, PARTS, WIDTH)
    scale = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    mean, rstd = tl.load(means + image * groups + group), tl.load(rstds + image * groups + group)
    of_grad, of_product = tl.sum(total * scale, axis=0), tl.sum(product * scale, axis=0)
    q = (of_grad * mean - of_product) * rstd * rstd * rstd / count
    s = -q * mean - of_grad * rstd / count
    at = image * channels + channel
    tl.store(ps + at, rstd * scale, mask=inside)
    tl.store(ss + at, tl.zeros((WIDTH,), tl.float32) + s, mask=inside)
    tl.store(qs + at, tl.zeros((WIDTH,), tl.float32) + q, mask=inside)
    tl.store(of_weight + at, (product - mean * total) * rstd, mask=inside)
    tl.store(of_bias + at, total, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _combine_kernel(a, p, s, b, q, out, rows, channels, BOTH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (row[:, None] < rows) & (channel[None, :] < channels)
    at = (image * rows + row[:, None]) * channels + channel[None, :]
    of = image * channels + channel
    known = channel < channels
    factor = tl.load(p + of, mask=known, other=0.0)
    shift = tl.load(s + of, mask=known, other=0.0)
    result = tl.load(a + at, mask=inside, other=0.0).to(tl.float32) * factor[None, :] + shift[None, :]
    if BOTH:
        factor = tl.load(q + of, mask=known, other=0.0)
        result += tl.load(b + at, mask=inside, other=0.0).to(tl.float32) * factor[None, :]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def _grid(x: Tensor, rows_a_program: int) -> tuple[int, int, int]:
    return x.shape[0], triton.cdiv(x.shape[1], rows_a_program), triton.cdiv(x.shape[2], _CHANNELS)


def _run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **sizes: Any) -> None:  # noqa: ANN401 - untyped
    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device, which each thread has its own of
        kernel[grid](*arguments, **sizes)


def _fresh(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


class TritonOperations:
    """See `RowOperations`. No atomic operation: the same bits every time."""

    def sums(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """See `RowOperations`."""
        grid = _grid(a, _ROWS * _STEPS)
        images, parts, _ = grid
        rows, channels = a.shape[1:]
        sums, products = (_fresh(a, images, parts, channels) for _ in range(2))
        sizes = {"ROWS": _ROWS, "CHANNELS": _CHANNELS, "STEPS": _STEPS}
        _run(_sum_kernel, grid, a, b, sums, products, rows, channels, parts, **sizes)
        return sums, products

    def scale_and_shift(
        self, sums: Tensor, squares: Tensor, weight: Tensor, bias: Tensor, *, rows: int, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `RowOperations`."""
        images, parts, channels = sums.shape
        of_channels, of_groups = _fresh(sums, 2, images, channels), _fresh(sums, 2, images, groups)
        width = channels // groups
        numbers = (rows, groups, width, eps)
        weights = (weight.contiguous(), bias.contiguous())
        made = (*of_channels.unbind(), *of_groups.unbind())
        block = triton.next_power_of_2(width)
        _run(_scale_kernel, (images, groups), sums, squares, *weights, *made, *numbers, PARTS=parts, WIDTH=block)
        scale, shift, mean, rstd = made
        return scale, shift, mean, rstd

    def gradients(
        self, sums: Tensor, products: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, *, rows: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """See `RowOperations`."""
        (images, parts, channels), groups = sums.shape, mean.shape[1]
        made = _fresh(sums, 5, images, channels).unbind()
        width = channels // groups
        known = (sums, products, weight.contiguous(), mean, rstd)
        block = triton.next_power_of_2(width)
        _run(_gradient_kernel, (images, groups), *known, *made, rows, groups, width, PARTS=parts, WIDTH=block)
        p, s, q, of_weight, of_bias = made
        return p, s, q, of_weight, of_bias

    def combine(self, a: Tensor, p: Tensor, s: Tensor, more: tuple[Tensor, Tensor] | None) -> Tensor:
        """See `RowOperations`."""
        out = torch.empty_like(a)
        b, q = (a, p) if more is None else more
        sizes = {"BOTH": more is not None, "ROWS": _ROWS, "CHANNELS": _CHANNELS}
        _run(_combine_kernel, _grid(a, _ROWS), a, p, s, b, q, out, a.shape[1], a.shape[2], **sizes)
        return out
