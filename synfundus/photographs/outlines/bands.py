"""Find the straight edges at which a caption band or a mount ends the retina, whatever their grey."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from synfundus.photographs.rim import NEAREST_CUT, Circle, Floats

_BAND_SHARE = (
    0.25  # of a chord: a line of which so much has the colour beside the disc is a band, whatever text is on it
)
_BAND_LEVELS = 10.0  # difference within a band
_BAND_FILLED = 0.5  # of the lines of a band


def band_cuts(copy: NDArray[np.uint8], circle: Circle, light: float, *, in_window: bool = False) -> Circle:
    """Return a circle without what is no retina along its straight edges: caption bands and mounts of any grey.

    Beyond such an edge the chord has the colour that the same line has outside the disc. Where the picture is too
    narrow to show that, the colour is that of the picture's outermost line, and must end at once.

    Args:
        copy: uint8 ``[h, w, 3]``.
        circle: The field of view in it.
        light: Darker surrounds are left to `refine_circle`.
        in_window: The circle lies in a window of retina that ends at its cuts: what is beside it is retina.
    """
    height, width = copy.shape[:2]
    x, y = np.arange(width) + 0.5 - circle.center_x_px, np.arange(height)[:, None] + 0.5 - circle.center_y_px
    distance = np.asarray((x**2 + y**2) / circle.radius_px**2)  # squared
    beside = (distance > 1.02**2) & (distance < 1.25**2)
    columns, rows = beside, beside
    if in_window:
        columns = beside & ((y < circle.top_px - circle.center_y_px) | (y > circle.bottom_px - circle.center_y_px))
        rows = beside & ((x < circle.left_px - circle.center_x_px) | (x > circle.right_px - circle.center_x_px))
    chord = distance < 0.985**2
    left, right = _ends_of_bands(copy.transpose(1, 0, 2), chord.T, columns.T, x / circle.radius_px, light)
    top, bottom = _ends_of_bands(copy, chord, rows, y[:, 0] / circle.radius_px, light)
    return replace(
        circle,
        left_px=max(circle.left_px, left),
        top_px=max(circle.top_px, top),
        right_px=min(circle.right_px, right),
        bottom_px=min(circle.bottom_px, bottom),
    )


def _ends_of_bands(
    copy: NDArray[np.uint8], chord: NDArray[np.bool_], beside: NDArray[np.bool_], offset: Floats, light: float
) -> tuple[float, float]:
    """Return the first line and the end of the last line that are no band; -inf, inf without bands."""
    lightness = np.maximum(np.maximum(copy[..., 0], copy[..., 1]), copy[..., 2])
    count = beside.sum(axis=1)
    mean = (lightness * beside).sum(axis=1) / np.maximum(count, 1)
    share = np.zeros(len(offset))
    ends = [-math.inf, math.inf]
    for side in (0, 1):
        outermost = np.median(copy[-side], axis=0)
        lines = np.flatnonzero((offset > 0) == bool(side))[:: 1 - 2 * side].tolist()
        shown = (count >= 3) if outermost.max() <= light else np.ones(len(offset), dtype=bool)
        for line in np.flatnonzero(shown & ((mean > light) | (count < 3)) & (np.abs(offset) < 0.97)).tolist():
            level = outermost if count[line] < 3 else np.median(copy[line, beside[line]], axis=0)
            if (offset[line] > 0) == bool(side) and level.max() > light and chord[line].sum() > 3:
                share[line] = (np.abs(copy[line, chord[line]] - level).max(axis=1) <= _BAND_LEVELS).mean()
        bands = [at for at, line in enumerate(lines) if share[line] > _BAND_SHARE and abs(offset[line]) > NEAREST_CUT]
        if not bands:
            continue
        at = bands[-1]
        beyond = [share[line] > _BAND_SHARE for line in lines[: at + 1] if shown[line] and abs(offset[line]) < 0.97]
        if np.mean(beyond) < _BAND_FILLED:
            continue  # the ends of the lines are in a band on another side
        inner = [share[line] for line in lines[at + 1 : at + 5]]
        if count[lines[at]] < 3 and (len(inner) < 4 or share[lines[at]] < 0.4 or inner[2] > 0.1):
            continue
        while at + 1 < len(lines) and share[lines[at + 1]] > _BAND_SHARE / 4:
            at += 1
        ends[side] = lines[at] + 2.0 if side == 0 else lines[at] - 1.0
    return ends[0], ends[1]
