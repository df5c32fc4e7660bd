"""Lesions shared by several diseases: positions, exudates, cotton-wool spots, the colour of blood."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from synfundus.phantoms.canvas import Rgb, blend, blob_outlines
from synfundus.phantoms.scene import Scene

Floats = NDArray[np.float64]

BLOOD: Rgb = (0.50, 1.55, 1.25)
"""Absorption of a haemorrhage inside the retina."""
_HARD_EXUDATE: Rgb = (1.0, 0.90, 0.50)
_COTTON: Rgb = (0.99, 0.93, 0.80)
_TRIES = 220


def scattered(scene: Scene, stream: np.random.Generator, count: int, *, nearest: float, farthest: float) -> Floats:
    """Return ``count`` positions ``[count, 2]`` around the posterior pole, away from fovea and disc.

    A larger count extends the list without changing the first positions.

    Args:
        scene: The scene.
        stream: Stream of the eye for this kind of lesion.
        count: Number of positions.
        nearest: Minimum distance from the fovea.
        farthest: Maximum distance from the centre of the field.
    """
    angle = stream.uniform(0, 2 * math.pi, _TRIES)
    radius = farthest * np.sqrt(stream.uniform(0.02, 1, _TRIES))
    places = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    from_fovea = np.hypot(*(places - np.array(scene.eye.fovea_center)).T)
    from_disc = np.hypot(*(places - np.array(scene.eye.disc_center)).T)
    free = (from_fovea > nearest) & (from_disc > 1.5 * scene.eye.disc_axes[1])
    kept: Floats = places[free][:count]
    return kept


def paint_exudates(scene: Scene, stream: np.random.Generator, spots: Floats, radii: Floats) -> None:
    """Paint hard exudates at ``spots`` ``[n, 2]`` with ``radii`` ``[n]``."""
    mask = scene.mask()
    mask.polygons(blob_outlines(stream, spots, radii, raggedness=0.3, corners=10), 0.95)
    blend(scene.image, mask.finish(blur=0.004), _HARD_EXUDATE)


def paint_cotton(scene: Scene, stream: np.random.Generator, spots: Floats) -> None:
    """Paint cotton-wool spots at ``spots`` ``[n, 2]``."""
    if len(spots) == 0:
        return
    radii = stream.uniform(0.032, 0.052, 40)[: len(spots)]
    outlines = blob_outlines(
        stream, spots, radii, raggedness=0.5, stretch=1.25, angles=stream.uniform(0, math.pi, 40)[: len(spots)]
    )
    mask = scene.mask()
    mask.polygons(outlines, 0.9)
    blend(scene.image, mask.finish(blur=0.019), _COTTON)
