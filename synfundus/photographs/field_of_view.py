"""Find the circle of retina in a fundus photograph, or give the reason why there is none.

A fundus camera images the retina through a round mask, so a photograph is a disc on black (or, as a slide, on a uniform
mount). Only the rim is dark on its outer side, sharp, and round; vessels, lesions, the optic disc, text burned into the
margin and slide frames each lack one of the three. Whether a disc is a retina is not decided here, but by the label
``is_fundus``. The search runs on a copy of at most `WORKING_SIZE_PX`: log-compressed lightness (which makes the rim of
an underexposed image as strong an edge as that of a bright one), edge points with their normals, circles through random
triples whose normals agree, a least-squares refinement on the half-height of the rim's radial profiles, and a check of
the whole rim.

Coordinates are continuous: pixel (column 0, row 0) covers [0, 1) x [0, 1), so its centre is (0.5, 0.5) and
a circle scales with its image.

Source: consensus of random samples after Fischler and Bolles 1981, "Random sample consensus"; algebraic
circle fit after Kasa 1976, "A circle fitting procedure and its error analysis".
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synfundus.errors import DataError
from synfundus.photographs.burned_text import connected_shapes
from synfundus.photographs.outlines.bands import band_cuts
from synfundus.photographs.outlines.mount import distance_to_mount
from synfundus.photographs.outlines.window import find_window
from synfundus.photographs.rim import Circle, Floats, View, closeness, flattening, refine_circle, visible_rim
from synfundus.seeding import keyed_generator

__all__ = ["Circle", "FieldOfViewError", "NoFieldOfView", "find_field_of_view"]

WORKING_SIZE_PX = 256
"""Maximum side of the working copy."""
MINIMUM_DIAMETER_PX = 32
"""Below this no retina is visible."""
MINIMUM_RADIUS_OF_SHORT_SIDE = 0.2
"""A smaller circle is an object in the picture (a coin, an inset), not the field of view of a camera."""
MAXIMUM_ASPECT = 1.11
"""Beyond it, height over width of the rim is not that of a camera's pixels: the picture is refused as not round."""

_Level = TypeVar("_Level", bound=np.generic)

_BLACK_LEVEL = 10.0  # of 255: darker pictures show nothing
_EDGE_POINTS = 500
_TRIPLES = 4000
_CANDIDATES = 96
_REFINED = 4
_CERTAIN_RIM = 0.4  # of the circumference: with less visible, other outlines are tried too
_CLOSE, _SQUEEZED = 0.8, 0.012  # share of a stretched rim on the circle (a reflex has less); error of width and height
_OTHER_RADIUS, _OTHER_DISC = 0.33, 0.06  # radius of a second disc and lit area beside the first, in those of the first
_APART, _OTHER_RIM = 0.7, 0.3  # distance of two discs, in their radii; circumference of the second's visible rim
_SMALLEST_OF_MANY = 0.12  # of the short side: smaller discs are objects


class NoFieldOfView(StrEnum):
    """Why a picture has no usable field of view; the values are the reasons in ``rejects.jsonl``."""

    ALL_BLACK = "all_black"
    NO_FIELD_OF_VIEW = "no_field_of_view"
    TOO_SMALL = "too_small"
    NOT_ROUND = "not_round"
    SEVERAL = "several_fields_of_view"
    FLAT = "flat"


class FieldOfViewError(DataError):
    """A picture in which no plausible field of view was found.

    Attributes:
        reason: Reason of the rejection.
    """

    title = "Field of view"

    def __init__(self, reason: NoFieldOfView, message: str) -> None:
        super().__init__(message)
        self.args = (reason, message)  # arguments for unpickling
        self.reason = reason


def find_field_of_view(pixels: NDArray[np.uint8]) -> Circle:
    """Return the circle that contains the retina, a pure function of the pixels.

    Args:
        pixels: uint8 ``[h, w, 3]`` RGB.

    Raises:
        FieldOfViewError: With the reason; ``no_field_of_view`` is noise, a natural picture or a page of text.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < MINIMUM_DIAMETER_PX:
        raise FieldOfViewError(
            NoFieldOfView.TOO_SMALL,
            f"the picture is {width} x {height} px; a field of view needs {MINIMUM_DIAMETER_PX} px",
        )
    copy = _working_copy(pixels)
    # The brightest channel: red in a photograph of a retina, any channel in a red-free or tinted one.
    lightness = _smoothed(np.maximum(np.maximum(copy[..., 0], copy[..., 1]), copy[..., 2]))
    if float(np.percentile(lightness, 96.0)) < _BLACK_LEVEL:
        raise _nearly_black(lightness)
    view, best = _search(lightness)
    views = [view]
    if best is None or best.visible_fraction < _CERTAIN_RIM:
        channels = np.stack([_smoothed(copy[..., channel]) for channel in range(3)])
        mounted, disc = _search(distance_to_mount(channels, lightness))
        views.append(mounted)
        if best is None and disc is not None:
            view, best = mounted, disc
    squeeze = 0.0
    if view is not None and best is not None and best.visible_fraction > _CERTAIN_RIM and best.inlier_fraction < 0.95:
        share = flattening(view, best)
        squeeze = share if abs(share) > _SQUEEZED else 0.0
    aspect, window = 1.0, None
    if best is None or best.visible_fraction < _CERTAIN_RIM:
        windows = (find_window(one) for one in views if one is not None)
        window = next((one for one in windows if one is not None), None)
    if window is not None:
        view, best = window
    elif best is None or min(best.inlier_fraction / 0.9, best.visible_fraction / _CERTAIN_RIM) < 1 or squeeze:
        aspect, view, best = _squeezed_or(view, best, lightness, squeeze)
        copy = _stretched(copy, aspect)
    if view is None or best is None:
        raise FieldOfViewError(NoFieldOfView.NO_FIELD_OF_VIEW, "no round, sharp rim with black outside it")
    if best.radius_px > _SMALLEST_OF_MANY * min(view.lightness.shape) and _has_another(view, best):
        raise FieldOfViewError(NoFieldOfView.SEVERAL, "the picture shows more than one field of view")
    best = replace(best.shifted(view.left, view.top), aspect=aspect)
    banded = band_cuts(copy, best, view.dark + max(0.06 * view.span, view.floor), in_window=window is not None)
    if best.tilt and banded != best:
        raise FieldOfViewError(NoFieldOfView.NO_FIELD_OF_VIEW, "a caption band beside edges that are tilted")
    found = banded.scaled(width / copy.shape[1], height / copy.shape[0])
    smallest = max(MINIMUM_DIAMETER_PX / 2, MINIMUM_RADIUS_OF_SHORT_SIDE * min(height, width))
    if found.radius_px < smallest:
        raise FieldOfViewError(
            NoFieldOfView.TOO_SMALL,
            f"the largest circle has a radius of {found.radius_px:.0f} px in a picture of {width} x {height} px",
        )
    return found


def _squeezed_or(
    view: View | None, best: Circle | None, lightness: Floats, squeeze: float
) -> tuple[float, View | None, Circle | None]:
    """Return the rim's height over its width, view and circle: of the ellipse if it explains more of the rim.

    Raises:
        FieldOfViewError: The rim is an ellipse that is not nearly round.
    """
    ellipse = _search_ellipse(lightness, (1 - squeeze) / (1 + squeeze) if squeeze else None)
    if ellipse is None:
        return 1.0, view, best
    if best is not None:
        better = 0.95 if squeeze else 1.15
        if _rim_length(ellipse[2]) < better * _rim_length(best) or closeness(ellipse[1], ellipse[2]) < _CLOSE:
            return 1.0, view, best
    if ellipse[2].visible_fraction < _CERTAIN_RIM:
        return 1.0, view, best
    if not 1 / MAXIMUM_ASPECT < ellipse[0] < MAXIMUM_ASPECT:
        raise FieldOfViewError(
            NoFieldOfView.NOT_ROUND,
            f"the rim is {ellipse[0]:.2f} times as high as wide: the picture was resized to another shape, or its "
            "pixels are not square",
        )
    return ellipse


def _search_ellipse(lightness: Floats, start: float | None) -> tuple[float, View, Circle] | None:
    """Return height over width of the rim of a picture that was squeezed, and its view and circle when it is stretched.

    Coarsely by the votes of the edge points for circles, then from the rim's own profiles.
    """
    view = _view(lightness)
    if view is None:
        return None
    best: tuple[float, View, Circle] | None = None
    aspect = _voted_aspect(view) if start is None else start
    for _ in range(3):
        view, circle = _search(_stretched(lightness, aspect))
        if view is None or circle is None:
            break
        best = aspect, view, circle
        share = flattening(view, circle)
        if abs(share) < 0.004:
            break
        aspect *= (1 - share) / (1 + share)
    if best is None or abs(np.log(best[0])) < 0.02:
        return None
    x, y = np.arange(best[1].lightness.shape[1]) + 0.5, np.arange(best[1].lightness.shape[0]) + 0.5
    inside = best[2].shows(x, y, reach_px=0.9 * best[2].radius_px, margin_px=2.0)
    # A drawn oval is flat; retina is not.
    textured = np.diff(best[1].lightness, axis=1, append=0.0)[inside] != 0.0
    return best if textured.mean() > 0.5 else None


def _voted_aspect(view: View) -> float:
    """Return the height over width for which most edge points vote for a common circle after stretching."""
    points, normals = _edge_points(view)
    height, width = view.lightness.shape
    votes = []
    for aspect in np.geomspace(0.5, 2.0, 30).tolist():
        turned = normals * [1.0, aspect]
        turned /= np.hypot(turned[:, 0], turned[:, 1])[:, None]
        candidates = _candidates(points / [1.0, aspect], turned, (height / aspect, width))
        votes.append((candidates[0][1] if candidates else 0, aspect))
    return float(max(votes)[1])


def _nearly_black(lightness: Floats) -> FieldOfViewError:
    """Return the refusal of a picture of which 96 % are black: a compact bright spot is a disc, lines are text."""
    for left, top, right, bottom, lit in connected_shapes(lightness > _BLACK_LEVEL).tolist():
        wide, tall = right - left, bottom - top
        if min(wide, tall) >= 12 and 0.5 < tall / wide < 2.0 and lit > 0.5 * wide * tall:
            return FieldOfViewError(
                NoFieldOfView.TOO_SMALL,
                f"what is not black is {100 * wide / lightness.shape[1]:.0f} % of the picture's width and "
                f"{100 * tall / lightness.shape[0]:.0f} % of its height",
            )
    return FieldOfViewError(NoFieldOfView.ALL_BLACK, f"96 % of the picture is below {_BLACK_LEVEL:.0f} of 255")


def _has_another(view: View, circle: Circle) -> bool:
    """Whether there is a second disc beside the first, of at least a third of its width."""
    height, width = view.lightness.shape
    x, y = np.arange(width) + 0.5 - circle.center_x_px, np.arange(height)[:, None] + 0.5 - circle.center_y_px
    beside = x**2 + y**2 > (1.04 * circle.radius_px) ** 2
    lit = view.lightness[beside] > view.dark + max(0.12 * view.span, view.floor)
    if lit.sum() < _OTHER_DISC * np.pi * circle.radius_px**2:
        return False
    rest, other = _search(np.where(beside, view.lightness, view.dark))
    if rest is None or (other is not None and other.radius_px > _OTHER_RADIUS * circle.radius_px):
        return other is not None
    # Where two discs that are cut meet, the rim of each is hidden.
    for (x, y, radius), _ in _candidates(*_edge_points(rest), rest.lightness.shape):
        away = np.hypot(x + rest.left - circle.center_x_px, y + rest.top - circle.center_y_px)
        apart = away > _APART * (circle.radius_px + radius)
        if apart and radius > _OTHER_RADIUS * circle.radius_px and visible_rim(rest, (x, y, radius)) > _OTHER_RIM:
            return True
    return False


def _view(lightness: Floats) -> View | None:
    """Remove a light frame and measure the levels; None for a picture without contrast."""
    dark, bright = np.percentile(lightness, [1.0, 96.0])
    if bright - dark < _BLACK_LEVEL / 2:
        return None
    top, bottom, left, right = _frame_widths(lightness, float(dark + 0.25 * (bright - dark)))
    lightness = lightness[top : lightness.shape[0] - bottom, left : lightness.shape[1] - right]
    if min(lightness.shape) < MINIMUM_DIAMETER_PX // 2:
        return None
    darkest, bright = np.percentile(lightness, [1.0, 96.0])
    margin = lightness < darkest + max(0.12 * (bright - darkest), 3.0)
    dark = float(np.median(lightness[margin]))
    span = float(bright) - dark
    difference = np.abs(lightness[2:, 2:] - lightness[:-2, :-2])[margin[2:, 2:] & margin[:-2, :-2]]
    noise = float(np.median(difference)) if difference.size > 20 else 0.0
    if span < _BLACK_LEVEL / 2:
        return None
    return View(lightness, left, top, dark, span, max(3.0, 4.5 * noise))


def _frame_widths(lightness: Floats, light: float) -> tuple[int, int, int, int]:
    """Count the rows and columns without dark pixels at the four sides: the mount of a slide."""
    widths = []
    for axis, reverse in ((1, False), (1, True), (0, False), (0, True)):
        lines = (lightness > light).mean(axis=axis) > 0.97
        lines = lines[::-1] if reverse else lines
        run = len(lines) if lines.all() else int(lines.argmin())
        widths.append(run if run < 0.25 * len(lines) else 0)
    return widths[0], widths[1], widths[2], widths[3]


def _search(lightness: Floats) -> tuple[View | None, Circle | None]:
    """Return the view of a picture and the best circle in it, in pixels of the view."""
    view = _view(lightness)
    if view is None:
        return None, None
    best: Circle | None = None
    points, normals = _edge_points(view)
    for candidate, _ in _candidates(points, normals, view.lightness.shape):
        checked = refine_circle(view, candidate)
        if checked is not None and (best is None or _rim_length(checked) > _rim_length(best)):
            best = checked
            if checked.inlier_fraction > 0.9:
                break
    return view, best


def _rim_length(circle: Circle) -> float:
    return circle.radius_px * circle.visible_fraction


def _working_copy(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a copy ``[h', w', 3]`` of at most `WORKING_SIZE_PX` per side."""
    height, width = pixels.shape[:2]
    factor = max(height, width) / WORKING_SIZE_PX
    if factor <= 1.0:
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    return np.asarray(image.resize(size, Image.Resampling.BOX, reducing_gap=2.0))


def _stretched(picture: NDArray[_Level], aspect: float) -> NDArray[_Level]:
    """Return ``[h, w]`` or ``[h, w, 3]`` with its height divided by ``aspect``."""
    size = (picture.shape[1], max(1, round(picture.shape[0] / aspect)))
    image = Image.fromarray(picture.astype(np.float32) if picture.ndim == 2 else picture)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR), dtype=picture.dtype)


def _smoothed(channel: NDArray[np.uint8]) -> Floats:
    """Return a binomial 3 x 3 average of ``[h, w]``."""
    padded = np.pad(channel.astype(np.float64), 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16.0)


def _edge_points(view: View) -> tuple[Floats, Floats]:
    """Return edge points ``[n, 2]`` (x, y) and unit normals towards the bright side, at most `_EDGE_POINTS`."""
    lightness = view.lightness
    compressed = np.log1p(np.maximum(lightness - view.dark, 0.0) / max(0.05 * view.span, view.floor))
    grad_y, grad_x = np.gradient(compressed)
    strength = np.hypot(grad_x, grad_y)
    rows, columns = np.nonzero(strength > max(0.1, 0.3 * float(np.percentile(strength, 99.0))))
    unit_x, unit_y = (g[rows, columns] / strength[rows, columns] for g in (grad_x, grad_y))
    # Non-maximum suppression: keep points without a stronger neighbour along the normal.
    height, width = lightness.shape
    step_x, step_y = np.rint(unit_x).astype(int), np.rint(unit_y).astype(int)
    crest = np.ones(len(rows), dtype=bool)
    for sign in (-1, 1):
        beside = strength[np.clip(rows + sign * step_y, 0, height - 1), np.clip(columns + sign * step_x, 0, width - 1)]
        crest &= strength[rows, columns] >= beside
    # Behind a rim is the black surround; behind a vessel or a lesion is retina.
    behind_y = np.clip(np.rint(rows - 3 * unit_y).astype(int), 0, height - 1)
    behind_x = np.clip(np.rint(columns - 3 * unit_x).astype(int), 0, width - 1)
    behind = lightness[behind_y, behind_x]
    front_y = np.clip(np.rint(rows + 2 * unit_y).astype(int), 0, height - 1)
    front_x = np.clip(np.rint(columns + 2 * unit_x).astype(int), 0, width - 1)
    crest &= (behind < view.dark + max(0.2 * view.span, view.floor)) & (
        lightness[front_y, front_x] - behind > view.floor
    )
    chosen = np.flatnonzero(crest)
    if len(chosen) > _EDGE_POINTS:
        chosen = keyed_generator(0, "field-of-view", "edges").permutation(chosen)[:_EDGE_POINTS]
    points = np.stack([columns[chosen] + 0.5, rows[chosen] + 0.5], axis=1)
    return points, np.stack([unit_x[chosen], unit_y[chosen]], axis=1)


def _candidates(points: Floats, normals: Floats, shape: tuple[float, ...]) -> list[tuple[Floats, int]]:
    """Return the circles (x, y, r) with the most votes of edge points, and the votes, best first."""
    if len(points) < 24:
        return []
    triples = keyed_generator(0, "field-of-view", "triples").integers(len(points), size=(_TRIPLES, 3))
    circles = _circles_through(points[triples])
    height, width = shape
    x, y, radius = circles.T
    usable = (x > 0) & (x < width) & (y > 0) & (y < height) & (radius > 6) & (radius < 0.9 * max(height, width))
    inward = circles[:, None, :2] - points[triples]
    with np.errstate(invalid="ignore"):
        agreement = np.einsum("tkd,tkd->tk", inward, normals[triples]) / radius[:, None]
    usable &= (agreement > 0.95).all(axis=1)
    circles = circles[usable][:_CANDIDATES]
    if not len(circles):
        return []
    inward = circles[:, None, :2] - points[None]
    distance = np.hypot(inward[..., 0], inward[..., 1])
    on_rim = np.abs(distance - circles[:, 2:]) < np.maximum(1.2, 0.015 * circles[:, 2:])
    facing = inward[..., 0] * normals[:, 0] + inward[..., 1] * normals[:, 1] > 0.9 * distance
    votes = (on_rim & facing).sum(axis=1)
    order = np.argsort(-votes, kind="stable")
    return [(circles[i], int(votes[i])) for i in order[:_REFINED] if votes[i] >= 12]


def _circles_through(triples: Floats) -> Floats:
    """Return the circles (x, y, r) ``[n, 3]`` through point triples ``[n, 3, 2]``; NaN where collinear."""
    origin = triples[:, 0]
    b, c = triples[:, 1] - origin, triples[:, 2] - origin
    determinant = 2 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    b2, c2 = (b**2).sum(axis=1), (c**2).sum(axis=1)
    determinant[np.abs(determinant) < 1e-6] = np.nan
    x = (c[:, 1] * b2 - b[:, 1] * c2) / determinant
    y = (b[:, 0] * c2 - c[:, 0] * b2) / determinant
    return np.stack([origin[:, 0] + x, origin[:, 1] + y, np.hypot(x, y)], axis=1)
