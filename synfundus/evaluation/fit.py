"""`fit` trains the small networks that judge images: classifiers, encoders, attacks, on one device and in memory.

The networks that generate are trained by `synfundus.training` on the engine (ADR-0002). What is fitted here is a
measuring instrument: it has no run, no checkpoint and no ranks, and is fitted again wherever it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from synfundus.errors import DataError, NumericalError
from synfundus.seeding import derive_key, keyed_generator

_WARMUP = 0.1

BatchLoss = Callable[[NDArray[np.int64], NDArray[np.int64]], Float[Tensor, ""]]
"""Loss of a batch: its samples ``[b]``, and their positions in the fit ``[b]``, by which random draws are keyed."""


@dataclass(frozen=True)
class FitRecipe:
    """How long and how fast a network is fitted.

    Attributes:
        num_samples: Samples shown, repetitions included.
        batch_size: Samples per step.
        lr: Peak learning rate of AdamW; it rises over the first tenth, then falls to 0 as a cosine.
        weight_decay: Weight decay of AdamW.
    """

    num_samples: int
    batch_size: int
    lr: float
    weight_decay: float


def fit(
    network: nn.Module,
    batch_loss: BatchLoss,
    *,
    set_size: int,
    recipe: FitRecipe,
    seed: int,
    purpose: str,
    on_step: Callable[[int, float], None],
) -> None:
    """Train a network in place and leave it in evaluation mode.

    The same arguments give the same weights on the same machine. ``batch_loss`` decides what a sample is, where it
    comes from and on which device it is computed.

    Args:
        network: The network; all its parameters are trained.
        batch_loss: Computes the loss of a batch with the network.
        set_size: Number of samples. Each epoch shows every one once, in a keyed order; a batch is never larger.
        recipe: Samples to show, batch, learning rate, weight decay.
        seed: Seed of the order.
        purpose: Purpose of the network, e.g. ``judge``; each purpose has its own order.
        on_step: Called after each step with (samples in the step, loss).

    Raises:
        DataError: There are no samples.
        NumericalError: The loss is not finite.

    Source: AdamW, Loshchilov and Hutter 2019 (arXiv 1711.05101); cosine, the same 2017 (arXiv 1608.03983), Eq. 5.
    """
    if set_size < 1:
        raise DataError(f"the {purpose} cannot be trained: there are no samples")
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    batch = min(recipe.batch_size, set_size)
    order_seed = derive_key(seed, f"{purpose}.order") % 2**63
    for first in range(0, max(1, recipe.num_samples // batch) * batch, batch):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate((first + batch) / max(recipe.num_samples, batch), recipe.lr)
        positions = np.arange(first, first + batch)
        loss = batch_loss(_samples_at(positions, set_size, order_seed), positions)
        if not math.isfinite(value := float(loss.detach())):
            raise NumericalError(f"training the {purpose}: the loss is {value} after {first} samples")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        on_step(batch, value)
    network.eval()


def _learning_rate(progress: float, peak: float) -> float:
    if progress < _WARMUP:
        return peak * (progress / _WARMUP)
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - _WARMUP) / (1 - _WARMUP)))


def _samples_at(positions: NDArray[np.int64], set_size: int, seed: int) -> NDArray[np.int64]:
    """Return the samples at these positions: each epoch shows every sample once, in a keyed order."""
    samples = np.empty_like(positions)
    for epoch in np.unique(positions // set_size):
        here = positions // set_size == epoch
        order = keyed_generator(seed, "epoch", index=int(epoch)).permutation(set_size)
        samples[here] = order[positions[here] % set_size]
    return samples
