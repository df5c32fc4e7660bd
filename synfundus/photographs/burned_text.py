"""Find burned-in text inside the field of view: names, dates and numbers that a camera or program drew on the retina.

Text is sharper than the optics: a stroke rises from its background within one or two pixels. Pixels that differ from
the mean of their 7 x 7 neighbourhood are grouped into connected shapes, and shapes of similar height side by side with
a common top or bottom line are counted. This is done at two thresholds in the working copy and at one in a copy of
half the size, where the heavy strokes of large letters are sharp. No text is read.

The thresholds were set on phantoms with and without rendered text, and on one real photograph; docs/privacy.md gives
the rates on others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from synfundus.errors import DataError
from synfundus.photographs.rim import Circle

_Integers = NDArray[np.int64]

WORKING_SIZE_PX = 512
"""Minimum diameter of the working copy, if the photograph is that large."""

_SEARCHES = ((1, ((28, 4), (18, 6))), (2, ((28, 5),)))
"""Reduction of the copy; then thresholds in levels, each with the number of aligned shapes that count as text."""

_NEIGHBOURHOOD = ImageFilter.BoxBlur(3)
_RIM_MARGIN_PX = 7  # keeps the black outside out of the neighbourhoods
_MAX_SHAPES = 1000
_HEIGHTS_PX = (4, 80)
_MIN_INK_PX = 6
_MAX_WIDTH = 8.0  # heights: small letters merge
_MAX_GAP = 1.4  # heights: a space
_HEIGHT_RATIO = 2.5  # a capital and a small letter
_ALIGNED = 0.15  # heights: offset between the tops or bottoms of neighbours
_ON_LINE = 0.12  # heights: offset of a shape's top or bottom from its line
_MIN_LINE_WIDTH = 2.0  # heights
_MAX_LINE_HEIGHT = 2.5  # heights


@dataclass(frozen=True, slots=True)
class TextRegion:
    """A region with text, in pixels of the photograph.

    Attributes:
        left_px: First column.
        top_px: First row.
        right_px: End of the last column.
        bottom_px: End of the last row.
        num_shapes: Number of aligned shapes.
    """

    left_px: float
    top_px: float
    right_px: float
    bottom_px: float
    num_shapes: int


class BurnedTextError(DataError):
    """A photograph with text inside its field of view.

    Attributes:
        region: Where the text is.
    """

    title = "Burned-in text"

    def __init__(self, region: TextRegion) -> None:
        super().__init__(
            f"{region.num_shapes} aligned shapes, like text, at x {region.left_px:.0f} to {region.right_px:.0f}, "
            f"y {region.top_px:.0f} to {region.bottom_px:.0f} px"
        )
        self.args = (region,)  # arguments for unpickling
        self.region = region


def find_burned_text(pixels: NDArray[np.uint8], circle: Circle, *, size_px: int = WORKING_SIZE_PX) -> TextRegion | None:
    """Return the line inside the field of view that looks most like text, or None.

    Finds roughly horizontal lines of letters between 7 and 80 px in the working copy. A pure function of the pixels.

    Args:
        pixels: uint8 ``[h, w, 3]``, the photograph.
        circle: Its field of view.
        size_px: Diameter of the working copy; smaller photographs are not enlarged.
    """
    across, down = circle.radius_px, circle.radius_px * circle.aspect
    left, top = max(int(circle.center_x_px - across), 0), max(int(circle.center_y_px - down), 0)
    right = min(int(circle.center_x_px + across) + 1, pixels.shape[1])
    bottom = min(int(circle.center_y_px + down) + 1, pixels.shape[0])
    scale = max(2 * circle.radius_px / size_px, 1.0)
    size = (max(1, round((right - left) / scale)), max(1, round((bottom - top) / scale)))
    copy = Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right])).convert("L")
    if copy.size != size:
        copy = copy.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
    best: tuple[int, tuple[float, float, float, float]] | None = None
    for reduction, thresholds in _SEARCHES:
        reduced = copy if reduction == 1 else copy.reduce(reduction)
        step = scale * reduction
        difference = _local_difference(reduced, _inside(reduced.height, reduced.width, circle, left, top, step))
        for levels, min_shapes in thresholds:
            for found, box in _lines_of_shapes(difference, levels, min_shapes):
                if best is None or found > best[0]:
                    x0, y0, x1, y1 = (edge * step for edge in box)
                    best = found, (left + x0, top + y0, left + x1, top + y1)
    return None if best is None else TextRegion(*best[1], num_shapes=best[0])


def _inside(height: int, width: int, circle: Circle, left: int, top: int, step: float) -> NDArray[np.bool_]:
    """Return which pixels of a copy show retina, with a margin to the rim, bool ``[height, width]``."""
    x, y = left + (np.arange(width) + 0.5) * step, top + (np.arange(height) + 0.5) * step
    margin = _RIM_MARGIN_PX * step
    return circle.shows(x, y, reach_px=circle.radius_px - margin, margin_px=margin)


def _local_difference(copy: Image.Image, inside: NDArray[np.bool_]) -> NDArray[np.int16]:
    """Return the difference of each pixel from the mean of its neighbourhood, in levels; 0 outside the disc."""
    lightness = np.asarray(copy, dtype=np.int16)
    return (lightness - np.asarray(copy.filter(_NEIGHBOURHOOD), dtype=np.int16)) * inside


def _lines_of_shapes(
    difference: NDArray[np.int16], levels: int, min_shapes: int
) -> list[tuple[int, tuple[float, float, float, float]]]:
    """Return (number of aligned shapes, box) of each line of at least ``min_shapes`` light, then dark shapes."""
    lines = []
    for ink in (difference > levels, difference < -levels):
        shapes = _glyph_like(connected_shapes(ink))
        while len(shapes) > _MAX_SHAPES:
            # Noise or texture: raise the threshold; legible text has more contrast.
            levels = levels * 3 // 2
            shapes = _glyph_like(connected_shapes((difference > levels) | (difference < -levels)))
        lines += _lines(shapes, min_shapes)
    return lines


def _glyph_like(shapes: _Integers) -> _Integers:
    height, width = shapes[:, 3] - shapes[:, 1], shapes[:, 2] - shapes[:, 0]
    usable = (height >= _HEIGHTS_PX[0]) & (height <= _HEIGHTS_PX[1])
    return shapes[usable & (width <= _MAX_WIDTH * height) & (shapes[:, 4] >= _MIN_INK_PX)]


def _lines(shapes: _Integers, min_shapes: int) -> list[tuple[int, tuple[float, float, float, float]]]:
    """Join neighbours of similar height and common top or bottom; return (aligned shapes, box) of each line."""
    if len(shapes) < min_shapes:
        return []
    left, top, right, bottom, _ = shapes.T
    height = bottom - top
    taller = np.maximum(height[:, None], height)
    gap = left - right[:, None]
    between_tops, between_bottoms = np.abs(top - top[:, None]), np.abs(bottom - bottom[:, None])
    beside = (gap <= _MAX_GAP * taller) & (gap >= -0.3 * taller) & (left > left[:, None])
    beside &= taller <= _HEIGHT_RATIO * np.minimum(height[:, None], height)
    beside &= np.minimum(between_tops, between_bottoms) <= np.maximum(_ALIGNED * taller, 1.01)
    beside &= np.maximum(between_tops, between_bottoms) <= 0.6 * taller + 1
    one, other = np.nonzero(beside)
    line_of = _connected(len(shapes), one, other)
    lines = []
    for line in np.flatnonzero(np.bincount(line_of) >= min_shapes):
        members = shapes[line_of == line]
        size = float(np.percentile(members[:, 3] - members[:, 1], 75))
        near = max(_ON_LINE * size, 1.01)
        aligned = max(int((np.abs(edge - np.median(edge)) <= near).sum()) for edge in (members[:, 1], members[:, 3]))
        box = (*members[:, :2].min(axis=0).tolist(), *members[:, 2:4].max(axis=0).tolist())
        if (
            aligned >= min_shapes
            and box[2] - box[0] >= _MIN_LINE_WIDTH * size
            and box[3] - box[1] < _MAX_LINE_HEIGHT * size
        ):
            lines.append((aligned, box))
    return lines


def connected_shapes(ink: NDArray[np.bool_]) -> _Integers:
    """Return left, top, right, bottom and number of pixels of each connected shape, int64 ``[n, 5]``.

    Pixels that touch at a corner are connected. Runs of each row are joined with the touching runs of the next, which
    takes far fewer steps than joining pixels.
    """
    height, width = ink.shape
    framed = np.zeros((height, width + 2), dtype=np.int8)
    framed[:, 1:-1] = ink
    change = np.diff(framed, axis=1).ravel()
    starts, ends = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
    row = starts // (width + 1)
    start, end = starts % (width + 1), ends % (width + 1)
    # Runs are in reading order, so the runs of the next row that touch a run are consecutive.
    stride = width + 2
    first = np.searchsorted(row * stride + end, (row + 1) * stride + start, side="left")
    last = np.searchsorted(row * stride + start, (row + 1) * stride + end, side="right")
    touching = np.maximum(last - first, 0)
    one = np.repeat(np.arange(len(row)), touching)
    other = np.arange(len(one)) - np.repeat(np.cumsum(touching) - touching, touching) + np.repeat(first, touching)
    _, shape_of = np.unique(_connected(len(row), one, other), return_inverse=True)
    shapes = np.zeros((int(shape_of.max(initial=-1)) + 1, 5), dtype=np.int64)
    shapes[:, :2] = max(height, width)
    np.minimum.at(shapes[:, 0], shape_of, start)
    np.minimum.at(shapes[:, 1], shape_of, row)
    np.maximum.at(shapes[:, 2], shape_of, end)
    np.maximum.at(shapes[:, 3], shape_of, row + 1)
    np.add.at(shapes[:, 4], shape_of, end - start)
    return shapes


def _connected(number: int, one: _Integers, other: _Integers) -> _Integers:
    """Return the connected component of each of ``number`` elements, as its smallest member."""
    label = np.arange(number)
    while True:
        smaller = np.minimum(label[one], label[other])
        joined = label.copy()
        np.minimum.at(joined, label[one], smaller)
        np.minimum.at(joined, label[other], smaller)
        joined = joined[joined]
        if np.array_equal(joined, label):
            return label
        label = joined
