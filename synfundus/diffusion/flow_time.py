"""The density of training times of flow matching, between 0 and 1; without torch.

Time 0 is the image, time 1 is noise (ADR-0012).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

TimeDensity: TypeAlias = Literal["logit_normal", "uniform"]

_LEAST_UNIFORM = 2.0**-54
"""Half of the smallest step of a uniform draw: replaces 0, whose quantile is not finite."""


@dataclass(frozen=True)
class FlowTime:
    """The density of training times, as a map from uniform draws.

    Attributes:
        density: ``logit_normal``: most draws in the middle, where the velocity is hardest to predict; or ``uniform``.
        location: Of ``logit_normal``: mean of the logit of the time before the shift; above 0 is nearer to noise.
        scale: Of ``logit_normal``: standard deviation of that logit.
        shift: See `shifted`.

    Source: Esser et al. 2024, "Scaling rectified flow transformers" (arXiv 2403.03206), Sec. 3.1, Eq. 19.
    """

    density: TimeDensity
    location: float
    scale: float
    shift: float

    def __call__(self, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a time for each draw ``[n]`` in [0, 1): its quantile, so a larger draw gives a later time."""
        time = uniform
        if self.density == "logit_normal":
            quantile = NormalDist().inv_cdf
            normal = np.array([quantile(draw) for draw in np.maximum(uniform, _LEAST_UNIFORM).tolist()])
            time = 1.0 / (1.0 + np.exp(-(self.location + self.scale * normal)))
        return shifted(time, self.shift)


def shifted(time: NDArray[np.float64], shift: float) -> NDArray[np.float64]:
    """Shift times towards noise, as larger images need: the same noise hides less of them.

    It adds ``log(shift)`` to the logit of a time; 1 changes nothing. If a shift of 1 suits some image size, a shift of
    ``m`` gives images of ``m`` times the width and height the same uncertainty.

    Source: Esser et al. 2024 (arXiv 2403.03206), Eq. 23.
    """
    moved: NDArray[np.float64] = shift * time / (1.0 + (shift - 1.0) * time)
    return moved
