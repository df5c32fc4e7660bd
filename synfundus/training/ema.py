"""Exponential moving average over the fp32 partitions of ZeRO-2.

Each rank averages its own slice: 4 bytes x parameters / ranks, without communication. The average is fp32, where
increments of one part in ten thousand do not vanish as they do in bf16 (ADR-0007).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from synfundus.training.post_hoc_ema import power_decay, power_exponent


def ema_decay(*, batch_images: int, images_seen: int, half_life_images: float, rampup_ratio: float) -> float:
    """Return the decay of one step.

    The half-life is in images, so it does not depend on the batch size; early in the run it is capped at a fraction of
    the images seen, so that the random initialisation is forgotten.

    Source: Karras et al. 2022 (arXiv 2206.00364), training details; half-life ramp as in EDM.
    """
    half_life = min(half_life_images, rampup_ratio * images_seen)
    return float(0.5 ** (batch_images / max(half_life, 1e-8)))


def power_name(sigma_rel: float) -> str:
    """Return the name of a power-function average in a checkpoint: ``ema_sigma_rel_0.0500``."""
    return f"ema_sigma_rel_{sigma_rel:.4f}"


class ShardedEma:
    """Averages of this rank's slices.

    Args:
        masters: Live fp32 slices to start from.
        half_life_images: Images after which the share of old weights has halved.
        rampup_ratio: Cap of the half-life as a fraction of the images seen.
        sigma_rel: Widths of power-function averages to keep too, see `post_hoc_ema`.

    Attributes:
        partitions: The average with a half-life.
        power: The power-function averages by their width.
    """

    def __init__(
        self,
        masters: Sequence[Tensor],
        *,
        half_life_images: float,
        rampup_ratio: float,
        sigma_rel: Sequence[float] = (),
    ) -> None:
        self.partitions = [master.detach().clone() for master in masters]
        self.power = {width: [master.detach().clone() for master in masters] for width in sigma_rel}
        self._exponents = {width: power_exponent(width) for width in sigma_rel}
        self._half_life_images = half_life_images
        self._rampup_ratio = rampup_ratio

    def vectors(self) -> dict[str, list[Tensor]]:
        """Return all averages by their name in a checkpoint."""
        return {"ema": self.partitions, **{power_name(width): slices for width, slices in self.power.items()}}

    @torch.no_grad()
    def update(self, masters: Sequence[Tensor], *, batch_images: int, images_seen: int) -> None:
        """Move the averages towards the weights after a step that ends at ``images_seen``."""
        decay = ema_decay(
            batch_images=batch_images,
            images_seen=images_seen,
            half_life_images=self._half_life_images,
            rampup_ratio=self._rampup_ratio,
        )
        _move(self.partitions, masters, decay)
        for width, slices in self.power.items():
            gamma = self._exponents[width]
            _move(slices, masters, power_decay(batch_images=batch_images, images_seen=images_seen, gamma=gamma))


def _move(averages: Sequence[Tensor], masters: Sequence[Tensor], decay: float) -> None:
    for average, master in zip(averages, masters, strict=True):
        average.lerp_(master, 1.0 - decay)
