"""Drawing in eye coordinates: the view, anti-aliased masks, smooth noise, colour layers.

Eye coordinates are those of a *right* eye as seen by the photographer; the unit is the field-of-view radius at zoom 1,
x to the right (nasal), y down. A left eye is mirrored by the view. Pixel coordinates are
continuous: pixel (row i, column j) has its centre at (j + 0.5, i + 0.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

FloatArray = NDArray[np.float32]
Rgb = tuple[float, float, float]

NOISE_HALF_SPAN = 1.7
"""Noise fields cover eye coordinates [-1.7, 1.7]: every pixel of every pose."""


@lru_cache(maxsize=8)
def pixel_grid(size_px: int) -> tuple[FloatArray, FloatArray]:
    """Return the pixel centres' x ``[1, w]`` and y ``[h, 1]`` in continuous pixel coordinates."""
    centers = np.arange(size_px, dtype=np.float32) + np.float32(0.5)
    return centers[None, :], centers[:, None]


@dataclass(frozen=True)
class View:
    """The mapping of an eye to pixels: mirror -> rotate -> zoom -> shift -> pixels.

    Attributes:
        size_px: Side of the square picture.
        center_px: Centre of the field-of-view circle (x, y).
        radius_px: Radius of the field-of-view circle.
        mirrored: True for a left eye.
        rotation: Cyclotorsion in radians.
        zoom: Magnification.
        shift: Gaze offset in units of the radius.
    """

    size_px: int
    center_px: tuple[float, float]
    radius_px: float
    mirrored: bool
    rotation: float
    zoom: float
    shift: tuple[float, float]

    @property
    def supersampling(self) -> int:
        """Mask samples per pixel and axis; thin vessels need more in small pictures."""
        return 4 if self.size_px <= 160 else 3 if self.size_px <= 320 else 2

    def forward(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return matrix ``[2, 2]`` and offset ``[2]`` that map eye coordinates to pixels."""
        cos, sin = math.cos(self.rotation), math.sin(self.rotation)
        mirror = -1.0 if self.mirrored else 1.0
        scale = self.radius_px * self.zoom
        matrix = np.array([[cos * mirror, -sin], [sin * mirror, cos]]) * scale
        offset = np.array(self.center_px) + self.radius_px * np.array(self.shift)
        return matrix, offset

    def to_pixels(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map eye coordinates ``[..., 2]`` to pixels ``[..., 2]``."""
        matrix, offset = self.forward()
        return np.asarray(points @ matrix.T + offset)

    def eye_grid(self) -> tuple[FloatArray, FloatArray]:
        """Return the eye coordinates (x, y) of every pixel centre, each ``[h, w]``."""
        matrix, offset = self.forward()
        inverse = np.linalg.inv(matrix).astype(np.float32)
        columns, rows = pixel_grid(self.size_px)
        dx = columns - np.float32(offset[0])
        dy = rows - np.float32(offset[1])
        return inverse[0, 0] * dx + inverse[0, 1] * dy, inverse[1, 0] * dx + inverse[1, 1] * dy

    def noise(self, generator: np.random.Generator, *, cells: int, aspect: float = 1.0) -> FloatArray:
        """Draw smooth noise ``[h, w]`` of about unit variance that moves with the eye.

        Args:
            generator: Stream of the eye, for the same texture at every visit.
            cells: Grid cells across the field; more cells give finer grain.
            aspect: Cells along y per cell along x; above 1 gives horizontal streaks.
        """
        rows, columns = cells, max(4, round(cells / aspect))
        grid = generator.standard_normal((rows, columns), dtype=np.float32)
        matrix, offset = self.forward()
        inverse = np.linalg.inv(matrix)
        start = NOISE_HALF_SPAN - inverse @ offset
        sx, sy = columns / (2 * NOISE_HALF_SPAN), rows / (2 * NOISE_HALF_SPAN)
        coefficients = (np.column_stack([inverse, start]) * [[sx], [sy]]).ravel().tolist()
        field = Image.fromarray(grid).transform(
            (self.size_px, self.size_px), Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BICUBIC
        )
        return np.asarray(field, dtype=np.float32) * np.float32(1.35)


class Mask:
    """A coverage mask drawn with polygons at several samples per pixel."""

    def __init__(self, view: View) -> None:
        self.view = view
        side = view.size_px * view.supersampling
        self._image = Image.new("L", (side, side), 0)
        self._draw = ImageDraw.Draw(self._image)

    def polygons(self, outlines: NDArray[np.floating], fills: NDArray[np.floating] | float) -> None:
        """Fill outlines ``[n, k, 2]`` (eye coordinates) in order with ``fills`` in 0..1."""
        if len(outlines) == 0:
            return
        pixels = self.view.to_pixels(outlines) * self.view.supersampling - 0.5
        side = self.view.size_px * self.view.supersampling
        low, high = pixels.min(axis=1), pixels.max(axis=1)
        visible = (high >= 0).all(axis=1) & (low < side).all(axis=1)
        values = np.broadcast_to(np.asarray(fills, dtype=np.float64) * 255, (len(outlines),))
        rows = np.rint(pixels[visible]).reshape(int(visible.sum()), 2 * outlines.shape[1]).tolist()
        for row, value in zip(rows, np.rint(values[visible]).astype(int).tolist(), strict=True):
            self._draw.polygon(row, fill=value)

    def finish(self, *, blur: float) -> FloatArray:
        """Return the coverage ``[h, w]`` in 0..1, blurred by ``blur`` field-of-view radii (not below 0.2 px)."""
        mask, sigma_px = self._image.reduce(self.view.supersampling), blur * self.view.radius_px
        soft = mask.filter(ImageFilter.GaussianBlur(sigma_px)) if sigma_px > 0.2 else mask
        return np.asarray(soft, dtype=np.float32) * np.float32(1 / 255)


def ribbons(lines: NDArray[np.float64], half_widths: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Return closed outlines ``[n, 2p, 2]`` around lines ``[n, p, 2]`` of half widths ``[n, p]``, or one for all."""
    tangent = np.gradient(lines, axis=1)
    length = np.hypot(tangent[..., 0], tangent[..., 1])[..., None] + 1e-9
    normal = np.stack([-tangent[..., 1], tangent[..., 0]], axis=-1) / length
    half = normal * np.asarray(half_widths)[..., None]
    return np.concatenate([lines + half, (lines - half)[:, ::-1]], axis=1)


def smoothstep(low: float, high: float, values: FloatArray) -> FloatArray:
    """Rise from 0 at ``low`` to 1 at ``high`` (falls when ``high < low``)."""
    t = np.clip((values - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def gaussian(
    x: FloatArray, y: FloatArray, center: tuple[float, float], sigma: float, squeeze: float = 1.0
) -> FloatArray:
    """Return a Gaussian ``[h, w]`` around ``center``; ``squeeze`` > 1 makes it narrower in y."""
    dx, dy = x - np.float32(center[0]), (y - np.float32(center[1])) * np.float32(squeeze)
    return np.asarray(np.exp((dx * dx + dy * dy) * np.float32(-0.5 / sigma**2)))


def blend(image: FloatArray, alpha: FloatArray | np.float32, color: Rgb | FloatArray) -> None:
    """Blend ``color`` (or ``[3, h, w]``) over ``image`` ``[3, h, w]`` in place, with one ``alpha`` or ``[h, w]``."""
    for channel in range(3):
        image[channel] += (color[channel] - image[channel]) * alpha


def absorb(image: FloatArray, layers: list[tuple[FloatArray, Rgb]]) -> None:
    """Apply layers of absorbers in place: ``image *= exp(-sum density * coefficient)``.

    *Source*: Beer-Lambert law; blood absorbs mostly green, pigment mostly blue.
    """
    for channel in range(3):
        depth = sum((density * np.float32(-color[channel]) for density, color in layers), start=np.float32(0))
        image[channel] *= np.exp(depth)


def blob_outlines(
    generator: np.random.Generator,
    centers: NDArray[np.floating],
    radii: NDArray[np.floating],
    *,
    raggedness: float,
    stretch: NDArray[np.floating] | float = 1.0,
    angles: NDArray[np.floating] | float = 0.0,
    corners: int = 14,
) -> NDArray[np.float64]:
    """Return irregular closed outlines ``[n, corners, 2]``.

    Args:
        generator: Stream of the shapes.
        centers: Centres ``[n, 2]``.
        radii: Radii across the long axis ``[n]``.
        raggedness: Relative amplitude of the irregularity of the outline.
        stretch: Long axis over short axis ``[n]``.
        angles: Direction of the long axis ``[n]`` in radians.
        corners: Points per outline.
    """
    n = len(centers)
    theta = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    waves = np.arange(2, 5)
    # One draw, row by row: more outlines do not change the first ones.
    draws = generator.random((n, 6))
    amplitude = (draws[:, :3] - 0.5) * (math.sqrt(12) * raggedness) / waves
    phase = draws[:, 3:] * (2 * math.pi)
    wobble = 1 + (amplitude[:, :, None] * np.cos(waves[:, None] * theta + phase[:, :, None])).sum(axis=1)
    reach = np.asarray(radii)[:, None] * np.maximum(wobble, 0.3)
    along = reach * np.cos(theta) * np.broadcast_to(stretch, (n,))[:, None]
    across = reach * np.sin(theta)
    cos, sin = np.cos(np.broadcast_to(angles, (n,)))[:, None], np.sin(np.broadcast_to(angles, (n,)))[:, None]
    outline = np.stack([along * cos - across * sin, along * sin + across * cos], axis=-1)
    return np.asarray(outline + np.asarray(centers)[:, None, :])
