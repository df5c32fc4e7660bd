"""Averages of the weights: exponential, power-function, and those combined after the run.

Each rank averages its own slice of ZeRO-2's fp32 partitions: 4 bytes x parameters / ranks, without communication. In
fp32, increments of one part in ten thousand do not vanish as they do in bf16 (ADR-0007).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synfundus.errors import ConfigError


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


MAX_SIGMA_REL = 0.28
"""Beyond sqrt(1/12) the exponent would be negative: the oldest weights would count most."""


@dataclass(frozen=True)
class Profile:
    """The shares that the weights of a run have in an average.

    Attributes:
        images_seen: Length of the run in images when the average was taken.
        sigma_rel: Standard deviation of the shares relative to that length.
    """

    images_seen: int
    sigma_rel: float


def power_exponent(sigma_rel: float) -> float:
    """Return ``gamma`` of a width: the positive root of ``(gamma + 2)^2 (gamma + 3) sigma_rel^2 = gamma + 1``.

    Raises:
        ConfigError: Not within (0, `MAX_SIGMA_REL`].
    """
    if not 0 < sigma_rel <= MAX_SIGMA_REL:
        raise ConfigError(f"sigma_rel = {sigma_rel} is not above 0 and at most {MAX_SIGMA_REL}")
    inverse = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def power_decay(*, batch_images: int, images_seen: int, gamma: float) -> float:
    """Return the decay of the step that ends at ``images_seen``: 0 for the first, which forgets the random start."""
    return float((1.0 - min(1.0, batch_images / images_seen)) ** (gamma + 1.0))


def _overlap(one: Profile, other: Profile) -> float:
    """Return the integral of the product of two profiles over the run."""
    if one.images_seen > other.images_seen:
        one, other = other, one
    first, second = power_exponent(one.sigma_rel), power_exponent(other.sigma_rel)
    scale = (first + 1.0) * (second + 1.0) / ((first + second + 1.0) * other.images_seen)
    return scale * math.exp(second * math.log(one.images_seen / other.images_seen))


@dataclass(frozen=True)
class Combination:
    """A linear combination of snapshots.

    Attributes:
        factors: Factor of each snapshot, in their order; their sum is 1.
        error: Distance of the resulting profile from the wanted one, relative to the norm of the wanted one.
    """

    factors: NDArray[np.float64]
    error: float


def combine(snapshots: Sequence[Profile], wanted: Profile) -> Combination:
    """Return the linear combination of snapshots that comes closest to a profile.

    Args:
        snapshots: Profiles of the snapshots; one later than the wanted time is allowed, but of little use.
        wanted: Time and width to reconstruct.
    """
    gram = np.array([[_overlap(one, other) for other in snapshots] for one in snapshots])
    target = np.array([_overlap(one, wanted) for one in snapshots])
    # neighbouring profiles are nearly parallel: directions below float64 precision are left out
    both = np.linalg.lstsq(gram, np.stack([target, np.ones_like(target)], axis=1), rcond=1e-12)[0]
    free, towards_one = both[:, 0], both[:, 1]
    # what all weights have in common must stay as it is, so the factors sum to 1
    factors = free + towards_one * (1.0 - free.sum()) / towards_one.sum()
    norm = _overlap(wanted, wanted)
    squared = (norm - 2.0 * factors @ target + factors @ gram @ factors) / norm
    return Combination(factors, math.sqrt(max(0.0, float(squared))))
