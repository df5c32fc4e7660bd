"""The operations of `group_norm` as Triton kernels. The only module that imports triton; for a GPU."""

# ruff: noqa: ANN001, ANN202 - the arguments of a kernel are addresses, not tensors

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from synfundus.models.group_norm import RowOperations

_ROWS = 32
_CHANNELS = 64
_STEPS = 8
"""Blocks of rows that one program adds up."""


@triton.jit  # type: ignore[untyped-decorator]
def _sum_kernel(  # type: ignore[no-untyped-def]
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
def _combine_kernel(  # type: ignore[no-untyped-def]
    a, p, s, b, q, out, rows, channels, BOTH: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
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


def _sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    grid = _grid(a, _ROWS * _STEPS)
    images, parts, _ = grid
    shape = (images, parts, a.shape[2])
    sums, products = (torch.empty(shape, dtype=torch.float32, device=a.device) for _ in range(2))
    kernel: Any = _sum_kernel
    kernel[grid](a, b, sums, products, a.shape[1], a.shape[2], parts, ROWS=_ROWS, CHANNELS=_CHANNELS, STEPS=_STEPS)
    return (sums[:, 0], products[:, 0]) if parts == 1 else (sums.sum(dim=1), products.sum(dim=1))


def _combine(a: Tensor, p: Tensor, s: Tensor, more: tuple[Tensor, Tensor] | None) -> Tensor:
    out = torch.empty_like(a)
    b, q = (a, p) if more is None else more
    factors = [values.contiguous() for values in (p, s, q)]
    kernel: Any = _combine_kernel
    sizes = {"BOTH": more is not None, "ROWS": _ROWS, "CHANNELS": _CHANNELS}
    kernel[_grid(a, _ROWS)](a, *factors[:2], b, factors[2], out, a.shape[1], a.shape[2], **sizes)
    return out


TRITON = RowOperations(_sums, _combine)
