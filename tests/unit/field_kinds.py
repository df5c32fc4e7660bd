"""Photographs of retinas in the geometries that archives hold, drawn with random parameters and known truth.

A kind is a geometry: a disc cut by the sensor with a caption band at the cut, a slide in its mount, pixels that are not
square. The retinas are phantoms and the one real photograph; field stop, cuts, bands, mounts and text are drawn here.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from photographs import retina
from PIL import Image, ImageDraw
from written_text import random_font, random_text

from synfundus.errors import DataError
from synfundus.phantoms.draw import draw_phantom
from synfundus.photographs.field_of_view import FieldOfViewError, find_field_of_view
from synfundus.photographs.preparation import prepare_pixels
from synfundus.photographs.transforms import crop_to_field_of_view

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Random = np.random.Generator

_TEXTURE_PX = 400
_POOL = 14
_LEAK = 0.1  # share of band, mount or text in a pixel of the crop


@dataclass
class Drawn:
    """A drawn photograph and the truth about it.

    Attributes:
        pixels: uint8 ``[h, w, 3]``.
        retina: Where retina is visible.
        foreign: Where band, mount or text is.
        circle: Centre x, y and half axes across, down of the rim; None if there is no single circle.
        reasons: Reasons for which it may be refused; empty: it must be accepted.
        must_refuse: Whether accepting it is wrong.
        tolerance: Of centre and radius, in radii.
        kept: Smallest share of the visible retina in the crop: the mask ends 1.5 % inside the rim, a line inside a cut.
        notes: Parameters, for messages.
    """

    pixels: Pixels
    retina: Mask
    foreign: Mask
    circle: tuple[float, float, float, float] | None
    reasons: tuple[str, ...] = ()
    must_refuse: bool = False
    tolerance: float = 0.02
    kept: float = 0.86
    notes: dict[str, object] = field(default_factory=dict)


@lru_cache(maxsize=1)
def _textures() -> list[NDArray[np.float32]]:
    """Return squares of retina; the disc that touches the sides is inside the rim."""
    found = []
    for index in range(200):
        phantom = draw_phantom(seed=20, index=index, image_size_px=320)
        truth = phantom.truth
        if truth.camera == "full" and not truth.has_notch and phantom.true_labels["is_fundus"]:
            found.append(_square(phantom.pixels, truth.center_x_px, truth.center_y_px, 0.95 * truth.radius_px))
        if len(found) == _POOL:
            break
    return [*found, _square(retina(), 705.5, 704.0, 0.92 * 695.5), _square(retina()[:, ::-1], 705.5, 704.0, 620.0)]


def _square(pixels: Pixels, x: float, y: float, radius: float) -> NDArray[np.float32]:
    box = (x - radius, y - radius, x + radius, y + radius)
    image = Image.fromarray(np.ascontiguousarray(pixels)).resize((_TEXTURE_PX,) * 2, Image.Resampling.BICUBIC, box=box)
    return np.asarray(image, dtype=np.float32)


@dataclass
class Sheet:
    """A photograph that is being drawn."""

    light: NDArray[np.float32]
    retina: Mask
    foreign: Mask
    rng: Random

    @staticmethod
    def black(height: float, width: float, rng: Random) -> Sheet:
        shape = (round(height), round(width))
        light = np.full((*shape, 3), rng.uniform(0, 5), dtype=np.float32)
        return Sheet(light, np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool), rng)

    def disc(
        self,
        x: float,
        y: float,
        radius: float,
        *,
        aspect: float = 1.0,
        cut: tuple[float, float, float, float] = (9.0, 9.0, 9.0, 9.0),
        tilt: float = 0.0,
        shade: NDArray[np.float32] | float = 1.0,
        corner: float | None = None,
    ) -> None:
        """Draw a disc; ``aspect`` is its height over its width, ``cut`` left, top, right, bottom in radii."""
        height, width = self.retina.shape
        rows, columns = np.mgrid[:height, :width].astype(np.float32) + 0.5
        u, v = (columns - x) / radius, (rows - y) / (radius * aspect)
        texture = _textures()[self.rng.integers(len(_textures()))]
        inner = 1.0 if corner is None else 0.7  # the corners of a square lie outside the texture's disc
        at = ((np.stack([v, u]) * inner + 1) * (_TEXTURE_PX / 2) - 0.5).clip(0, _TEXTURE_PX - 1.01)
        low = at.astype(int)
        part = (at - low)[..., None]
        near = [
            texture[low[0] + down, low[1] + right] * abs(1 - down - part[0]) * abs(1 - right - part[1])
            for down in (0, 1)
            for right in (0, 1)
        ]
        picture = np.sum(near, axis=0)
        turned = u * np.cos(tilt) + v * np.sin(tilt), v * np.cos(tilt) - u * np.sin(tilt)
        outside = np.hypot(u, v) - 1.0
        if corner is not None:  # a rounded square instead of a disc
            over = np.maximum(np.abs(np.stack([u, v])) - (1 - corner), 0)
            outside = np.hypot(over[0], over[1]) - corner
        beyond = [-turned[0] - cut[0], -turned[1] - cut[1], turned[0] - cut[2], turned[1] - cut[3]]
        edge = max(float(self.rng.uniform(0.5, 1.2)), 0.004 * radius) / radius
        stop = np.clip(0.5 - np.maximum.reduce([outside, *beyond]) / (2 * edge), 0, 1)
        visible = stop[..., None] * np.asarray(shade, dtype=np.float32).reshape(*np.shape(shade), 1)
        self.light += (picture * self.rng.uniform(0.75, 1.15) - self.light) * visible * (stop[..., None] > 0)
        self.light[stop > 0] = np.maximum(self.light[stop > 0], 0)
        self.retina |= stop > 0.5
        self.foreign &= ~(stop > 0.5)

    def paint(self, where: Mask, level: tuple[float, ...] | float) -> None:
        self.light[where] = level
        self.retina &= ~where
        self.foreign |= where

    def write(self, left: float, top: float, right: float, bottom: float, level: float) -> None:
        """Write a line of text into a box, in ink that can be read on ``level``."""
        size = int(np.clip((bottom - top) * self.rng.uniform(0.4, 0.75), 7, 40))
        font, text = random_font(self.rng, size), random_text(self.rng)
        layer = Image.new("L", self.retina.shape[::-1])
        x = left + self.rng.uniform(0.02, 0.35) * (right - left)
        ImageDraw.Draw(layer).text((x, top + (bottom - top - size) / 2), text, font=font, fill=255)
        cover = np.asarray(layer, dtype=np.float32) / 255
        cover[:, int(right) :] = cover[: int(top)] = cover[int(bottom) :] = 0
        ink = 255.0 if level < 128 else 0.0
        self.light += (ink - self.light) * cover[..., None]
        self.foreign |= cover > 0.3
        self.retina &= ~(cover > 0.3)

    def finished(self, circle: tuple[float, float, float, float] | None, **given: object) -> Drawn:
        """Add noise; half of the photographs are stored as JPEG."""
        light = self.light + self.rng.normal(0, self.rng.uniform(0, 2.5), self.light.shape)
        pixels = np.clip(light + 0.5, 0, 255).astype(np.uint8)
        if self.rng.random() < 0.5:
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "JPEG", quality=int(self.rng.integers(82, 96)))
            pixels = np.asarray(Image.open(stream))
        return Drawn(pixels, self.retina, self.foreign, circle, **given)  # type: ignore[arg-type]


def _text_in_corners(sheet: Sheet, x: float, y: float, radius: float) -> None:
    """Write into the four corners, outside the disc and touching nothing."""
    height = sheet.retina.shape[0]
    size = max(8.0, 0.05 * height)
    for top in (0.01 * height, height - size - 2):
        corner = x - np.sqrt(max((1.02 * radius) ** 2 - min(abs(top - y), abs(top + size - y)) ** 2, 0.0))
        if corner > 3 * size:
            sheet.write(1, top, corner, top + size, 0)


def whole(rng: Random) -> Drawn:
    """A whole disc on black, often with text in the corners."""
    height = rng.uniform(260, 700)
    width = height * rng.choice([1.0, 1.25, 4 / 3, 1.5])
    radius = height * rng.uniform(0.4, 0.49)
    x, y = width / 2 + rng.uniform(-0.02, 0.02) * height, height / 2
    sheet = Sheet.black(height, width, rng)
    sheet.disc(x, y, radius)
    if rng.random() < 0.6:
        _text_in_corners(sheet, x, y, radius)
    return sheet.finished((x, y, radius, radius), tolerance=0.015)


def _cut_disc(rng: Random, *, by_frame: bool, grey: float | None) -> Drawn:
    """A disc cut at top, bottom or both, by the frame or by a band that may have text."""
    radius = rng.uniform(110, 330)
    cuts = rng.uniform(0.62, 0.92, 2)
    if rng.random() < 0.3:
        cuts[rng.integers(2)] = 1.0
    width = radius * rng.uniform(2.06, 3.0)
    bands = np.zeros(2) if by_frame else radius * rng.uniform(0.12, 0.35, 2) * (cuts < 1)
    margins = 0.05 * radius * (cuts >= 1)
    top, bottom = bands + margins
    height = top + bottom + radius * cuts.sum()
    x, y = width / 2 + rng.uniform(-0.02, 0.02) * radius, top + radius * cuts[0]
    sheet = Sheet.black(height, width, rng)
    sheet.disc(x, y, radius, cut=(9, cuts[0] if top else 9, 9, cuts[1] if bottom else 9))
    rows = np.arange(sheet.retina.shape[0])[:, None] + 0.5
    for side, (first, end) in enumerate(((0.0, top), (y + radius * cuts[1], height))):
        if bands[side] > 0:
            level = rng.uniform(0, 255) if grey is None else grey
            tint = np.clip(level + rng.uniform(-12, 12, 3) * (rng.random() < 0.3), 0, 255)
            if level > 6:
                sheet.paint(np.broadcast_to((rows >= first) & (rows < end), sheet.retina.shape), tuple(tint))
            if rng.random() < 0.85:
                sheet.write(1, first + 1, width - 1, end - 1, level)
    transposed = rng.random() < 0.15
    drawn = sheet.finished((x, y, radius, radius), tolerance=0.015 if by_frame else 0.02)
    return _transposed(drawn) if transposed else drawn


def _transposed(drawn: Drawn) -> Drawn:
    drawn.pixels = np.ascontiguousarray(drawn.pixels.transpose(1, 0, 2))
    drawn.retina, drawn.foreign = drawn.retina.T, drawn.foreign.T
    if drawn.circle is not None:
        x, y, across, down = drawn.circle
        drawn.circle = (y, x, down, across)
    return drawn


def cut_by_frame(rng: Random) -> Drawn:
    return _cut_disc(rng, by_frame=True, grey=None)


def black_band(rng: Random) -> Drawn:
    """The known case: stripes as black as the surround, with text."""
    return _cut_disc(rng, by_frame=False, grey=float(rng.uniform(0, 3)))


def caption_band(rng: Random) -> Drawn:
    return _cut_disc(rng, by_frame=False, grey=None)


def _mounted(rng: Random, *, cut: bool) -> Drawn:
    """A light frame on four sides; the disc is whole, or cut at the frame."""
    radius = rng.uniform(110, 330)
    half = radius * (rng.uniform(0.65, 0.92) if cut else rng.uniform(1.02, 1.1))
    frame = radius * rng.uniform(0.06, 0.4)
    width, height = 2 * (radius * rng.uniform(1.03, 1.4) + frame), 2 * (half + frame)
    x, y = width / 2, height / 2
    sheet = Sheet.black(height, width, rng)
    rows, columns = np.mgrid[: sheet.retina.shape[0], : sheet.retina.shape[1]] + 0.5
    sheet.disc(x, y, radius, cut=(9, half / radius, 9, half / radius) if cut else (9, 9, 9, 9))
    level = float(rng.uniform(40, 255))
    around = (rows < frame) | (rows >= height - frame) | (columns < frame) | (columns >= width - frame)
    sheet.paint(around, level)
    if rng.random() < 0.5:
        sheet.write(1, 1, width - 1, frame - 1, level)
    return sheet.finished((x, y, radius, radius))


def mount_and_whole_disc(rng: Random) -> Drawn:
    return _mounted(rng, cut=False)


def mount_and_cut_disc(rng: Random) -> Drawn:
    return _mounted(rng, cut=True)


def _ellipse(rng: Random, ratio: float, *, cut: bool) -> Sheet:
    radius = rng.uniform(110, 300)
    across, down = (radius, radius * ratio) if rng.random() < 0.6 else (radius * ratio, radius)
    cut_at = rng.uniform(0.72, 0.92) if cut else 1.05
    sheet = Sheet.black(2 * down * cut_at, 2 * across * rng.uniform(1.02, 1.35), rng)
    height, width = sheet.retina.shape
    sheet.disc(width / 2, height / 2, across, aspect=down / across)
    sheet_circle = (width / 2, height / 2, across, down)
    sheet.__dict__["circle"] = sheet_circle
    return sheet


def squashed(rng: Random) -> Drawn:
    """A photograph whose pixels are not square: 3:2 or 4:3 made square."""
    ratio = float(rng.uniform(0.55, 0.86))
    sheet = _ellipse(rng, ratio, cut=bool(rng.random() < 0.7))
    return sheet.finished(sheet.__dict__["circle"], reasons=("not_round",), notes={"ratio": ratio})


def mild_ellipse(rng: Random) -> Drawn:
    ratio = float(rng.uniform(0.92, 0.965))
    sheet = _ellipse(rng, ratio, cut=bool(rng.random() < 0.4))
    return sheet.finished(sheet.__dict__["circle"], notes={"ratio": ratio})


def four_cuts(rng: Random) -> Drawn:
    """A square or 3:2 crop that leaves four arcs; often the lower edge is in shadow."""
    half_height = rng.uniform(110, 300)
    half_width = half_height * rng.choice([1.0, 1.0, 1.25, 1.5])
    radius = np.hypot(half_height, half_width) * rng.uniform(0.84, 0.95)
    radius = max(radius, 1.02 * half_width)
    sheet = Sheet.black(2 * half_height, 2 * half_width, rng)
    height, width = sheet.retina.shape
    rows = np.arange(height, dtype=np.float32)[:, None] / height
    shade: NDArray[np.float32] | float = 1.0
    if rng.random() < 0.6:
        depth, begin = rng.uniform(0.6, 1.0), rng.uniform(0.65, 0.85)
        shade = np.broadcast_to(1 - depth * np.clip((rows - begin) / (1 - begin), 0, 1), (height, width))
    sheet.disc(width / 2, height / 2, radius, shade=np.array(shade))
    return sheet.finished((width / 2, height / 2, radius, radius), tolerance=0.04)


def rounded_slide(rng: Random) -> Drawn:
    """A scanned slide: a rounded square or 3:2 window in a black, grey or white mount."""
    half = rng.uniform(110, 260)
    aspect = float(rng.choice([1.0, 1.0, 0.75, 0.667]))
    border = half * rng.uniform(0.0, 0.3)
    sheet = Sheet.black(2 * (half * aspect + border), 2 * (half + border), rng)
    level = float(rng.choice([2.0, 2.0, 30.0, 120.0, 230.0]))
    if level > 6:
        sheet.paint(np.ones_like(sheet.retina), level)
    height, width = sheet.retina.shape
    sheet.disc(width / 2, height / 2, half, aspect=aspect, corner=float(rng.uniform(0.1, 0.4)))
    # a circle that lies inside the corners loses more
    return sheet.finished(None, kept=0.8, notes={"level": level, "aspect": aspect})


def fading(rng: Random) -> Drawn:
    """A whole disc of which one side fades into the dark."""
    radius = rng.uniform(110, 320)
    sheet = Sheet.black(2 * radius * rng.uniform(1.03, 1.15), 2 * radius * rng.uniform(1.03, 1.5), rng)
    height, width = sheet.retina.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = ((columns - width / 2) * np.cos(angle) + (rows - height / 2) * np.sin(angle)) / radius
    begin = rng.uniform(-0.2, 0.4)
    shade = 1 - rng.uniform(0.7, 1.0) * np.clip((along - begin) / rng.uniform(0.4, 0.8), 0, 1)
    sheet.disc(width / 2, height / 2, radius, shade=shade)
    sheet.retina &= shade > 0.3
    return sheet.finished((width / 2, height / 2, radius, radius), tolerance=0.03)


def reflex(rng: Random) -> Drawn:
    """A whole disc with a blue or white reflex along a third of its rim, spilling over it."""
    radius = rng.uniform(110, 320)
    sheet = Sheet.black(2 * radius * rng.uniform(1.06, 1.15), 2 * radius * rng.uniform(1.06, 1.5), rng)
    height, width = sheet.retina.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32) + 0.5
    sheet.disc(width / 2, height / 2, radius)
    distance = np.hypot(columns - width / 2, rows - height / 2) / radius
    off = np.arctan2(rows - height / 2, columns - width / 2) - rng.uniform(-np.pi, np.pi)
    off = np.abs((off + np.pi) % (2 * np.pi) - np.pi)
    half_angle, spread = rng.uniform(0.7, 1.25), rng.uniform(0.02, 0.09)
    strength = np.exp(-(((distance - rng.uniform(0.95, 1.02)) / spread) ** 2))
    strength *= np.clip((half_angle - off) / 0.25, 0, 1) * rng.uniform(0.5, 1.0)
    colour = np.array([[60, 110, 255], [255, 255, 255], [130, 190, 255]][rng.integers(3)], dtype=np.float32)
    sheet.light += (colour - sheet.light) * strength[..., None]
    return sheet.finished((width / 2, height / 2, radius, radius), tolerance=0.03)


def tilted_cuts(rng: Random) -> Drawn:
    """A disc cut at top and bottom, turned afterwards."""
    radius = rng.uniform(110, 320)
    sheet = Sheet.black(2.1 * radius, radius * rng.uniform(2.1, 2.8), rng)
    height, width = sheet.retina.shape
    tilt = rng.uniform(0.04, 0.45) * rng.choice([-1, 1])
    cut = rng.uniform(0.7, 0.9, 2)
    sheet.disc(width / 2, height / 2, radius, cut=(9, cut[0], 9, cut[1]), tilt=tilt)
    return sheet.finished((width / 2, height / 2, radius, radius), notes={"tilt": tilt})


def two_discs(rng: Random) -> Drawn:
    return _tiles(rng, 1, 2)


def montage(rng: Random) -> Drawn:
    rows, columns = [(2, 2), (1, 3), (2, 3), (2, 1), (3, 3)][rng.integers(5)]
    return _tiles(rng, rows, columns)


def _tiles(rng: Random, rows: int, columns: int) -> Drawn:
    radius = rng.uniform(200, 320) / max(rows, columns) + 30
    step_x, step_y = 2 * radius * rng.uniform(1.0, 1.2), 2 * radius * rng.uniform(1.0, 1.2)
    cut = rng.uniform(0.75, 0.92) if rng.random() < 0.3 else 9.0
    if cut < 1:
        step_y = 2 * radius * cut
    sheet = Sheet.black(rows * step_y, columns * step_x, rng)
    for row in range(rows):
        for column in range(columns):
            size = radius * rng.uniform(0.94, 0.99)
            sheet.disc((column + 0.5) * step_x, (row + 0.5) * step_y, size, cut=(9, cut, 9, cut))
    return sheet.finished(None, reasons=("several_fields_of_view",), must_refuse=True)


def flat(rng: Random) -> Drawn:
    """A mask of the field of view: a disc of one grey, perhaps cut, perhaps a JPEG."""
    radius = rng.uniform(110, 320)
    sheet = Sheet.black(2 * radius * rng.uniform(0.8, 1.1), 2 * radius * rng.uniform(1.02, 1.5), rng)
    height, width = sheet.retina.shape
    rows, columns = np.mgrid[:height, :width] + 0.5
    level = float(rng.choice([255.0, 255.0, rng.uniform(40, 255)]))
    sheet.light[:] = 0
    sheet.light[np.hypot(rows - height / 2, columns - width / 2) < radius] = level
    drawn = sheet.finished(None, reasons=("flat",), must_refuse=True)
    if rng.random() < 0.5:  # without noise
        drawn.pixels = sheet.light.astype(np.uint8)
    return drawn


def mask(rng: Random) -> Drawn:
    """A mask of what was marked in a photograph: areas and lines of one to three greys on a disc of another."""
    radius = rng.uniform(110, 320)
    sheet = Sheet.black(2 * radius * rng.uniform(1.0, 1.1), 2 * radius * rng.uniform(1.02, 1.5), rng)
    height, width = sheet.retina.shape
    greys = rng.permutation([64, 110, 160, 205, 255])
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    x, y = width / 2, height / 2
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=int(greys[0]))
    for grey in greys[1 : 1 + rng.integers(1, 4)]:
        for _ in range(rng.integers(1, 6)):
            u, v = (np.array([x, y]) + rng.uniform(-0.45, 0.45, 2) * radius).tolist()
            size = rng.uniform(0.05, 0.3) * radius
            if rng.random() < 0.5:
                draw.ellipse((u - size, v - size, u + size, v + size), fill=int(grey))
            else:
                far = rng.uniform(-0.8, 0.8, 2) * radius
                draw.line((u, v, x + far[0], y + far[1]), fill=int(grey), width=max(2, round(0.1 * size)))
    sheet.light[:] = np.asarray(image, dtype=np.float32)[..., None]
    drawn = sheet.finished(None, reasons=("flat",), must_refuse=True)
    if rng.random() < 0.7:  # without noise
        drawn.pixels = sheet.light.astype(np.uint8)
    return drawn


def inset(rng: Random) -> Drawn:
    """A photograph with a second, much smaller one beside it."""
    radius = rng.uniform(160, 300)
    small = radius * rng.uniform(0.35, 0.6)
    sheet = Sheet.black(2.1 * radius, 2.1 * radius + 2.15 * small, rng)
    height, width = sheet.retina.shape
    sheet.disc(1.05 * radius, height / 2, radius)
    sheet.disc(width - 1.04 * small, rng.uniform(1.04 * small, height - 1.04 * small), small)
    drawn = sheet.finished(None, reasons=("several_fields_of_view",), must_refuse=True)
    drawn.pixels = np.ascontiguousarray(drawn.pixels[:, :: rng.choice([-1, 1])])
    return drawn


def small_disc(rng: Random) -> Drawn:
    """A disc of a sixth of the frame, or less."""
    height = rng.uniform(400, 900)
    radius = height * rng.uniform(0.06, 0.09)
    sheet = Sheet.black(height, height * rng.uniform(1.0, 1.5), rng)
    x, y = rng.uniform(0.3, 0.7, 2) * sheet.retina.shape[::-1]
    sheet.disc(x, y, radius)
    if rng.random() < 0.4:
        sheet.write(1, height * 0.95, height * 0.5, height - 1, 0)
    return sheet.finished(None, reasons=("too_small",), must_refuse=True)


CONTROLS: tuple[Callable[[Random], Drawn], ...] = (whole, cut_by_frame, black_band, mount_and_whole_disc)
KINDS: tuple[Callable[[Random], Drawn], ...] = (
    *CONTROLS,
    *(caption_band, mount_and_cut_disc, squashed, mild_ellipse, four_cuts, rounded_slide, fading, reflex, tilted_cuts),
    *(two_discs, montage, inset, flat, mask, small_disc),
)


def draw_kind(kind: Callable[[Random], Drawn], index: int) -> Drawn:
    return kind(np.random.default_rng([sum(kind.__name__.encode()), index]))


def fault_of(drawn: Drawn) -> str | None:
    """Return what is wrong with how a photograph is treated, or None.

    Right is: refused by the right name; or accepted with the rim within the tolerance, no band, mount or text in the
    crop, and nearly all of the retina in it.
    """
    size = 224
    try:
        stream = io.BytesIO()
        Image.fromarray(drawn.pixels).save(stream, "BMP")
        prepare_pixels(stream.getvalue(), image_size_px=64, max_pixels=10**7, burned_text="off")
        circle = find_field_of_view(drawn.pixels)
    except FieldOfViewError as error:
        return None if error.reason.value in drawn.reasons else f"refused: {error.reason.value}"
    if drawn.must_refuse:
        return "accepted"
    aspect = getattr(circle, "aspect", 1.0)
    if drawn.circle is not None:
        x, y, across, down = drawn.circle
        off = np.hypot(circle.center_x_px - x, circle.center_y_px - y)
        off = max(off, abs(circle.radius_px - across), abs(circle.radius_px * aspect - down)) / across
        if off > drawn.tolerance:
            return f"circle off by {off:.3f}"
    try:
        foreign, kept = (
            crop_to_field_of_view(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), circle, size)[..., 0] / 255
            for mask in (drawn.foreign, drawn.retina)
        )
    except DataError:
        return "crop failed"
    if foreign.max() > _LEAK:
        return f"{int((foreign > _LEAK).sum())} pixels of band, mount or text"
    share = kept.sum() * (2 * circle.radius_px / size) ** 2 * aspect / drawn.retina.sum()
    return None if share > drawn.kept else f"only {share:.2f} of the retina kept"
