"""The field of view and the clarity of a generated image, in figures of a small copy of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synfundus.photographs.field_of_view import FieldOfViewError, find_field_of_view

WORKING_SIZE_PX = 128
"""Side of the copy that is looked at: a disc is 11 to 28 px wide in it, a large vessel 2."""

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

_UNLIT = 14
"""Brightest channel of what is no retina; JPEG leaves a few grey levels outside the field."""
_DEEPEST_CUT = 0.45
"""Cameras cut the field at top and bottom, at most to this share of its radius."""
_RIM, _OUTSIDE = 0.90, 1.05
_ANGLES = 72
_WHOLE_RIM, _LIT_OUTSIDE = 0.94, 0.02
_OFF_CENTRE, _OFF_RADIUS = 0.07, 0.07
"""How far a field may be from the circle in the square that it was cropped to, in half sides."""
_INSIDE, _CUT_PX, _FEW = 0.88, 5, 0.05
"""What is measured: this share of the radius, this far from straight cuts; lit rows have more than a few lit pixels."""


@dataclass(frozen=True)
class Clarity:
    """Figures of an image.

    Attributes:
        brightness: Median of the brightest channel inside the field, 0..1.
        contrast: Spread of the green channel around its surroundings: from the 5th to the 95th percentile, 0..1.
        saturated: Share of the field whose green channel is at its upper end.
        dark: Share of the field that is black.
        sharpness: Root mean square of what vessels add to the green channel, relative to its level.
    """

    brightness: float
    contrast: float
    saturated: float
    dark: float
    sharpness: float


def working_copy(pixels: Pixels) -> Pixels:
    """Return an image ``[h, w, 3]`` at the working size, uint8 ``[128, 128, 3]``."""
    size = (WORKING_SIZE_PX, WORKING_SIZE_PX)
    if pixels.shape[:2] == size:
        return pixels
    smaller = pixels.shape[0] > WORKING_SIZE_PX
    how = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def _distance() -> Floats:
    axis = (np.arange(WORKING_SIZE_PX, dtype=np.float32) + 0.5) / WORKING_SIZE_PX * 2 - 1
    return np.asarray(np.hypot(axis[None], axis[:, None]), dtype=np.float32)


_FROM_CENTRE = _distance()


def _smoothing(sigma_px: float) -> Floats:
    """Return the matrix ``[s, s]`` that smooths along one axis; what lies beyond the edge does not count."""
    at = np.arange(WORKING_SIZE_PX)
    weights = np.exp(-0.5 * ((at[None] - at[:, None]) / sigma_px) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


_FINE, _COARSE = _smoothing(0.6), _smoothing(1.4)
"""Between these two, in px of the working copy, lie vessels."""


def measure_clarity(copy: Pixels) -> Clarity:
    """Return the figures of a working copy ``[128, 128, 3]``."""
    green, brightest = copy[..., 1].astype(np.float32), copy.max(axis=2)
    rows = np.flatnonzero((brightest >= _UNLIT).mean(axis=1) > _FEW)
    inside = _FROM_CENTRE < _INSIDE
    if len(rows):
        inside = inside & (np.abs(np.arange(WORKING_SIZE_PX) - rows.mean()) < np.ptp(rows) / 2 - _CUT_PX)[:, None]
    if not inside.any():
        return Clarity(0.0, 0.0, 0.0, 1.0, 0.0)
    fine, coarse = _FINE @ green @ _FINE.T, _COARSE @ green @ _COARSE.T
    ripple = ((fine - coarse) / np.maximum(coarse, 8.0))[inside]
    # lesions and the disc are few and strong: they are held down to what vessels reach
    ripple = np.clip(ripple, -0.08, 0.04)
    low, high = np.percentile(green[inside], [5.0, 95.0])
    return Clarity(
        brightness=float(np.median(brightest[inside])) / 255,
        contrast=float(high - low) / 255,
        saturated=float((green[inside] >= 245).mean()),
        dark=float((brightest[inside] < _UNLIT).mean()),
        sharpness=float(np.sqrt(np.square(ripple).mean())),
    )


@dataclass(frozen=True)
class Field:
    """The field of view in the square that an image should fill.

    Attributes:
        is_found: Whether there is one round field.
        is_whole: Whether it is the circle of the square, but for straight cuts at top and bottom.
        width: Its width over that of the square.
        off_centre: Distance of its centre from that of the square, in half sides.
    """

    is_found: bool
    is_whole: bool
    width: float
    off_centre: float


def find_field(pixels: Pixels, copy: Pixels) -> Field:
    """Return the field of view of an image ``[h, w, 3]`` with its working copy; only odd ones are searched closely."""
    lit = copy.max(axis=2) >= _UNLIT
    rows = np.flatnonzero(lit.mean(axis=1) > _FEW)
    if not len(rows):
        return Field(False, False, 0.0, 0.0)
    top, bottom = (2 * np.array([rows[0], rows[-1] + 1]) / WORKING_SIZE_PX - 1).tolist()
    angle = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    x, y = _RIM * np.cos(angle), _RIM * np.sin(angle)
    row, column = (np.rint((at + 1) * (WORKING_SIZE_PX / 2) - 0.5).astype(int) for at in (y, x))
    seen = (y > top + 0.04) & (y < bottom - 0.04)
    whole = lit[row, column][seen].mean() if seen.any() else 0.0
    beyond = float(lit[_FROM_CENTRE > _OUTSIDE].mean())
    cut = min(-top, bottom)
    if whole >= _WHOLE_RIM and beyond <= _LIT_OUTSIDE and cut >= _DEEPEST_CUT:
        return Field(True, True, 1.0, 0.0)
    try:
        circle = find_field_of_view(pixels)
    except FieldOfViewError:
        return Field(False, False, 0.0, 0.0)
    half = pixels.shape[0] / 2
    off = float(np.hypot(circle.center_x_px / half - 1, circle.center_y_px / half - 1))
    width = circle.radius_px / half
    fits = off <= _OFF_CENTRE and abs(width - 1) <= _OFF_RADIUS and cut >= _DEEPEST_CUT
    return Field(True, fits, width, off)
