"""What is lost when the gradients of many ranks are added in bf16, hop by hop. Pure.

DeepSpeed divides each rank's gradient by the number of ranks and has them added in the precision of the weights. In a
ring a sum grows by one rank a hop and is rounded each time, until it is far larger than what is added to it; in a tree
both sides of an addition are alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from synfundus.seeding import keyed_generator

ELEMENTS = 4096


def gradients(ranks: int, *, spread: float) -> Tensor:
    """Return bf16 gradients of so many ranks, of mean 1 and a standard deviation, ``[ranks, ELEMENTS]``."""
    noise = keyed_generator(0, "rounding", index=ranks).standard_normal((ranks, ELEMENTS))
    return (1.0 + spread * torch.from_numpy(noise)).to(torch.bfloat16)


def ring_mean(gradient: Tensor) -> Tensor:
    """Return the mean over ranks as a ring adds it: one after the other, rounded each time."""
    parts = gradient.div(len(gradient))
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def tree_mean(gradient: Tensor) -> Tensor:
    """Return the mean over a power of two of ranks as a tree adds it: pair by pair."""
    parts = gradient.div(len(gradient))
    while len(parts) > 1:
        parts = parts[::2] + parts[1::2]
    return parts[0]


def relative_error(found: Tensor, gradient: Tensor) -> float:
    """Return the root mean square of what is wrong, over that of the exact mean."""
    exact = gradient.double().mean(0)
    return float((found.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())
