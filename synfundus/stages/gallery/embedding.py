"""A map of images: which look alike, as two numbers for each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_ROWS = 8192
"""Images in memory as float64 at a time."""
LARGEST = 65_535


def principal_plane(features: NDArray[np.uint8]) -> tuple[NDArray[np.uint16], tuple[float, float]]:
    """Project features onto the plane in which they differ most.

    Args:
        features: ``[n, d]``, d at least 2.

    Returns:
        Places ``[n, 2]``, each axis from 0 to 65,535, far outliers drawn nearer (by the inverse hyperbolic sine of the
        distance from the middle, in median distances); and the share of the variance along each axis. An axis points
        where most of its weights are positive: to brighter images.

    *Source*: principal component analysis, Pearson 1901.
    """
    count, width = features.shape
    if count == 0:
        return np.zeros((0, 2), np.uint16), (0.0, 0.0)
    mean = features.mean(axis=0, dtype=np.float64)

    def centred() -> Iterator[NDArray[np.float64]]:
        for at in range(0, count, _ROWS):
            yield features[at : at + _ROWS] - mean

    spread = sum((block.T @ block for block in centred()), np.zeros((width, width)))
    variances, axes = np.linalg.eigh(spread)
    plane = axes[:, [-1, -2]]
    plane = plane * np.where(2 * (plane > 0).sum(axis=0) >= width, 1.0, -1.0)
    places = np.concatenate([block @ plane for block in centred()])
    places -= np.median(places, axis=0)
    places = np.arcsinh(places / np.maximum(np.median(np.abs(places), axis=0), 1e-9))
    low, high = places.min(axis=0), places.max(axis=0)
    shown = (places - low) / np.maximum(high - low, 1e-9) * LARGEST
    total = max(float(variances.sum()), 1e-9)
    first, second = (max(float(variances[at]), 0.0) / total for at in (-1, -2))
    return np.clip(shown.round(), 0, LARGEST).astype(np.uint16), (first, second)
