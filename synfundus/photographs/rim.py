"""Measure the rim of a field of view: where lightness falls to black along the rays of a candidate circle.

Coordinates are continuous: pixel (column 0, row 0) covers [0, 1) x [0, 1), so its centre is (0.5, 0.5) and
a circle scales with its image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

_RIM_ANGLES = 144
_RIM_REACH = np.linspace(0.84, 1.12, 57)  # radii of a profile across the rim, in units of the radius
_MINIMUM_RIM_AGREEMENT = 0.7  # of the angles with retina just inside the rim
_UNDISTURBED = 0.85  # with less of the rim on the circle, a reflex may have moved it
_CLOSER = 1.2  # times as much rim close to a circle as to another: the better one
_ARC = 56  # of _RIM_ANGLES: the longest reflex
_VISIBLE_ENOUGH = 0.6  # of the circumference: with so much rim on one circle, a reflex may hide the rest
_MAXIMUM_CONTRADICTION = 0.15  # of all angles: hard edges inside the circle that are not straight cuts
NEAREST_CUT = 0.35  # radii from the centre: cameras do not cut closer
_LIT_BESIDE_CUT = 0.8  # of a row or column just inside a straight cut
_MINIMUM_RIM_ANGLES = 11  # of _RIM_ANGLES: a disc cut at four sides shows four short arcs


@dataclass(frozen=True, slots=True)
class Circle:
    """The field of view in pixels of the photograph it was found in.

    Attributes:
        center_x_px: Continuous column of the centre (the middle of the first pixel is 0.5).
        center_y_px: Continuous row of the centre.
        radius_px: Radius of the rim at half height.
        inlier_fraction: Share of the visible rim that lies on the circle, in [0, 1].
        visible_fraction: Share of the circumference with a visible rim, in [0, 1].
        left_px: First column with retina if the camera cut the disc straight; -inf if it did not.
        top_px: The same for the first row.
        right_px: End of the last column with retina; inf if the disc is not cut.
        bottom_px: The same for the last row.
        aspect: Height of the rim over its width; not 1 where the pixels of the photograph are not square.
        tilt: Angle in radians by which the cuts are turned around the centre, from x towards y.
    """

    center_x_px: float
    center_y_px: float
    radius_px: float
    inlier_fraction: float = 1.0
    visible_fraction: float = 1.0
    left_px: float = -math.inf
    top_px: float = -math.inf
    right_px: float = math.inf
    bottom_px: float = math.inf
    aspect: float = 1.0
    tilt: float = 0.0

    def shows(self, x_px: Floats, y_px: Floats, *, reach_px: float, margin_px: float) -> NDArray[np.bool_]:
        """Return which points of a grid lie in the field of view, bool ``[h, w]``.

        Args:
            x_px: Columns in the photograph ``[w]``.
            y_px: Rows in the photograph ``[h]``.
            reach_px: Distance from the centre, measured across.
            margin_px: Distance from the straight cuts.
        """
        x, y = x_px[None] - self.center_x_px, y_px[:, None] - self.center_y_px
        shown = x**2 + (y / self.aspect) ** 2 < max(reach_px, 0.0) ** 2
        if not np.isfinite([self.left_px, self.top_px, self.right_px, self.bottom_px]).any():
            return np.asarray(shown)
        if self.tilt:
            cosine, sine = math.cos(self.tilt), math.sin(self.tilt)
            x, y = x * cosine + y * sine, y * cosine - x * sine
            margin_px *= abs(cosine) + abs(sine)
        shown &= (x >= self.left_px - self.center_x_px + margin_px) & (
            x <= self.right_px - self.center_x_px - margin_px
        )
        shown &= (y >= self.top_px - self.center_y_px + margin_px) & (
            y <= self.bottom_px - self.center_y_px - margin_px
        )
        return np.asarray(shown)

    def shifted(self, x_px: float, y_px: float) -> Circle:
        """Return the circle in a picture whose corner is further left and up."""
        return replace(
            self,
            center_x_px=self.center_x_px + x_px,
            center_y_px=self.center_y_px + y_px,
            left_px=self.left_px + x_px,
            top_px=self.top_px + y_px,
            right_px=self.right_px + x_px,
            bottom_px=self.bottom_px + y_px,
        )

    def scaled(self, across: float, down: float) -> Circle:
        """Return the circle in a picture that is larger by two factors; a round one stays round."""
        aspect = 1.0 if self.aspect == 1.0 else down / across
        return replace(
            self,
            aspect=aspect,
            center_x_px=self.center_x_px * across,
            center_y_px=self.center_y_px * down,
            radius_px=self.radius_px * (across + down / aspect) / 2,
            left_px=self.left_px * across,
            top_px=self.top_px * down,
            right_px=self.right_px * across,
            bottom_px=self.bottom_px * down,
        )


@dataclass(frozen=True, slots=True)
class View:
    """The working copy without a light slide frame, and its levels.

    Attributes:
        lightness: ``[h', w']``, 0-255.
        left: Columns removed on the left.
        top: Rows removed at the top.
        dark: Level of the black surround.
        span: From `dark` to the bright parts.
        floor: Smallest difference above noise.
    """

    lightness: Floats
    left: int
    top: int
    dark: float
    span: float
    floor: float


def refine_circle(view: View, circle: Floats) -> Circle | None:
    """Fit the circle to the half-height of its rim; return None if the visible rim does not agree with it."""
    measured = _fitted(view, circle, (0.04, 0.02, 0.01))
    if measured is not None and measured.agreement < _UNDISTURBED:
        other = _fitted(view, _without_an_arc(view, measured.circle), (0.01, 0.01))
        if other is not None and other.is_rim() and other.close > _CLOSER * measured.close:
            measured = other
    if measured is None or not measured.is_rim():
        return None
    circle, agreement, visible, _, on_rim = measured
    x_px, y_px, radius_px = (float(v) for v in circle)
    found = Circle(x_px, y_px, radius_px, agreement, visible, *_straight_cuts(view, circle))
    return _checked(view, found, ~on_rim)


class _Fit(NamedTuple):
    circle: Floats
    agreement: float  # share of the visible rim on the circle
    visible: float  # share of the circumference
    close: float  # share of the circumference to .6 % of the radius
    on_rim: NDArray[np.bool_]

    def is_rim(self) -> bool:
        return self.agreement >= _MINIMUM_RIM_AGREEMENT or self.visible >= _VISIBLE_ENOUGH


def _fitted(view: View, circle: Floats, tolerances: tuple[float, ...]) -> _Fit | None:
    """Fit a circle to the rim near it, in steps."""
    for tolerance in tolerances:
        rim = _rim(view, circle)
        on_rim = rim.on_circle(tolerance)
        if on_rim.sum() < _MINIMUM_RIM_ANGLES:
            return None
        x, y = rim.points(circle)
        circle = least_squares_circle(x[on_rim], y[on_rim], rim.contrast[on_rim])
    rim = _rim(view, circle)
    on_rim = rim.on_circle(0.015)
    expected = rim.in_frame & rim.retina_inside
    if on_rim.sum() < _MINIMUM_RIM_ANGLES or not expected.any():
        return None
    close = rim.sharp & (np.abs(rim.radius / circle[2] - 1.0) < 0.006)
    agreement = float((on_rim & expected).sum() / expected.sum())
    return _Fit(circle, agreement, float(on_rim.mean()), float(close.mean()), on_rim)


def _without_an_arc(view: View, circle: Floats) -> Floats:
    """Return the circle on which most of the rim lies when an arc is left out: a reflex moves the rim outwards."""
    rim = _rim(view, circle)
    near = rim.on_circle(0.06)
    x, y = rim.points(circle)

    def closest(fit: Floats) -> int:
        return int((np.abs(np.hypot(x - fit[0], y - fit[1]) / fit[2] - 1.0)[near] < 0.006).sum())

    fits = [circle]
    for start in range(0, _RIM_ANGLES, 6):
        kept = near & (np.roll(np.arange(_RIM_ANGLES), start) >= _ARC)
        if kept.sum() >= _MINIMUM_RIM_ANGLES:
            fits.append(least_squares_circle(x[kept], y[kept], rim.contrast[kept]))
    return max(fits, key=closest)


@dataclass(frozen=True, slots=True)
class RimProfiles:
    """Radial profiles across the rim of a circle, one entry per angle."""

    cosine: Floats
    sine: Floats
    in_frame: NDArray[np.bool_]  # the circle is inside the picture
    retina_inside: NDArray[np.bool_]  # lit just inside the circle
    sharp: NDArray[np.bool_]  # falls to black within a few per cent of the radius
    radius: Floats  # position of the half-height, px
    contrast: Floats  # height of the fall
    expected_radius: float

    def points(self, circle: Floats) -> tuple[Floats, Floats]:
        """Return x and y of the half-heights; ``circle`` is that of the profiles."""
        return circle[0] + self.radius * self.cosine, circle[1] + self.radius * self.sine

    def on_circle(self, tolerance: float) -> NDArray[np.bool_]:
        """Return the angles at which the rim lies on the circle, within a share of its radius or 0.8 px."""
        off = np.abs(self.radius - self.expected_radius)
        return np.asarray(self.sharp & (off < max(tolerance * self.expected_radius, 0.8)))


def _rim(view: View, circle: Floats) -> RimProfiles:
    """Sample radial profiles across the circle's rim."""
    lightness, dark, span = view.lightness, view.dark, view.span
    height, width = lightness.shape
    angles = (np.arange(_RIM_ANGLES) + 0.5) * (2 * np.pi / _RIM_ANGLES)
    cosine, sine = np.cos(angles), np.sin(angles)
    reach = _RIM_REACH * circle[2]
    x = circle[0] + cosine[:, None] * reach - 0.5
    y = circle[1] + sine[:, None] * reach - 0.5
    inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    profile = bilinear(lightness, x, y)
    # Levels beside the rim: far enough to avoid its blur, near enough to avoid text or a frame.
    inner = np.median(profile[:, 12:25], axis=1)  # .90 to .96 of the radius
    beyond = np.where(inside, profile, np.inf)[:, 35:46]  # 1.01 to 1.06
    outer = np.where(np.isfinite(beyond).any(axis=1), beyond.min(axis=1), np.inf)
    half = (inner + np.where(np.isfinite(outer), outer, 0.0)) / 2
    above = profile > half[:, None]
    falls = above[:, :-1] & ~above[:, 1:] & inside[:, 1:]
    # Of several falls use the one nearest to the circle.
    cost = np.where(falls, np.abs(_RIM_REACH[:-1] - 1.0), np.inf)
    at = cost.argmin(axis=1)
    row = np.arange(_RIM_ANGLES)
    upper, lower = profile[row, at], profile[row, at + 1]
    part = np.clip((upper - half) / np.maximum(upper - lower, 1e-9), 0.0, 1.0)
    step = reach[1] - reach[0]
    contrast = inner - outer
    # A gradual fall (a shadow, a lamp on a wall) is not a rim: most of the fall must lie within +- 3 %.
    aside = int(np.ceil(max(0.03 * circle[2], 1.8) / step))
    before = profile[row, np.maximum(at - aside, 0)]
    after = profile[row, np.minimum(at + aside, len(reach) - 1)]
    sharp = (
        np.isfinite(cost[row, at])
        & np.isfinite(outer)
        & (before - after > 0.6 * contrast)
        & (contrast > max(0.1 * span, view.floor))
        & (outer < dark + max(0.15 * span, view.floor))
    )
    radius = reach[at] + part * step
    retina = np.median(profile[:, 24:30], axis=1) > dark + max(0.12 * span, 1.3 * view.floor)
    near = int(np.searchsorted(_RIM_REACH, 1.02))
    return RimProfiles(cosine, sine, inside[:, near], retina & inside[:, 26], sharp, radius, contrast, float(circle[2]))


def bilinear(image: Floats, x: Floats, y: Floats) -> Floats:
    """Return the values of ``[h, w]`` between its pixels' centres; x and y count from the first centre."""
    height, width = image.shape
    x, y = np.clip(x, 0, width - 1.001), np.clip(y, 0, height - 1.001)
    column, row = x.astype(int), y.astype(int)
    right, down = x - column, y - row
    top = image[row, column] * (1 - right) + image[row, column + 1] * right
    bottom = image[row + 1, column] * (1 - right) + image[row + 1, column + 1] * right
    return np.asarray(top * (1 - down) + bottom * down)


def least_squares_circle(x: Floats, y: Floats, weight: Floats) -> Floats:
    """Return (x, y, r) of the algebraic least-squares circle. Source: Kasa 1976."""
    root = np.sqrt(np.minimum(weight, np.median(weight)))
    middle_x, middle_y = x.mean(), y.mean()
    u, v = x - middle_x, y - middle_y
    design = np.stack([2 * u, 2 * v, np.ones_like(u)], axis=1)
    (a, b, c), *_ = np.linalg.lstsq(design * root[:, None], (u**2 + v**2) * root, rcond=None)
    return np.array([middle_x + a, middle_y + b, np.sqrt(max(c + a * a + b * b, 1e-12))])


def _checked(view: View, circle: Circle, rimless: NDArray[np.bool_]) -> Circle | None:
    """Return the circle if it is lit, and dark only in gradual shadows or beyond straight cuts, which may be tilted.

    A drawn ring is not lit; an ellipse or a polygon has hard edges inside the circle that are not at its extreme rows
    and columns.
    """
    height, width = view.lightness.shape
    center, radius = np.array([circle.center_x_px, circle.center_y_px]), circle.radius_px
    # Light beyond a straight cut is text.
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    within = (x - center[0]) ** 2 + ((y - center[1]) ** 2)[:, None] < (0.95 * radius) ** 2
    lit = view.lightness > view.dark + max(0.1 * view.span, view.floor)
    lit &= (x >= circle.left_px - 1.5) & (x <= circle.right_px + 1.5)
    lit &= ((y >= circle.top_px - 1.5) & (y <= circle.bottom_px + 1.5))[:, None]
    if not within.any() or lit[within].mean() < 0.4:
        return None
    rows, columns = (np.flatnonzero((lit & within).sum(axis=axis) > 4) for axis in (1, 0))
    angles = (np.flatnonzero(rimless) + 0.5) * (2 * np.pi / _RIM_ANGLES)
    if not len(angles) or not len(rows) or not len(columns):
        return circle
    reach = np.linspace(0.2, 0.97, 48) * radius
    ray_x, ray_y = (c + f(angles)[:, None] * reach for c, f in zip(center, (np.cos, np.sin), strict=True))
    profile = bilinear(view.lightness, ray_x - 0.5, ray_y - 0.5)
    in_frame = (ray_x > 0) & (ray_x < width) & (ray_y > 0) & (ray_y < height)
    in_window = (ray_x > circle.left_px - 1) & (ray_x < circle.right_px + 1)
    in_window &= (ray_y > circle.top_px - 1) & (ray_y < circle.bottom_px + 1)
    bright = in_frame & in_window & (profile > view.dark + max(0.25 * view.span, view.floor))
    last = np.where(bright.any(axis=1), bright.shape[1] - 1 - bright[:, ::-1].argmax(axis=1), bright.shape[1])
    row, beyond = np.arange(len(angles)), np.minimum(last + 3, len(reach) - 1)
    hard = (last < len(reach) - 3) & in_frame[row, beyond]
    hard &= ~in_window[row, beyond] | (profile[row, beyond] < view.dark + max(0.1 * view.span, view.floor))
    at = np.minimum(last, len(reach) - 1)
    ends = np.stack([ray_x[row, at], ray_y[row, at]], axis=1)
    sides = (ends[:, :1] - columns[[0, -1]], ends[:, 1:] - rows[[0, -1]])
    to_cut = np.abs(np.concatenate(sides, axis=1)).min(axis=1)
    contradiction = float((hard & (to_cut > max(0.025 * radius, 1.5))).sum() / _RIM_ANGLES)
    return (
        circle if contradiction <= _MAXIMUM_CONTRADICTION else _with_tilted_cuts(circle, (ends[hard] - center) / radius)
    )


def _with_tilted_cuts(circle: Circle, ends: Floats) -> Circle | None:
    """Return the circle with cuts along which nearly all hard edges ``[n, 2]`` (radii from the centre) lie, or None."""
    polar = np.arctan2(ends[:, 1], ends[:, 0])
    best, chosen = 0, (0.0, np.empty(0))
    for tilt in np.linspace(-np.pi / 4, np.pi / 4, 61):
        explained = np.zeros(len(ends), dtype=bool)
        offsets = np.full(4, np.inf)
        for side in range(4):  # right, bottom, left, top
            direction = tilt + side * np.pi / 2
            along = ends @ np.array([np.cos(direction), np.sin(direction)])
            facing = np.cos(polar - direction) > 0.9
            if facing.sum() >= 5:
                offset = float(np.median(along[facing]))
                on_line = np.abs(along - offset) < 0.03
                if offset > NEAREST_CUT and on_line.sum() >= 8:
                    explained |= on_line
                    offsets[side] = offset
        if explained.sum() > best:
            best, chosen = int(explained.sum()), (float(tilt), offsets)
    if best < 0.85 * len(ends):
        return None
    right, bottom, left, top = chosen[1] * circle.radius_px - 1.5
    x, y = circle.center_x_px, circle.center_y_px
    return replace(circle, left_px=x - left, top_px=y - top, right_px=x + right, bottom_px=y + bottom, tilt=chosen[0])


def closeness(view: View, circle: Circle) -> float:
    """Return the share of the rim near a circle that lies on it to .6 % of its radius: of an ellipse it is less."""
    rim = _rim(view, np.array([circle.center_x_px, circle.center_y_px, circle.radius_px]))
    near = rim.on_circle(0.04)
    return float((np.abs(rim.radius[near] / circle.radius_px - 1.0) < 0.006).mean()) if near.any() else 0.0


def visible_rim(view: View, circle: tuple[float, float, float]) -> float:
    """Return the share of the circumference of a circle (x, y, r) at which there is a rim."""
    return float(_rim(view, np.array(circle)).on_circle(0.02).mean())


def flattening(view: View, circle: Circle) -> float:
    """Return how much wider than high the rim is, as a share of the radius to either side of the circle."""
    rim = _rim(view, np.array([circle.center_x_px, circle.center_y_px, circle.radius_px]))
    on_rim = rim.on_circle(0.04)
    x, y = rim.cosine[on_rim], rim.sine[on_rim]
    design = np.stack([x**2 - y**2, np.ones_like(x), x, y], axis=1)
    (share, *_), *_ = np.linalg.lstsq(design, rim.radius[on_rim] / circle.radius_px - 1.0, rcond=None)
    return float(share)


def _straight_cuts(view: View, circle: Floats) -> tuple[float, float, float, float]:
    """Find straight cuts of the disc by the camera: (left, top, right, bottom), +-inf without a cut.

    The black beyond a cut is inside the circle, and often contains text. Going outwards from the centre, a cut is the
    first row or column that is mostly as dark as the surround.
    """
    height, width = view.lightness.shape
    y, x = np.ogrid[:height, :width]
    within = (x + 0.5 - circle[0]) ** 2 + (y + 0.5 - circle[1]) ** 2 < (0.985 * circle[2]) ** 2
    lit = within & (view.lightness > view.dark + max(0.06 * view.span, view.floor))
    edges = []
    for axis, center in ((0, circle[0]), (1, circle[1])):
        length = within.sum(axis=axis)
        share = lit.sum(axis=axis) / np.maximum(length, 1)
        distance = np.arange(len(length)) + 0.5 - center
        black = (share < 0.5) & (length > 3) & (np.abs(distance) > NEAREST_CUT * circle[2])
        before, after = np.flatnonzero(black & (distance < 0)), np.flatnonzero(black & (distance > 0))
        first, end = -math.inf, math.inf
        # A sharp cut: three lines further in, nearly all is lit, unlike in a shadow. The edge is placed one line inside
        # the black, because the line between is half lit.
        if len(before) and share[min(before[-1] + 3, len(share) - 1)] > _LIT_BESIDE_CUT:
            first = before[-1] + 2.0
        if len(after) and share[max(after[0] - 3, 0)] > _LIT_BESIDE_CUT:
            end = after[0] - 1.0
        edges.append((first, end))
    (left, right), (top, bottom) = edges
    return float(left), float(top), float(right), float(bottom)
