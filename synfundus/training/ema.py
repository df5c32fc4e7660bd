"""Exponential moving average over the fp32 partitions of ZeRO-2.

Each rank averages its own slice: 4 bytes x parameters / ranks, nothing is communicated, and the sum is kept in fp32,
where increments of one part in ten thousand do not vanish as they do in bf16 (ADR-0007).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ema_decay(*, batch_images: int, images_seen: int, half_life_images: float, rampup_ratio: float) -> float:
    """Return the decay of one step.

    The half-life is in images, so that it does not depend on the batch size; early in the run it is capped at a
    fraction of the images seen, so that the random initialisation is forgotten.

    Source: Karras et al. 2022 (arXiv 2206.00364), training details; half-life ramp as in EDM.
    """
    half_life = min(half_life_images, rampup_ratio * images_seen)
    return float(0.5 ** (batch_images / max(half_life, 1e-8)))


class ShardedEma:
    """The average of this rank's slices.

    Args:
        masters: Live fp32 slices to start from.
        half_life_images: Images after which a weight's share has halved.
        rampup_ratio: Cap of the half-life as a fraction of the images seen.
    """

    def __init__(self, masters: Sequence[Tensor], *, half_life_images: float, rampup_ratio: float) -> None:
        self.partitions = [master.detach().clone() for master in masters]
        self._half_life_images = half_life_images
        self._rampup_ratio = rampup_ratio

    @torch.no_grad()
    def update(self, masters: Sequence[Tensor], *, batch_images: int, images_seen: int) -> None:
        """Move the average towards the weights after a step that ends at ``images_seen``."""
        decay = ema_decay(
            batch_images=batch_images,
            images_seen=images_seen,
            half_life_images=self._half_life_images,
            rampup_ratio=self._rampup_ratio,
        )
        for average, master in zip(self.partitions, masters, strict=True):
            average.lerp_(master, 1.0 - decay)
