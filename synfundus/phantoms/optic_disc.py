"""The optic disc: rim, cup, margin, surroundings, and the diseases that change it."""

from __future__ import annotations

import math

import numpy as np

from synfundus.phantoms.canvas import FloatArray, Rgb, absorb, blend, blob_outlines, smoothstep
from synfundus.phantoms.scene import Scene

_SWOLLEN_SHARE = 0.5
_PIGMENT = (0.9, 1.1, 1.0)


def is_swollen(scene: Scene) -> bool:
    """Return whether the optic nerve anomaly of the eye is a swelling (otherwise pallor)."""
    return scene.has("is_aon") and bool(scene.eye_stream("nerve").random() < _SWOLLEN_SHARE)


def _elliptic(scene: Scene, center: tuple[float, float], axes: tuple[float, float], tilt: float) -> FloatArray:
    """Return the elliptic distance ``[h, w]`` from ``center``: 1 on the ellipse."""
    along, across = scene.offsets(center, tilt)
    along, across = along * np.float32(1 / axes[0]), across * np.float32(1 / axes[1])
    return np.asarray(np.sqrt(along * along + across * across))


def paint_crescent(scene: Scene) -> None:
    """Paint the bare sclera beside the disc: large in pathologic, small in degenerative myopia."""
    if not (scene.has("is_pm") or scene.has("is_dm")):
        return
    eye, stream = scene.eye, scene.eye_stream("crescent")
    reach, lag = stream.uniform(2.05, 2.45), stream.uniform(0.70, 0.95)
    if not scene.has("is_pm"):
        reach, lag = 1.26 + 0.1 * (reach - 2.05), 0.32
    reach *= 1 + 0.04 * scene.exam.visit
    width, height = eye.disc_axes
    center = (eye.disc_center[0] - lag * width, eye.disc_center[1] + 0.05 * height)
    wobble = scene.view.noise(stream, cells=24) * np.float32(0.05)
    ring = _elliptic(scene, center, (width * reach, height * (reach * 0.92)), eye.disc_tilt) + wobble
    rim = np.exp(-np.square((ring - np.float32(1.04)) * np.float32(1 / 0.07)))
    absorb(scene.image, [(rim * np.float32(0.35), _PIGMENT)])
    bare = smoothstep(1.05, 0.93, ring)
    mottled = 0.86 - 0.10 * np.clip(scene.view.noise(stream, cells=40), -1, 1)
    blend(scene.image, bare * mottled, (0.97, 0.88, 0.66))


def _disc_colors(scene: Scene) -> tuple[Rgb, Rgb]:
    """Return the colours of rim and cup."""
    rim, cup = (1.0, 0.74, 0.45), (1.0, 0.93, 0.74)
    if scene.has("is_gc"):
        rim, cup = (0.97, 0.68, 0.44), (1.0, 1.0, 0.92)
    if scene.has("is_aon"):
        rim, cup = ((0.97, 0.58, 0.38), (1.0, 0.72, 0.52)) if is_swollen(scene) else ((0.96, 0.95, 0.86), (1, 1, 0.97))
    return _tinted(rim, scene.tissue.disc_tint), _tinted(cup, scene.tissue.disc_tint)


def _tinted(color: Rgb, tint: Rgb) -> Rgb:
    return color[0] * tint[0], color[1] * tint[1], color[2] * tint[2]


def _cup_distance(scene: Scene, ratio: float) -> FloatArray:
    """Return the elliptic distance from the centre of the cup; glaucoma adds a notch of the rim below or above."""
    eye = scene.eye
    width, height = eye.disc_axes
    shift = 0.07 if ratio < 0.6 else 0.04
    center = (eye.disc_center[0] - shift * width, eye.disc_center[1])
    tall = 1.12 if scene.has("is_gc") else 0.98
    distance = _elliptic(scene, center, (width * ratio, height * ratio * tall), eye.disc_tilt)
    if scene.has("is_gc"):
        below = 1.0 if scene.eye_stream("notch").random() < 0.75 else -1.0
        notch = (center[0] - 0.12 * width, center[1] + below * 0.62 * height)
        distance = np.minimum(distance, _elliptic(scene, notch, (width * 0.34, height * 0.36), 0.0))
    return distance


def _paint_nerve_fibre_loss(scene: Scene, radial: FloatArray) -> None:
    """Paint signs of glaucoma around the disc: a pale zone of atrophy, dark arcuate wedges of lost nerve fibres."""
    blend(scene.image, smoothstep(1.75, 1.25, radial) * np.float32(0.62), (0.98, 0.82, 0.60))
    dx, dy = scene.offsets(scene.eye.disc_center)
    # temporal is towards -x: the wedges run above and below the macula
    angle = np.arctan2(dy, -dx)
    reach = smoothstep(1.3, 2.0, radial) * smoothstep(7.0, 5.0, radial)
    stream = scene.eye_stream("wedge")
    for side in (1.0, -1.0):
        center, width = side * stream.uniform(0.62, 0.80), stream.uniform(0.15, 0.20)
        wedge = np.exp(-np.square((angle - np.float32(center)) * np.float32(1 / width))) * reach
        absorb(scene.image, [(wedge * np.float32(0.42), _PIGMENT)])


def paint_disc(scene: Scene) -> None:
    """Paint the disc with its rim and cup."""
    eye = scene.eye
    swollen = is_swollen(scene)
    size = 1.38 if swollen else 1.32 if scene.has("is_gc") else 1.0
    axes = (eye.disc_axes[0] * size * (0.86 if scene.has("is_pm") else 1.0), eye.disc_axes[1] * size)
    radial = _elliptic(scene, eye.disc_center, axes, eye.disc_tilt)
    rim_color, cup_color = _disc_colors(scene)
    if scene.has("is_gc"):
        _paint_nerve_fibre_loss(scene, radial)
    if not swollen:
        ring = np.exp(-np.square((radial - np.float32(1.10)) * np.float32(1 / 0.10)))
        absorb(scene.image, [(ring * np.float32(0.12), _PIGMENT)])
    softness = 0.55 if swollen else scene.tissue.disc_edge
    inside = smoothstep(1 + softness * 0.9, 1 - softness, radial)
    side = np.clip((scene.x - np.float32(eye.disc_center[0])) * np.float32(0.5 / axes[0]), -0.5, 0.5)
    # The nasal rim is redder.
    rim = np.stack([np.full_like(side, rim_color[0]), rim_color[1] - 0.16 * side, rim_color[2] - 0.16 * side])
    blend(scene.image, inside * np.float32(scene.tissue.disc_cover), rim)
    ratio = eye.cup_ratio
    if scene.has("is_gc"):
        ratio = 0.78 + 0.08 * float(scene.eye_stream("cup").random()) + 0.02 * scene.exam.visit
    if swollen and not scene.has("is_gc"):
        ratio *= 0.55
    cup = _cup_distance(scene, ratio)
    sharp = 0.12 if scene.has("is_gc") else 0.32
    hollow = smoothstep(1 + sharp, 1 - sharp, cup)
    if scene.has("is_gc"):
        edge = np.exp(-np.square((cup - np.float32(1.02)) * np.float32(1 / 0.10))) * inside
        absorb(scene.image, [(edge * np.float32(0.30), (0.35, 0.9, 1.0))])
    blend(scene.image, hollow * np.float32(0.92), cup_color)
    if swollen:
        _paint_splinter_haemorrhages(scene, radius=1.15 * axes[1], count=8)
    elif scene.has("is_gc") and scene.eye_stream("disc.haemorrhage").random() < 0.3:
        _paint_splinter_haemorrhages(scene, radius=1.05 * axes[1], count=1)


def _paint_splinter_haemorrhages(scene: Scene, *, radius: float, count: int) -> None:
    """Add short radial streaks of blood at the disc's margin."""
    stream = scene.eye_stream("splinters")
    angle = stream.uniform(0, 2 * math.pi, count)
    reach = radius * stream.uniform(0.9, 1.25, count)
    centers = np.array(scene.eye.disc_center) + np.stack([np.cos(angle), np.sin(angle)], axis=-1) * reach[:, None]
    streaks = blob_outlines(stream, centers, np.full(count, 0.013), raggedness=0.2, stretch=3.2, angles=angle)
    scene.bleed(scene.cover(streaks, 0.8, blur=0.004), (0.55, 1.5, 1.2))
