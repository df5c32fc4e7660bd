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

    Pixels outside the mask are set to black before and after the resize, so that burned-in text and slide frames leave
    no trace. Parts of the circle outside the photograph are black.

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
    side = 2.0 * circle.radius_px
    left, top = circle.center_x_px - circle.radius_px, circle.center_y_px - circle.radius_px
    x0, y0 = int(np.floor(left)), int(np.floor(top))
    x1, y1 = int(np.ceil(left + side)), int(np.ceil(top + side))
    inside = (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height))
    if inside[0] >= inside[2] or inside[1] >= inside[3] or side > _MAX_CANVAS * max(height, width):
        raise DataError(f"the circle {circle} is not inside a picture of {width} x {height} px")
    # Padding repeats the border: black would darken the outermost rows of retina in the resize.
    canvas = np.pad(
        pixels[inside[1] : inside[3], inside[0] : inside[2]],
        ((inside[1] - y0, y1 - inside[3]), (inside[0] - x0, x1 - inside[2]), (0, 0)),
        mode="edge",
    )
    center_x, center_y, radius = circle.center_x_px - x0, circle.center_y_px - y0, circle.radius_px
    factor = max(1, int(side // (_OVERSAMPLING * image_size_px)))
    if factor > 1:
        canvas = np.array(Image.fromarray(canvas).reduce(factor))
        center_x, center_y, radius = center_x / factor, center_y / factor, radius / factor
    # One pixel inside the final mask: averaging has mixed the neighbours of the rim into it.
    visible = _disc(canvas.shape[0], canvas.shape[1], center_x, center_y, radius - 1.0)
    visible &= _within(canvas.shape[1], factor, circle.left_px - x0, circle.right_px - x0)
    visible &= _within(canvas.shape[0], factor, circle.top_px - y0, circle.bottom_px - y0)[:, None]
    _blacken(canvas, visible)
    image = Image.fromarray(canvas)
    # Clamped: after averaging by an integer factor it can be a fraction of a pixel outside.
    box = np.clip([center_x - radius, center_y - radius, center_x + radius, center_y + radius], 0, [*image.size] * 2)
    resized = image.resize((image_size_px, image_size_px), Image.Resampling.LANCZOS, box=tuple(box.tolist()))
    mask = fundus_mask(circle, frame_height_px=height, frame_width_px=width, image_size_px=image_size_px)
    return np.asarray(np.asarray(resized) * mask[..., None], dtype=np.uint8)


def _blacken(canvas: NDArray[np.uint8], visible: NDArray[np.bool_]) -> None:
    """Set invisible pixels to black, in place; the visible part of a row is contiguous, so two slices are enough."""
    first = np.where(visible.any(axis=1), visible.argmax(axis=1), visible.shape[1])
    end = visible.shape[1] - visible[:, ::-1].argmax(axis=1)
    for row, (left, right) in enumerate(zip(first.tolist(), end.tolist(), strict=True)):
        canvas[row, :left] = 0
        canvas[row, right:] = 0


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
    scale = 2.0 * circle.radius_px / image_size_px
    half = image_size_px / 2
    mask = _disc(image_size_px, image_size_px, half, half, RIM_SHRINK * half)
    x0, y0 = circle.center_x_px - circle.radius_px, circle.center_y_px - circle.radius_px
    # A target pixel must be completely inside the photograph, so that nothing outside it is mixed in.
    edge = scale / 2
    left, right = max(circle.left_px, 0.0), min(circle.right_px, frame_width_px)
    top, bottom = max(circle.top_px, 0.0), min(circle.bottom_px, frame_height_px)
    mask &= _within(image_size_px, scale, left + edge - x0, right - edge - x0)
    mask &= _within(image_size_px, scale, top + edge - y0, bottom - edge - y0)[:, None]
    return mask


def _within(number: int, scale: float, first: float, end: float) -> NDArray[np.bool_]:
    """Return which of ``number`` pixels of edge ``scale`` have their centre in [first, end], bool ``[number]``."""
    centers = (np.arange(number) + 0.5) * scale
    return np.asarray((centers >= first) & (centers <= end))


def _disc(height: int, width: int, center_x: float, center_y: float, radius: float) -> NDArray[np.bool_]:
    """Return the pixels whose centre lies in a disc, bool ``[height, width]``."""
    dx = (np.arange(width, dtype=np.float32) + 0.5 - np.float32(center_x)) ** 2
    dy = (np.arange(height, dtype=np.float32) + 0.5 - np.float32(center_y)) ** 2
    return np.asarray(dx[None, :] + dy[:, None] < np.float32(max(radius, 0.0) ** 2))
