"""Faults planted into crops of photographs and phantoms: what `sample --check` must notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from synfundus.evaluation.examination.verdict import Fault

Pixels = NDArray[np.uint8]
Point = tuple[float, float]
_UNLIT = 14


@dataclass(frozen=True)
class Eye:
    """A crop with what is known of it.

    Attributes:
        pixels: uint8 ``[s, s, 3]``.
        disc: Centre of the optic disc in half widths from the middle of the crop.
        radius: Of the disc, in the same unit.
        side: ``right``, ``left``, or empty where nobody said.
    """

    pixels: Pixels
    disc: Point
    radius: float
    side: str = ""


def axes(size_px: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x and y ``[s, s]`` of the pixels of a crop, in half widths."""
    axis = (np.arange(size_px) + 0.5) / size_px * 2 - 1
    x, y = np.broadcast_arrays(axis[None], axis[:, None])
    return x, y


def lit(pixels: Pixels) -> NDArray[np.bool_]:
    """Return where a crop shows retina ``[s, s]``."""
    return np.asarray(pixels.max(axis=-1) > _UNLIT)


def blurred(pixels: Pixels, sigma_px: float) -> Pixels:
    """Return a crop blurred by a Gaussian."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma_px)))


def _ring(pixels: Pixels, at: Point, inner: float, outer: float) -> NDArray[np.float64]:
    x, y = axes(len(pixels))
    away = np.hypot(x - at[0], y - at[1])
    ring = (away > inner) & (away < outer) & lit(pixels)
    return pixels[ring].mean(axis=0) if ring.sum() > 5 else np.array([60.0, 40.0, 30.0])


def transplant(pixels: Pixels, source: Point, target: Point, radius: float, *, reach: float, flip: bool) -> Pixels:
    """Copy a round patch of ``reach`` radii over another place, with soft edge and the light of its new place."""
    size = len(pixels)
    x, y = axes(size)
    cover = np.clip((reach * radius - np.hypot(x - target[0], y - target[1])) / (0.35 * radius) + 0.5, 0, 1)
    from_x, from_y = (-1 if flip else 1) * (x - target[0]) + source[0], y - target[1] + source[1]
    column, row = (np.rint((at + 1) * size / 2 - 0.5).astype(int).clip(0, size - 1) for at in (from_x, from_y))
    there, here = (_ring(pixels, at, 1.3 * radius, 1.9 * radius) for at in (source, target))
    patch = pixels[row, column] * np.clip((here + 2) / (there + 2), 0.5, 2)
    cover = cover * lit(pixels)[row, column] * lit(pixels)
    return np.asarray(np.rint(pixels + (patch - pixels) * cover[..., None]).clip(0, 255), dtype=np.uint8)


def two_discs(eye: Eye, draw: np.random.Generator) -> Pixels:
    """Copy the disc elsewhere, or the half with the disc, mirrored, over the other."""
    (x, y), apart = eye.disc, max(0.45, 2.6 * eye.radius)
    kind = draw.integers(3)
    if kind == 2 and abs(x) > 0.35:
        own = np.clip(axes(len(eye.pixels))[0] * np.sign(x) / 0.1 + 0.5, 0, 1)[..., None]
        return np.asarray(np.rint(eye.pixels * own + eye.pixels[:, ::-1] * (1 - own)), dtype=np.uint8)
    for _ in range(200):
        mirrored = (-x + draw.normal(0, 0.12), y + draw.normal(0, 0.15))
        target = mirrored if kind == 0 else (draw.uniform(-0.75, 0.75), draw.uniform(-0.5, 0.5))
        row, column = (int((at + 1) * len(eye.pixels) / 2) for at in (target[1], target[0]))
        free = np.hypot(*target) < 0.8 and np.hypot(target[0] - x, target[1] - y) > apart
        if free and lit(eye.pixels)[row, column]:
            break
    else:
        target = (-x, y)
    return transplant(eye.pixels, eye.disc, target, eye.radius, reach=1.3, flip=bool(draw.integers(2)))


def no_disc(eye: Eye, draw: np.random.Generator) -> Pixels:
    """Cover the disc with retina from elsewhere."""
    x, y = axes(len(eye.pixels))
    seen, source = lit(eye.pixels), (0.0, 0.0)
    for _ in range(200):
        angle, away = draw.uniform(0, 2 * np.pi), draw.uniform(2.8 * eye.radius, 1.1)
        source = (eye.disc[0] + away * np.cos(angle), eye.disc[1] + away * np.sin(angle))
        patch = np.hypot(x - source[0], y - source[1]) < 1.9 * eye.radius
        if np.hypot(*source) + 1.9 * eye.radius < 0.97 and seen[patch].all():
            break
    return transplant(eye.pixels, source, eye.disc, 1.25 * eye.radius, reach=1.35, flip=bool(draw.integers(2)))


def wrong_side(eye: Eye, draw: np.random.Generator) -> Pixels:
    """Mirror the image: it shows the other eye."""
    del draw
    return np.ascontiguousarray(eye.pixels[:, ::-1])


def black(eye: Eye, draw: np.random.Generator) -> Pixels:
    """Take nearly all light away."""
    return np.asarray(eye.pixels * draw.uniform(0, 0.05), dtype=np.uint8)


def blur(eye: Eye, draw: np.random.Generator) -> Pixels:
    """Blur until no vessel is left: by 2.5 to 4 % of the width; the field keeps its rim."""
    soft = blurred(eye.pixels, draw.uniform(0.025, 0.04) * len(eye.pixels))
    return np.asarray(soft * lit(eye.pixels)[..., None], dtype=np.uint8)


def cropped(eye: Eye, draw: np.random.Generator) -> Pixels:
    """Shift, enlarge or shrink the field in its square."""
    kind, size = draw.integers(3), len(eye.pixels)
    zoom = (1.0, draw.uniform(1.25, 2.0), draw.uniform(0.5, 0.8))[kind]
    angle, off = draw.uniform(0, 2 * np.pi), draw.uniform(0.15, 0.5) if kind == 0 else 0.0
    x, y = off * np.cos(angle), off * np.sin(angle)
    half = size / 2
    shape = (1 / zoom, 0, half * (1 - 1 / zoom + x), 0, 1 / zoom, half * (1 - 1 / zoom + y))
    picture = Image.fromarray(eye.pixels)
    return np.asarray(picture.transform((size, size), Image.Transform.AFFINE, shape, Image.Resampling.BILINEAR))


FAULTS: dict[str, tuple[Callable[[Eye, np.random.Generator], Pixels], tuple[Fault, ...]]] = {
    "two discs": (two_discs, (Fault.SEVERAL_DISCS,)),
    "no disc": (no_disc, (Fault.NO_DISC,)),
    "wrong side": (wrong_side, (Fault.WRONG_SIDE,)),
    "black": (black, (Fault.BLACK,)),
    "blurred": (blur, (Fault.BLURRED,)),
    "cropped": (cropped, (Fault.CROPPED, Fault.NO_FIELD)),
}
"""By name: how it is planted, and what the verdict may call it."""
