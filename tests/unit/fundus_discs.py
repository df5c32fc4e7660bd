"""Discs with a known circle: the least a photograph of a retina has to be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Disc:
    height: int
    width: int
    x: float
    y: float
    radius: float


def draw_disc(
    disc: Disc,
    *,
    level: float = 200.0,
    blur_px: float = 0.0,
    noise: float = 2.0,
    shade: float = 0.0,
    text: bool = False,
    frame_px: int = 0,
    seed: int = 0,
) -> Pixels:
    """Draw an orange disc with dark vessels on black; ``shade`` darkens its left side."""
    rng = np.random.default_rng(seed)
    rows = np.arange(disc.height * 4).reshape(-1, 1) / 4 + 0.125 - disc.y
    columns = np.arange(disc.width * 4).reshape(1, -1) / 4 + 0.125 - disc.x
    covered = (rows**2 + columns**2 < disc.radius**2).reshape(disc.height, 4, disc.width, 4).mean(axis=(1, 3))
    y, x = np.mgrid[: disc.height, : disc.width]
    light = covered * (1 - 0.3 * ((x - disc.x) ** 2 + (y - disc.y) ** 2) / disc.radius**2)
    light = light * np.clip(1 - shade + shade * (x - disc.x) / disc.radius, 0.03, 1)
    colour = np.clip(light[..., None] * np.array([1.0, 0.5, 0.25]) * level, 0, 255).astype(np.uint8)
    image = Image.fromarray(colour)
    draw = ImageDraw.Draw(image)
    for start, end in rng.random((10, 2)) * 2 * np.pi:
        points = [
            (disc.x + 0.96 * disc.radius * np.cos(a), disc.y + 0.96 * disc.radius * np.sin(a)) for a in (start, end)
        ]
        draw.line(
            points, fill=(int(level * 0.5), int(level * 0.15), int(level * 0.1)), width=max(1, int(disc.radius / 40))
        )
    if blur_px:
        image = image.filter(ImageFilter.GaussianBlur(blur_px))
    if text:
        write_text(image)
    pixels = np.asarray(image).astype(np.float64)
    if frame_px:
        framed = np.full_like(pixels, 180.0)
        framed[frame_px:-frame_px, frame_px:-frame_px] = pixels[frame_px:-frame_px, frame_px:-frame_px]
        pixels = framed
    return np.clip(pixels + rng.normal(0, noise, pixels.shape), 0, 255).astype(np.uint8)


def write_text(image: Image.Image) -> None:
    """Burn a name and a date into the corners."""
    draw = ImageDraw.Draw(image)
    draw.text((2, image.height - 13), "DOE JANE", fill=(255, 255, 255))
    draw.text((image.width - 52, 2), "1950-12", fill=(255, 255, 0))
