"""Writing rendered into photographs, inside the disc and in the margin, as cameras and programs do it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from synfundus.phantoms.draw import PhantomTruth

Pixels = NDArray[np.uint8]
Place = Literal["disc", "margin"]

NAMES = (
    "DOE, JANE",
    "Doe Jane",
    "MEYER^ANNA",
    "Smith, John A.",
    "Garcia Lopez",
    "NGUYEN THI",
    "O. Hansen",
    "Ivanova E.",
)
COLOURS = ((255, 255, 255), (255, 255, 0), (0, 0, 0))
SYSTEM_FONTS = tuple(sorted(str(path) for path in Path("/usr/share/fonts/truetype/dejavu").glob("*.ttf")))
"""Faces beside Pillow's own, on machines that have them."""


@dataclass(frozen=True)
class Written:
    """A photograph with writing on it.

    Attributes:
        pixels: The photograph.
        text: What is written.
        size_px: Font size.
        colour: Of the letters.
        outlined: Whether they have an outline.
    """

    pixels: Pixels
    text: str
    size_px: int
    colour: tuple[int, int, int]
    outlined: bool


def random_text(rng: np.random.Generator) -> str:
    """Return a name, a date, a number, or two of them."""
    date = f"{rng.integers(1, 29):02d}.{rng.integers(1, 13):02d}.{rng.integers(1930, 2024)}"
    clock = f"{rng.integers(24):02d}:{rng.integers(60):02d}"
    name = NAMES[rng.integers(len(NAMES))]
    kinds = (name, date, f"ID {rng.integers(10**5, 10**8)}", f"{name} {date}", f"{date.replace('.', '/')} {clock}")
    return kinds[rng.integers(len(kinds))]


def random_font(rng: np.random.Generator, size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's face, or one of the system's."""
    number = int(rng.integers(len(SYSTEM_FONTS) + 6))
    if number < len(SYSTEM_FONTS):
        return ImageFont.truetype(SYSTEM_FONTS[number], size_px)
    return ImageFont.load_default(size_px)


def write_text(
    pixels: Pixels,
    truth: PhantomTruth,
    rng: np.random.Generator,
    *,
    place: Place,
    sizes_px: tuple[int, int] = (10, 33),
    as_jpeg: bool = True,
    tilt_degrees: float = 0.0,
) -> Written:
    """Write a random text in a random face, size and colour wholly inside the disc, or wholly outside it.

    Half of the texts have an outline; half of the photographs are stored as JPEG afterwards if ``as_jpeg``.
    """
    while True:
        size_px = int(rng.integers(*sizes_px))
        font, text = random_font(rng, size_px), random_text(rng)
        colour = COLOURS[rng.integers(2 if place == "margin" else 3)]
        outlined = bool(rng.random() < 0.5)
        image = Image.fromarray(pixels)
        draw = ImageDraw.Draw(image)
        box = draw.textbbox((0, 0), text, font=font, stroke_width=int(outlined))
        width, height = box[2] - box[0], box[3] - box[1]
        at = _find_place(pixels.shape, truth, rng, width, height, place)
        if at is None:
            continue
        contrary = (0, 0, 0) if colour != (0, 0, 0) else (255, 255, 255)
        origin = (at[0] - box[0], at[1] - box[1])
        layer = Image.new("RGBA", image.size)
        ImageDraw.Draw(layer).text(
            origin, text, font=font, fill=colour, stroke_width=int(outlined), stroke_fill=contrary
        )
        if tilt_degrees:
            middle = (at[0] + width / 2, at[1] + height / 2)
            layer = layer.rotate(tilt_degrees, Image.Resampling.BICUBIC, center=middle)
        image.paste(layer, mask=layer)
        if as_jpeg and rng.random() < 0.5:
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=int(rng.integers(80, 96)))
            image = Image.open(stream)
        return Written(np.asarray(image), text, size_px, colour, outlined)


def _find_place(
    shape: tuple[int, ...], truth: PhantomTruth, rng: np.random.Generator, width: float, height: float, place: Place
) -> tuple[int, int] | None:
    """Return a corner (x, y) at which the box is inside the disc, or outside it, or None."""
    if width >= shape[1] or height >= shape[0]:
        return None
    for _ in range(200):
        x, y = int(rng.integers(0, int(shape[1] - width))), int(rng.integers(0, int(shape[0] - height)))
        dx = np.array([x, x + width]) - truth.center_x_px
        dy = np.array([y, y + height]) - truth.center_y_px
        if place == "disc":
            farthest = float(np.hypot(np.abs(dx).max(), np.abs(dy).max()))
            if farthest < 0.95 * truth.radius_px and float(np.abs(dy).max()) < truth.cut_half_height_px - 3:
                return x, y
        else:
            near_x = 0.0 if dx[0] < 0 < dx[1] else float(np.abs(dx).min())
            near_y = 0.0 if dy[0] < 0 < dy[1] else float(np.abs(dy).min())
            if np.hypot(near_x, near_y) > truth.radius_px + 1:
                return x, y
    return None
