"""Photographs of variety ``wide``: pose and field, light, media, optics, sensor, development and compression."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synfundus.phantoms.camera import Camera, field_stop, margin
from synfundus.phantoms.canvas import FloatArray, Rgb, blend, smoothstep
from synfundus.phantoms.clinic import Exam
from synfundus.phantoms.exposure import blurred, field_coordinates
from synfundus.phantoms.scene import EyeAnatomy, Scene
from synfundus.seeding import keyed_generator

_FIELDS_DEG = np.array([30.0, 35.0, 45.0, 50.0, 60.0])
_FIELD_SHARES = (0.07, 0.08, 0.47, 0.25, 0.13)
_FIELD_AT_ZOOM_1_DEG = 46.0
_STOP = (1.0, 1.0, 1.0)
"""Radius of the field stop in red, green and blue: in photographs no colour ends before another (within .003)."""


@dataclass(frozen=True)
class Capture:
    """How one photograph was taken and developed.

    Attributes:
        gain: Exposure: factor on the light.
        gamma: Exponent on the developed channels.
        saturation: Factor on the distance from grey.
        cast: Gain of each colour channel.
        falloff: Loss of light at the rim.
        light_center: Where the light is brightest, in radii.
        slope: Change of light across the field, in x and y.
        rim_haze: Opacity of stray light at the rim.
        veil: Opacity of the haze of cornea, lens and vitreous.
        veil_color: Its colour.
        scatter: Share of the light that the media scatter widely.
        blur: Point spread of the optics, in field-of-view radii.
        motion: Length of a shake in field-of-view radii, along x and y.
        sharpening: Strength of the camera's unsharp mask.
        noise: Deviation of the sensor's noise in 0..255 at 256 px.
        quality: JPEG quality; None: kept without loss.
    """

    gain: float
    gamma: float
    saturation: float
    cast: Rgb
    falloff: float
    light_center: tuple[float, float]
    slope: tuple[float, float]
    rim_haze: float
    veil: float
    veil_color: Rgb
    scatter: float
    blur: float
    motion: tuple[float, float]
    sharpening: float
    noise: float
    quality: int | None


def capture_of(seed: int, exam: Exam) -> Capture:
    """Return how the photograph was taken: most are good, some hazy, blurred, dark or pale."""
    stream = keyed_generator(seed, "phantom.wide.capture", index=exam.index)
    hazy, soft, shaken, compressed, sharpened = stream.random(5) < (0.24, 0.16, 0.05, 0.5, 0.5)
    grey = stream.uniform(0.45, 0.9)
    # Some cameras hardly record blue.
    blue = float(stream.uniform(0.03, 0.5)) if stream.random() < 0.22 else 1.0
    cast = np.exp(stream.normal(0, (0.05, 0.09, 0.25))) * (1, 1, blue)
    cast[1] = min(cast[1], cast[0])  # white things are never green
    turn = stream.uniform(0, 2 * math.pi)
    shake = stream.uniform(0.008, 0.03) if shaken else 0.0
    return Capture(
        gain=float(np.exp(stream.normal(-0.06, 0.17))),
        gamma=float(np.exp(stream.normal(0, 0.13))),
        saturation=float(stream.uniform(0.75, 1.25)),
        cast=(float(cast[0]), float(cast[1]), float(cast[2])),
        falloff=float(stream.uniform(0.02, 0.65)),
        light_center=(float(stream.normal(0, 0.22)), float(stream.normal(0, 0.22))),
        slope=(float(stream.normal(0, 0.08)), float(stream.normal(0, 0.08))),
        rim_haze=float(stream.uniform(0.05, 0.45)) if stream.random() < 0.35 else 0.0,
        veil=float(stream.uniform(0.08, 0.5)) if hazy else float(stream.uniform(0, 0.07)),
        veil_color=(
            grey * float(stream.uniform(0.9, 1.1)),
            grey * float(stream.uniform(0.6, 0.95)),
            grey * float(stream.uniform(0.3, 0.9)),
        ),
        scatter=float(stream.uniform(0.15, 0.6)) if hazy else float(stream.uniform(0, 0.15)),
        blur=float(stream.uniform(0.004, 0.016) if soft else np.exp(stream.normal(-6.3, 0.45))),
        motion=(shake * math.cos(turn), shake * math.sin(turn)),
        sharpening=float(stream.uniform(0.2, 1.3)) if sharpened else 0.0,
        noise=float(np.exp(stream.normal(0.3, 0.65))),
        quality=int(stream.integers(55, 97)) if compressed else None,
    )


def widened_camera(seed: int, exam: Exam, eye: EyeAnatomy, camera: Camera, *, disc_readable: bool) -> Camera:
    """Return ``camera`` with fields of 30 to 60 degrees, centred on macula, disc or between, and deeper cuts."""
    stream = keyed_generator(seed, "phantom.wide.camera", index=exam.index)
    degrees = float(stream.choice(_FIELDS_DEG, p=_FIELD_SHARES))
    zoom = _FIELD_AT_ZOOM_1_DEG / degrees * float(np.exp(stream.normal(0, 0.04)))
    share = float(stream.choice((0.0, 0.5, 1.0), p=(0.45, 0.37, 0.18))) + float(stream.normal(0, 0.06))
    drift = float(stream.normal(0, 0.05))
    cut = float(stream.uniform(0.68, 0.92))
    deep = stream.random() < 0.5
    if not disc_readable:
        return camera  # the disc may lie outside: that needs the pose as it is
    x = eye.fovea_center[0] + share * (eye.disc_center[0] - eye.fovea_center[0])
    y = eye.fovea_center[1] + share * (eye.disc_center[1] - eye.fovea_center[1])
    # Disc and fovea stay inside the field.
    gaze = float(np.clip(-zoom * x, -0.82 - zoom * eye.fovea_center[0], 0.82 - zoom * eye.disc_center[0]))
    shift = (-gaze if camera.view.mirrored else gaze, drift - zoom * y)
    view = replace(camera.view, zoom=zoom, shift=shift)
    return replace(camera, view=view, cut=cut if deep and camera.kind == "cut" else camera.cut)


def illuminate(scene: Scene, shot: Capture) -> None:
    """Apply the flash, the exposure and the colour of the light."""
    x, y = field_coordinates(scene)
    square = (x - np.float32(shot.light_center[0])) ** 2 + (y - np.float32(shot.light_center[1])) ** 2
    light = np.float32(shot.gain) * (1 - np.float32(shot.falloff) * np.minimum(square, np.float32(1.7)))
    light = light * (1 + np.float32(shot.slope[0]) * x + np.float32(shot.slope[1]) * y)
    for channel in range(3):
        loss = 1 - np.float32(0.06 * channel) * np.minimum(square, np.float32(2))
        scene.image[channel] *= np.maximum(light * loss, np.float32(0.02)) * np.float32(shot.cast[channel])


def cloud(scene: Scene, shot: Capture) -> None:
    """Add what the media do: scattered light, an uneven veil, haze at the rim."""
    stream = scene.photograph_stream("wide.media")
    x, y = field_coordinates(scene)
    if shot.scatter > 0.03:
        blend(scene.image, np.float32(shot.scatter), blurred(scene.image, 0.11 * scene.view.radius_px))
    brightness = np.float32(min(1.0, max(float(scene.image[0].mean()) * 1.3, 0.15)))
    color = (np.array(shot.veil_color, dtype=np.float32) * np.array(shot.cast, dtype=np.float32) * brightness).tolist()
    uneven = np.clip(1 + scene.view.noise(stream, cells=7) * np.float32(0.18), 0.2, 1.8)
    blend(scene.image, np.clip(uneven * np.float32(shot.veil), 0, 0.85), (color[0], color[1], color[2]))
    if shot.rim_haze > 0:
        radius = np.sqrt(x * x + y * y)
        turn = stream.uniform(0, 2 * math.pi)
        ahead = x * np.float32(math.cos(turn)) + y * np.float32(math.sin(turn))
        haze = smoothstep(float(stream.uniform(0.55, 0.85)), 1.05, radius) * smoothstep(-0.9, 0.9, ahead)
        tint = (0.75, float(stream.uniform(0.45, 0.75)), float(stream.uniform(0.3, 0.7) * shot.cast[2]))
        tint = (tint[0] * float(brightness), tint[1] * float(brightness), tint[2] * float(brightness))
        blend(scene.image, haze * np.float32(shot.rim_haze), tint)


def focus(scene: Scene, shot: Capture) -> None:
    """Apply defocus, shake and the sampling of the sensor."""
    view = scene.view
    sigma = math.hypot(shot.blur * view.radius_px, 0.36)
    scene.image[:] = blurred(scene.image, sigma)
    steps = round(math.hypot(*shot.motion) * view.radius_px)
    if steps >= 1:
        total = np.zeros_like(scene.image)
        for step in range(steps + 1):
            at = step / steps - 0.5
            dx, dy = (round(at * shake * view.radius_px) for shake in shot.motion)
            total += np.roll(scene.image, (dy, dx), axis=(1, 2))
        scene.image[:] = total * np.float32(1 / (steps + 1))


def _developed(image: FloatArray, shot: Capture) -> FloatArray:
    """Return ``image`` with the camera's saturation, tone and sharpening."""
    grey = image.mean(axis=0)
    image = np.clip(grey + (image - grey) * np.float32(shot.saturation), 1e-4, None)
    image = np.power(image, np.float32(shot.gamma), dtype=np.float32)
    # Highlights roll off instead of clipping at once.
    bent = np.float32(0.8) + np.float32(0.2) * np.tanh((image - np.float32(0.8)) * np.float32(5))
    image = np.asarray(np.where(image > np.float32(0.8), bent, image), dtype=np.float32)
    if shot.sharpening > 0:
        soft = blurred(image, 1.1)
        image += (image - soft) * np.float32(shot.sharpening)
    return image


def develop(scene: Scene, camera: Camera, shot: Capture) -> NDArray[np.uint8]:
    """Apply development, field stop, margin, noise and compression; return uint8 ``[h, w, 3]``."""
    stream = scene.photograph_stream("wide.sensor")
    light = _developed(scene.image, shot)
    size = scene.view.size_px
    grain = stream.standard_normal(light.shape, dtype=np.float32)
    noise = grain * np.float32(0.6) + np.roll(grain, 1, axis=2) * np.float32(0.4)  # as colour filters leave it
    level = shot.noise * math.sqrt(size / 256)
    light = np.asarray(255 * light + noise * (np.float32(level) * np.sqrt(np.clip(light, 0.05, 1))))
    surround = margin(camera, scene.photograph_stream("margin"))
    picture = surround + (np.clip(light, 0, 255) - surround) * field_stop(camera, shrink=_STOP)
    pixels = np.ascontiguousarray((np.clip(picture, 0, 255) + np.float32(0.5)).astype(np.uint8).transpose(1, 2, 0))
    if shot.quality is None:
        return pixels
    # A small picture is a reduced one: little is left of the large one's compression.
    quality = 97 - (97 - shot.quality) * min(1.0, size / 512)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=round(quality), subsampling=0 if size < 256 else -1)
    with Image.open(file) as compressed:
        return np.array(compressed)
