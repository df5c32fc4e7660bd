"""Light and optics: illumination, defocus, and faults that make a region or a whole photograph unreadable."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFilter

from synfundus.phantoms.canvas import FloatArray, blend, gaussian, pixel_grid, smoothstep
from synfundus.phantoms.scene import Scene

_SHARPNESS_SIGMA_PX = 0.42
"""Point spread at 128 px; grows with the square root of the size, so larger pictures show finer detail."""


def field_coordinates(scene: Scene) -> tuple[FloatArray, FloatArray]:
    """Return (x, y) of every pixel relative to the field's centre in radii, ``[1, w]`` and ``[h, 1]``."""
    view = scene.view
    columns, rows = pixel_grid(view.size_px)
    scale = np.float32(1 / view.radius_px)
    return (columns - np.float32(view.center_px[0])) * scale, (rows - np.float32(view.center_px[1])) * scale


def blurred(image: FloatArray, sigma_px: float) -> FloatArray:
    """Return ``image`` ``[3, h, w]`` (0..1) after a Gaussian blur; borders are extended."""
    bytes_ = (np.clip(image, 0, 1).transpose(1, 2, 0) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    soft = Image.fromarray(bytes_).filter(ImageFilter.GaussianBlur(sigma_px))
    return np.ascontiguousarray(np.asarray(soft).transpose(2, 0, 1)).astype(np.float32) * np.float32(1 / 255)


def illuminate(scene: Scene, cast: tuple[float, float, float]) -> None:
    """Apply the flash: brightest a little off centre, falling off to the rim; sometimes a rim flare."""
    stream = scene.photograph_stream("illumination")
    x, y = field_coordinates(scene)
    cx, cy = stream.normal(0, 0.16, 2)
    falloff = stream.uniform(0.16, 0.34)
    square = (x - np.float32(cx)) ** 2 + (y - np.float32(cy)) ** 2
    light = np.float32(stream.uniform(0.94, 1.06)) * (1 - np.float32(falloff) * np.minimum(square, 2))
    for channel in range(3):
        # Blue falls off faster than red: the rim looks redder.
        scene.image[channel] *= (light * (1 - np.float32(0.07 * channel) * square)) * np.float32(cast[channel])
    if stream.random() < 0.22:
        angle = stream.uniform(0, 2 * math.pi)
        ahead = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
        radius = np.sqrt(x * x + y * y)
        flare = smoothstep(0.80, 1.02, radius) * smoothstep(0.45, 0.95, ahead)
        blend(scene.image, flare * np.float32(stream.uniform(0.2, 0.5)), (0.86, 0.62, 0.52))


def degrade(scene: Scene, *, disc_in_field: bool) -> None:
    """Make regions, or the whole photograph, unreadable, according to the labels."""
    if not scene.has("is_fundus"):
        _degrade_whole(scene)
        return
    if not scene.has("is_optic_disc_readable") and disc_in_field:
        _degrade_region(scene, scene.eye.disc_center, 0.24, scene.photograph_stream("fault.disc"))
    if not scene.has("is_macular_readable"):
        _degrade_region(scene, scene.eye.fovea_center, 0.34, scene.photograph_stream("fault.macula"))
    if not scene.has("is_retinal_region_readable"):
        _degrade_periphery(scene)


def _degrade_whole(scene: Scene) -> None:
    stream = scene.photograph_stream("fault.whole")
    mode = stream.choice(3, p=(0.4, 0.2, 0.4))
    if mode == 0:
        scene.image *= np.float32(stream.uniform(0.10, 0.22))
        scene.image[0] *= np.float32(0.9)
    elif mode == 1:
        blend(scene.image, np.float32(stream.uniform(0.80, 0.90)), (0.98, 0.95, 0.90))
    else:
        scene.image[:] = blurred(scene.image, stream.uniform(0.10, 0.15) * scene.view.radius_px)
        blend(scene.image, np.float32(0.35), (0.62, 0.52, 0.46))


def _degrade_region(scene: Scene, center: tuple[float, float], size: float, stream: np.random.Generator) -> None:
    """Hide one region in a shadow or in a milky, defocused patch."""
    place = (center[0] + stream.normal(0, 0.02), center[1] + stream.normal(0, 0.02))
    ragged = 1 + scene.view.noise(stream, cells=9) * np.float32(0.16)
    veil = np.clip(gaussian(scene.x, scene.y, place, size) * np.float32(1.35) * ragged, 0, 1)
    soft = blurred(scene.image, 0.14 * scene.view.radius_px)
    blend(scene.image, veil, soft)
    if stream.random() < 0.5:
        scene.image *= 1 - np.float32(0.74) * veil
    else:
        blend(scene.image, veil * np.float32(0.70), (0.80, 0.70, 0.60))


def _degrade_periphery(scene: Scene) -> None:
    """Hide a large part of the retina behind an eyelid with lashes, or behind a milky arc of stray light."""
    stream = scene.photograph_stream("fault.periphery")
    x, y = field_coordinates(scene)
    if stream.random() < 0.6:
        side = 1.0 if stream.random() < 0.6 else -1.0
        lid = np.float32(side) * y + np.float32(0.22) * x * x
        shadow = smoothstep(0.02, 0.62, lid)
        lashes = _lashes(scene, stream, side)
        dark = 1 - (1 - np.float32(0.93) * shadow) * (1 - np.float32(0.75) * lashes)
        blend(scene.image, dark, (0.05, 0.03, 0.03))
    else:
        angle = stream.uniform(-0.6, 0.6) + (0 if stream.random() < 0.5 else math.pi)
        ahead = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
        milk = smoothstep(-0.15, 0.65, ahead)
        blend(scene.image, milk, blurred(scene.image, 0.10 * scene.view.radius_px))
        blend(scene.image, milk * np.float32(0.80), (0.78, 0.74, 0.74))


def _lashes(scene: Scene, stream: np.random.Generator, side: float) -> FloatArray:
    """Return the blurred shadows ``[h, w]`` of lashes from above (side -1) or below (1)."""
    count = 12
    root = np.linspace(-0.9, 0.9, count) + stream.normal(0, 0.05, count)
    lean = 0.35 * root + stream.normal(0, 0.08, count)
    t = np.linspace(0, 1, 8)
    length = stream.uniform(0.55, 0.95, count)[:, None]
    spine_x = root[:, None] + lean[:, None] * t * t
    spine_y = side * (0.95 - length * t)
    half = 0.028 * (1 - 0.85 * t)
    left = np.stack([spine_x - half, spine_y], axis=-1)
    right = np.stack([spine_x + half, spine_y], axis=-1)
    return scene.cover(np.concatenate([left, right[:, ::-1]], axis=1), 1.0, blur=0.022)


def focus(scene: Scene) -> None:
    """Apply the point spread of the optics, which varies slightly between photographs."""
    stream = scene.photograph_stream("focus")
    sigma = _SHARPNESS_SIGMA_PX * (scene.view.size_px / 128) ** 0.5 * float(stream.uniform(0.8, 1.35))
    scene.image[:] = blurred(scene.image, sigma)
