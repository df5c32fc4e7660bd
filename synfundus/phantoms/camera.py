"""The camera: pose, field stop, frame, burned-in text, sensor noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from synfundus.phantoms.canvas import FloatArray, View, pixel_grid, smoothstep
from synfundus.phantoms.clinic import Exam
from synfundus.phantoms.scene import EyeAnatomy, Scene
from synfundus.seeding import keyed_generator

CameraKind = Literal["full", "cut", "framed"]

_CUT_RATE, _FRAMED_RATE, _TEXT_RATE, _NOTCH_RATE = 0.20, 0.08, 0.15, 0.18
_FAMILY = ("SAMPLE", "NOMEN", "MUSTER", "PRUEBA", "ESEMPIO", "VZOR", "TEST", "BEISPIEL", "MODEL", "PHANTOM")
_GIVEN = "ABCDEFGHJKLMNPRSTVW"


@dataclass(frozen=True)
class Camera:
    """The camera settings of one photograph.

    Attributes:
        kind: ``full`` disc, ``cut`` at top and bottom, or ``framed`` slide.
        view: Mapping from eye to pixels.
        cut: Half height of the visible disc, in radii (1 = not cut).
        frame_half_side: Half side of the slide frame in units of the picture; 0 without a frame.
        notch_angle: Direction of the registration notch on the rim; None without a notch.
        burned_in_text: Text in the margin; None without text.
        cast: Gain of each colour channel.
    """

    kind: CameraKind
    view: View
    cut: float
    frame_half_side: float
    notch_angle: float | None
    burned_in_text: str | None
    cast: tuple[float, float, float]


def _text(stream: np.random.Generator) -> str:
    family, given = _FAMILY[int(stream.integers(len(_FAMILY)))], _GIVEN[int(stream.integers(len(_GIVEN)))]
    year, month, day = stream.integers(1998, 2025), stream.integers(1, 13), stream.integers(1, 29)
    return (
        f"{family} {given}",
        f"{year}-{month:02d}-{day:02d}",
        f"{given}. {family}",
        f"{day:02d}.{month:02d}.{year}",
    )[int(stream.integers(4))]


def camera_of(seed: int, exam: Exam, eye: EyeAnatomy, *, disc_readable: bool, image_size_px: int) -> Camera:
    """Return the camera of a photograph; an unreadable disc may be outside the field."""
    stream = keyed_generator(seed, "phantom.camera", index=exam.index)
    draw, wants_text, wants_notch = stream.random(3)
    kind: CameraKind = "cut" if draw < _CUT_RATE else "framed" if draw < _CUT_RATE + _FRAMED_RATE else "full"
    has_text = bool(wants_text < _TEXT_RATE)
    low, high = {"cut": (0.462, 0.49), "framed": (0.42, 0.435), "full": (0.45, 0.49)}[kind]
    if has_text and kind == "full":
        low, high = 0.43, 0.455
    radius = stream.uniform(low, high)
    play = min(0.012, 0.495 - radius)
    offset = stream.uniform(-play, play, 2)
    mirrored = exam.eye_side == 1
    gaze = stream.normal(0, (0.045, 0.04))
    disc_centred = bool(stream.random() < 0.10)
    gaze_x = gaze[0] - (0.36 if disc_centred else 0.0)
    away = bool(stream.random() < 0.5)
    if not disc_readable and away:
        gaze_x = 0.62 + 0.05 * gaze[0]
    view = View(
        size_px=image_size_px,
        center_px=((0.5 + float(offset[0])) * image_size_px, (0.5 + float(offset[1])) * image_size_px),
        radius_px=float(radius) * image_size_px,
        mirrored=mirrored,
        rotation=float(np.clip(stream.normal(0, 0.06), -0.15, 0.15)),
        zoom=float(stream.uniform(0.94, 1.10)),
        shift=(-float(gaze_x) if mirrored else float(gaze_x), float(gaze[1])),
    )
    return Camera(
        kind=kind,
        view=view,
        cut=float(stream.uniform(0.80, 0.90)) if kind == "cut" else 1.0,
        frame_half_side=float(stream.uniform(0.462, 0.482)) if kind == "framed" else 0.0,
        notch_angle=float(stream.uniform(-0.9, 0.9)) if wants_notch < _NOTCH_RATE and kind == "full" else None,
        burned_in_text=_text(stream) if has_text else None,
        cast=tuple(np.exp(stream.normal(0, (0.03, 0.05, 0.10))).tolist()),
    )


def field_stop(camera: Camera, *, shrink: tuple[float, float, float] = (1.0, 0.994, 0.988)) -> FloatArray:
    """Return the transmission of the field stop ``[3, h, w]``; ``shrink`` is each channel's radius, in radii."""
    view = camera.view
    columns, rows = pixel_grid(view.size_px)
    dx, dy = columns - np.float32(view.center_px[0]), rows - np.float32(view.center_px[1])
    distance = np.sqrt(dx * dx + dy * dy)
    notch = None
    if camera.notch_angle is not None:
        angle = camera.notch_angle + (math.pi if view.mirrored else 0.0)
        reach = 0.985 * view.radius_px
        notch = np.hypot(dx - np.float32(reach * math.cos(angle)), dy - np.float32(reach * math.sin(angle)))
    stop = np.empty((3, view.size_px, view.size_px), dtype=np.float32)
    for channel, share in enumerate(shrink):
        radius = view.radius_px * share
        edge = max(0.7, 0.006 * radius)
        stop[channel] = smoothstep(radius + edge, radius - edge, distance)
        if camera.cut < 1:
            stop[channel] *= smoothstep(camera.cut * radius + edge, camera.cut * radius - edge, np.abs(dy))
        if notch is not None:
            stop[channel] *= smoothstep(0.045 * view.radius_px - 0.6, 0.045 * view.radius_px + 0.6, notch)
    return stop


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def margin(camera: Camera, stream: np.random.Generator) -> FloatArray:
    """Return the surround of the disc ``[3, h, w]`` in 0..255: black, a slide frame, burned-in text."""
    side = camera.view.size_px
    level = float(stream.integers(0, 3))
    picture = Image.new("RGB", (side, side), (int(level), int(level), int(level)))
    draw = ImageDraw.Draw(picture)
    if camera.frame_half_side > 0:
        grey = int(stream.integers(14, 30))
        half = camera.frame_half_side * side
        box = [round(side / 2 - half), round(side / 2 - half), round(side / 2 + half) - 1, round(side / 2 + half) - 1]
        draw.rectangle(box, fill=(grey, grey, grey + 2))
    if camera.burned_in_text is not None:
        _write(camera, draw, stream)
    return np.asarray(picture, dtype=np.float32).transpose(2, 0, 1)


def _write(camera: Camera, draw: ImageDraw.ImageDraw, stream: np.random.Generator) -> None:
    """Write the text into a corner, or along the edge of a cut disc."""
    text = camera.burned_in_text or ""
    side = camera.view.size_px
    size = max(6, round(side * 0.055))
    pad = 0.015 * side + (0.5 - camera.frame_half_side) * side * (camera.frame_half_side > 0)
    limit = 0.9 * side if camera.kind == "cut" else 0.40 * side
    left, top, right, bottom = draw.textbbox((0, 0), text, font=_font(size))
    while size > 5 and right - left > limit:
        size -= 1
        left, top, right, bottom = draw.textbbox((0, 0), text, font=_font(size))
    at_right, at_bottom = stream.random(2) < 0.5
    x = side - pad - right if at_right else pad - left
    y = side - pad - bottom if at_bottom else pad - top
    tone = [(225, 225, 225), (235, 220, 120), (150, 225, 150)][int(stream.integers(3))]
    draw.text((round(x), round(y)), text, fill=tone, font=_font(size))


def expose(scene: Scene, camera: Camera) -> NDArray[np.uint8]:
    """Apply field stop, margin and sensor noise; return uint8 ``[h, w, 3]``."""
    stream = scene.photograph_stream("sensor")
    stop = field_stop(camera)
    sigma = np.float32(stream.uniform(0.9, 1.4))
    light = scene.image * np.float32(255) + stream.standard_normal(scene.image.shape, dtype=np.float32) * sigma
    surround = margin(camera, scene.photograph_stream("margin"))
    picture = surround + (light - surround) * stop
    return np.ascontiguousarray((np.clip(picture, 0, 255) + np.float32(0.5)).astype(np.uint8).transpose(1, 2, 0))
