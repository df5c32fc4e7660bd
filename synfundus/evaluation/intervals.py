"""95 % intervals of the figures of label control; each holds for few images and for perfect agreement too."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from synfundus.seeding import keyed_generator

Interval = tuple[float, float]

_Z = 1.959964
_BISECTIONS = 50
_RESAMPLES = 400


def share_interval(successes: int, total: int) -> Interval:
    """Return the interval of a share.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    share, spread = successes / total, _Z**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def auc_interval(auc: float, num_positive: int, num_negative: int) -> Interval:
    """Return the interval of an area under the ROC curve.

    Source: Newcombe 2006, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part
    2", method 5: the areas from which the measured one is 1.96 of their own standard deviations away.
    """
    mean_size = (num_positive + num_negative) / 2

    def deviation(area: float) -> float:
        factor = 2 * mean_size - 1 - (3 * mean_size - 3) / ((2 - area) * (1 + area))
        return math.sqrt(max(area * (1 - area) * factor, 0.0) / (num_positive * num_negative))

    return _farthest(auc, 0.0, deviation), _farthest(auc, 1.0, deviation)


def _farthest(value: float, end: float, deviation: Callable[[float], float]) -> float:
    """Return the point between a value and an end that is `_Z` of its deviations from the value."""
    near, far = value, end
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2
        if abs(middle - value) <= _Z * deviation(middle):
            near = middle
        else:
            far = middle
    return near


def table_interval(
    table: NDArray[np.float64], measure: Callable[[NDArray[np.float64]], float | None]
) -> Interval | None:
    """Return the percentile bootstrap interval of a measure of a table of counts; None if it is nowhere defined.

    Source: Efron 1979, "Bootstrap methods".
    """
    total = int(table.sum())
    draws = keyed_generator(0, "evaluation.bootstrap").multinomial(total, table.ravel() / total, size=_RESAMPLES)
    found = [value for draw in draws if (value := measure(draw.reshape(table.shape).astype(np.float64))) is not None]
    low, high = np.percentile(found, (2.5, 97.5)).tolist() if found else (None, None)
    return None if low is None or high is None else (low, high)
