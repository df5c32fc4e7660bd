"""Power-function averages, and reconstruction of other widths after training from snapshots (post-hoc EMA).

An average of width ``sigma_rel`` gives the weights at time ``tau`` of a run of length ``t`` the share
``(gamma + 1) tau^gamma / t^(gamma + 1)``: it grows with the run, and its width relative to the run stays. Any such
profile is close to a linear combination of a few others, taken at other times and widths; the factors follow from a
least-squares fit of the profiles alone.

Source: Karras et al. 2023, EDM2 (arXiv 2312.02696), section 3 and appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import ConfigError

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
