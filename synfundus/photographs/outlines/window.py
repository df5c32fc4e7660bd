"""Find a rectangular window of retina with dark corners: the mount of a slide, or a disc larger than the picture.

So little rim is visible in it that no circle is certain.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from synfundus.photographs.rim import Circle, Floats, View, bilinear, least_squares_circle

_RAYS = 720
_LIT = 0.25  # of the span
_STRAIGHT = 0.45  # of the longest row or column: a side of the window has at least this length
_CORNER_DEPTH_PX = 2.0
_CORNER_RAYS = 3
_SAME_CORNERS = 0.06  # difference between the distances of the corners
_BULGE = 0.98  # of the mean distance of its ends: a rounded corner does not run inside the line between them
_FOLLOWED = 0.25  # of a side: straight, or in shadow
_OTHER_EDGES = 0.08  # of the rays: sharp edges elsewhere, of lesions and vessels
_BLACK, _GREY = 16.0, 60.0  # levels of a mount: between them retina in shadow looks the same
_FLAT, _ALIKE = 5.0, 4.0  # levels within a corner of the picture that is mount, and between the four
_FILLED = 0.55  # of the window, a shadow apart


def find_window(view: View) -> tuple[View, Circle] | None:
    """Return the largest circle inside the dark corners of a window of retina, with the window's sides as cuts.

    Two corners or more must be visible, sharp, alike, and not be cut off straight; the sides must be straight. The
    corners are so small that they, not the dark parts of the picture, give the level of black in the returned view.
    """
    tips = view.lightness[:3, :3], view.lightness[:3, -3:], view.lightness[-3:, :3], view.lightness[-3:, -3:]
    levels = sorted(float(tip.mean()) for tip in tips)
    dark = min(view.dark, levels[1])
    uniform = max(float(np.ptp(tip)) for tip in tips) < _FLAT and levels[3] - levels[0] < _ALIKE
    if _BLACK < dark < _GREY and not uniform:
        return None
    view = replace(view, dark=dark, span=view.dark + view.span - dark)
    light = view.lightness - dark
    lit = light > max(_LIT * view.span, view.floor)
    left, right, cut_left, cut_right = _sides(lit.sum(axis=0), np.median(light, axis=0))
    top, bottom, cut_top, cut_bottom = _sides(lit.sum(axis=1), np.median(light, axis=1))
    half = np.array([right - left, bottom - top]) / 2
    center = np.array([left + right, top + bottom]) / 2
    if min(half) < 16 or lit[int(top) : int(bottom), int(left) : int(right)].mean() < _FILLED:
        return None
    angles = (np.arange(_RAYS) + 0.5) * (2 * np.pi / _RAYS)
    to_side = (half / np.maximum(np.abs(np.stack([np.cos(angles), np.sin(angles)], axis=1)), 1e-9)).min(axis=1)
    distance, sharp = _ends_of_light(view, center, angles, to_side)
    corner = sharp & (to_side - distance > _CORNER_DEPTH_PX)
    diagonal = float(np.arctan2(half[1], half[0]))
    # A disc touches its sides; a window follows them.
    corners = (diagonal, np.pi - diagonal, np.pi + diagonal, 2 * np.pi - diagonal)
    exits = np.searchsorted(corners, angles) % 4
    follows = ~sharp | (to_side - distance <= 1.25)
    if min(follows[exits == side].mean() for side in range(4)) < _FOLLOWED:
        return None
    found = []
    for middle in corners:
        at = int(middle / (2 * np.pi) * _RAYS)
        rays = [at]
        for way in (-1, 1):
            while corner[(rays[-1] + way) % _RAYS] and len(rays) < _RAYS / 4:
                rays.append((rays[-1] + way) % _RAYS)
            rays.reverse()
        if not corner[at] or len(rays) < _CORNER_RAYS:
            continue
        if distance[at] < _BULGE * (distance[rays[0]] + distance[rays[-1]]) / 2:
            return None
        found.append((at, rays))
        corner[rays] = False
    reach = distance[[at for at, _ in found]]
    if len(found) < 2 or np.ptp(reach) > _SAME_CORNERS * reach.max() or corner.mean() > _OTHER_EDGES:
        return None
    rays = [ray for _, rays in found for ray in rays]
    x, y, radius = _circle_inside(center, angles[rays], distance[rays])
    return view, Circle(x, y, radius, 1.0, 0.0, cut_left, cut_top, cut_right, cut_bottom)


def _circle_inside(center: Floats, angles: Floats, distance: Floats) -> tuple[float, float, float]:
    """Return x, y and radius of the circle on which the corners lie, or else of the one inside them."""
    x, y = center[0] + distance * np.cos(angles), center[1] + distance * np.sin(angles)
    circle = least_squares_circle(x, y, np.ones_like(x))
    off = np.abs(np.hypot(x - circle[0], y - circle[1]) - circle[2])
    moved = np.hypot(*(circle[:2] - center))
    if np.percentile(off, 90) > max(0.01 * circle[2], 1.0) or moved > 0.12 * circle[2]:
        return float(center[0]), float(center[1]), float(distance.min()) - 1.5
    return float(circle[0]), float(circle[1]), float(circle[2])


def _sides(lit: NDArray[np.int64], light: Floats) -> tuple[float, float, float, float]:
    """Return first and end line of the window, then the same as cuts: infinite where the picture ends or light fades.

    Args:
        lit: Number of lit pixels of each line.
        light: Median light of each line.
    """
    long = np.flatnonzero(lit >= _STRAIGHT * lit.max())
    sides: list[tuple[float, float]] = []
    for at, inward in ((int(long[0]), 1), (int(long[-1]), -1)):
        outermost = 0 if inward > 0 else len(lit) - 1
        border = abs(at - outermost)
        if border >= 3 and 0 <= at + 12 * inward < len(lit):
            dark = lit[at - 3 * inward] < 0.2 * lit.max() and light[at + 3 * inward] > 0.5 * light[at + 12 * inward]
        else:
            dark = 0 < border < 3 and lit[outermost] < 0.2 * lit.max()
        if dark:
            sides.append((at, at + 2.0 * inward))
        else:
            sides.append((at if border < 3 else outermost, -inward * np.inf))
    (first, low), (last, high) = sides
    return float(first), last + 1.0, low, high + 1.0


def _ends_of_light(view: View, center: Floats, angles: Floats, to_side: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return where the light ends on each ray, px from the centre, and whether it ends at once."""
    share = np.linspace(0.5, 1.0, 121)
    x = center[0] + np.cos(angles)[:, None] * to_side[:, None] * share
    y = center[1] + np.sin(angles)[:, None] * to_side[:, None] * share
    profile = bilinear(view.lightness, x - 0.5, y - 0.5) - view.dark
    bright = profile > max(_LIT * view.span, view.floor)
    last = np.where(bright.any(axis=1), bright.shape[1] - 1 - bright[:, ::-1].argmax(axis=1), 0)
    row = np.arange(len(angles))
    step = to_side * (share[1] - share[0])
    beyond = np.minimum(last + np.ceil(4.0 / step).astype(int), len(share) - 1)
    sharp = (last > 0) & (profile[row, beyond] < max(0.1 * view.span, view.floor))
    return to_side * share[last], sharp
