"""Fundus geometry: crop to the field of view and mask.

Works on numpy arrays, without torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synfundus.errors import DataError
from synfundus.photographs.rim import Circle

RIM_SHRINK = 0.985
"""Radius of the mask in units of the rim radius: text may be directly beside the rim."""
EYE_SIDE = "eye_side"

_OVERSAMPLING = 2  # a photograph is averaged down to at least this multiple of the target before the final resize
_MAX_CANVAS = 16  # maximum side of the crop square, in long sides of the photograph


def crop_to_field_of_view(pixels: NDArray[np.uint8], circle: Circle, image_size_px: int) -> NDArray[np.uint8]:
    """Cut out the square around the field of view and resize it; the circle touches all four sides.

    Pixels outside the mask take the colour of the retina beside them before the resize, and are black after it, so that
    burned-in text and slide frames leave no trace and black does not ring into the rim. Parts of the circle outside the
    photograph are black. Pixels that are not square become square.

    Args:
        pixels: uint8 ``[h, w, 3]``.
        circle: The field of view in pixels of the photograph.
        image_size_px: Edge ``s`` of the result.

    Returns:
        uint8 ``[s, s, 3]``.

    Raises:
        DataError: The circle is completely outside the photograph, or far larger.
    """
    height, width = pixels.shape[:2]
    across, down = circle.radius_px, circle.radius_px * circle.aspect
    left, top = circle.center_x_px - across, circle.center_y_px - down
    x0, y0 = int(np.floor(left)), int(np.floor(top))
    x1, y1 = int(np.ceil(left + 2 * across)), int(np.ceil(top + 2 * down))
    inside = (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height))
    too_large = 2 * max(across, down) > _MAX_CANVAS * max(height, width)
    if inside[0] >= inside[2] or inside[1] >= inside[3] or too_large:
        raise DataError(f"the circle {circle} is not inside a picture of {width} x {height} px")
    # Padding repeats the border: black would darken the outermost rows of retina in the resize.
    canvas = np.pad(
        pixels[inside[1] : inside[3], inside[0] : inside[2]],
        ((inside[1] - y0, y1 - inside[3]), (inside[0] - x0, x1 - inside[2]), (0, 0)),
        mode="edge",
    )
    factor = max(1, int(2 * min(across, down) // (_OVERSAMPLING * image_size_px)))
    if factor > 1:
        canvas = np.array(Image.fromarray(canvas).reduce(factor))
    # One pixel inside the final mask: averaging has mixed the neighbours of the rim into it.
    one = factor / min(circle.aspect, 1.0)
    x, y = ((np.arange(number) + 0.5) * factor for number in canvas.shape[1::-1])
    visible = circle.shows(x0 + x, y0 + y, reach_px=across - one, margin_px=0.5 * factor)
    _continue_outwards(canvas, visible)
    image = Image.fromarray(canvas)
    # Clamped: after averaging by an integer factor it can be a fraction of a pixel outside.
    box = np.array([left - x0, top - y0, left + 2 * across - x0, top + 2 * down - y0]) / factor
    box = np.clip(box, 0, [*image.size] * 2)
    resized = image.resize((image_size_px, image_size_px), Image.Resampling.LANCZOS, box=tuple(box.tolist()))
    mask = fundus_mask(circle, frame_height_px=height, frame_width_px=width, image_size_px=image_size_px)
    return np.asarray(np.asarray(resized) * mask[..., None], dtype=np.uint8)


def _continue_outwards(canvas: NDArray[np.uint8], visible: NDArray[np.bool_]) -> None:
    """Give invisible pixels the colour of the nearest visible one of their row, or of the nearest such row, in place.

    The visible part of a row is contiguous, so two slices are enough.
    """
    seen = np.flatnonzero(visible.any(axis=1))
    if not len(seen):
        canvas[:] = 0
        return
    first = visible.argmax(axis=1)
    end = visible.shape[1] - visible[:, ::-1].argmax(axis=1)
    for row in seen.tolist():
        canvas[row, : first[row]] = canvas[row, first[row]]
        canvas[row, end[row] :] = canvas[row, end[row] - 1]
    canvas[: seen[0]] = canvas[seen[0]]
    canvas[seen[-1] + 1 :] = canvas[seen[-1]]


def fundus_mask(circle: Circle, *, frame_height_px: int, frame_width_px: int, image_size_px: int) -> NDArray[np.bool_]:
    """Return where a crop shows retina: inside the rim, the photograph and any straight cuts of the camera.

    Args:
        circle: The field of view in pixels of the photograph.
        frame_height_px: Height of the photograph.
        frame_width_px: Width of the photograph.
        image_size_px: Edge ``s`` of the crop.

    Returns:
        bool ``[s, s]``.
    """
    # A target pixel must be completely inside the photograph, so that nothing outside it is mixed in.
    unit = (np.arange(image_size_px) + 0.5) / image_size_px
    across, down = circle.radius_px, circle.radius_px * circle.aspect
    x = circle.center_x_px + (2 * unit - 1) * across
    y = circle.center_y_px + (2 * unit - 1) * down
    edge_x, edge_y = across / image_size_px, down / image_size_px
    mask = circle.shows(x, y, reach_px=RIM_SHRINK * across, margin_px=max(edge_x, edge_y))
    mask &= (x >= edge_x) & (x <= frame_width_px - edge_x)
    mask &= ((y >= edge_y) & (y <= frame_height_px - edge_y))[:, None]
    return mask


def is_flat(pixels: NDArray[np.uint8]) -> bool:
    """Whether the middle of a crop ``[s, s, 3]`` is of one colour, but for noise."""
    small = np.asarray(Image.fromarray(pixels).resize((48, 48), Image.Resampling.BOX), dtype=np.float64)
    middle = small[12:36, 12:36].reshape(-1, 3)
    low, high = np.percentile(middle, [2.0, 98.0], axis=0)
    return bool((high - low <= np.maximum(2.0, 0.025 * high)).all())


_LEVELS, _LEVEL_DISTANCE, _LEVEL_SPREAD, _LEVEL_SHARE = 4, 24, 4, 0.93
# A hazy retina may have one grey, but next to nothing at a distance from it, or, as a reflex has, much between.
_SECOND_LEVEL_SHARE, _THIN_LEVEL_SHARE, _REST_IN_LEVELS = 0.01, 0.002, 0.8
_DARKEST_LEVEL = 60  # darker photographs have few greys themselves


def has_few_levels(pixels: NDArray[np.uint8], circle: Circle) -> bool:
    """Whether the middle of a disc has two to four greys far apart and next to nothing between, as masks have."""
    half, x, y = circle.radius_px / 2, circle.center_x_px, circle.center_y_px
    step = max(1, int(half / 128))
    rows, columns = (slice(max(0, round(at - half)), round(at + half), step) for at in (y, x))
    grey = np.rint(pixels[rows, columns].mean(axis=2)).astype(int)
    counts = np.bincount(grey.ravel(), minlength=256)
    levels: list[int] = []
    pixels_at: list[int] = []
    for _ in range(_LEVELS):
        near = np.convolve(counts, np.ones(2 * _LEVEL_SPREAD + 1, dtype=int), mode="same")
        levels.append(int(near.argmax()))
        pixels_at.append(int(near[levels[-1]]))
        counts[max(0, levels[-1] - _LEVEL_DISTANCE) : levels[-1] + _LEVEL_DISTANCE + 1] = 0
    thin = sum(pixels_at[1:]) >= _REST_IN_LEVELS * (grey.size - pixels_at[0])
    apart = pixels_at[1] >= (_THIN_LEVEL_SHARE if thin else _SECOND_LEVEL_SHARE) * grey.size
    return levels[0] >= _DARKEST_LEVEL and apart and sum(pixels_at) >= _LEVEL_SHARE * grey.size
