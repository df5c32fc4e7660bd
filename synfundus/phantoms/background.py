"""Everything behind the vessels: pigment epithelium, choroid, macula, nerve fibre sheen."""

from __future__ import annotations

import numpy as np

from synfundus.phantoms.canvas import FloatArray, absorb, blend, gaussian, smoothstep
from synfundus.phantoms.scene import Scene

_MELANIN = (0.55, 0.95, 0.9)
_CHOROIDAL_BLOOD = (-0.12, 0.10, 0.30)
_STROMA = (0.50, 0.46, 0.30)
_GRANULAR_FROM_PX = 256
"""Smaller pictures cannot resolve the grain of pigment cells: it would only be noise."""
_LUTEIN = (0.42, 0.72, 0.85)


def paint_fundus(scene: Scene) -> None:
    """Fill the picture with the fundus colour, mottling and choroidal vessels."""
    texture = scene.eye_stream("texture")
    view, eye = scene.view, scene.eye
    coarse = view.noise(texture, cells=9)
    grain = view.noise(texture, cells=34)
    color = np.array(eye.pigmentation, dtype=np.float32)
    if scene.has("is_pm"):
        color = color * np.float32(0.62) + np.array([0.95, 0.66, 0.42], dtype=np.float32) * np.float32(0.38)
    scene.image[:] = color[:, None, None]
    tissue = scene.tissue
    melanin = coarse * np.float32(0.045 * tissue.mottling) + grain * np.float32(0.022 * tissue.mottling)
    visible = eye.tessellation + (0.75 if scene.has("is_dm") else 0.0) + (0.35 if scene.has("is_pm") else 0.0)
    if view.size_px >= _GRANULAR_FROM_PX:
        melanin = melanin + view.noise(scene.eye_stream("grain"), cells=150) * np.float32(0.016)
    layers = [(melanin, _MELANIN)]
    if visible > 0.05:
        channels = choroid(scene, texture)
        # The dense pigment of the macula hides the choroid; degenerative myopia exposes it almost up to the fovea.
        cover = 1 - gaussian(scene.x, scene.y, eye.fovea_center, 0.16) * np.float32(0.85)
        seen = channels * cover * np.float32(min(visible, 1.0) * tissue.choroid)
        layers.append((seen, _CHOROIDAL_BLOOD))
        layers.append(((1 - channels) * cover * np.float32(0.44 * min(visible, 1.0) * tissue.choroid), _STROMA))
    absorb(scene.image, layers)


def choroid(scene: Scene, texture: np.random.Generator) -> FloatArray:
    """Return the network of choroidal vessels ``[h, w]``, 0..1: ridges along the zero lines of stretched noise."""
    fine, coarse = scene.tissue.choroid_cells
    streaks = scene.view.noise(texture, cells=fine, aspect=1.9)
    bends = scene.view.noise(texture, cells=coarse, aspect=0.9)
    first = np.exp(-np.square(streaks) * np.float32(1.9))
    second = np.exp(-np.square(bends + streaks * np.float32(0.35)) * np.float32(2.5))
    return np.asarray(np.maximum(first, second))


def paint_macula(scene: Scene) -> None:
    """Darken the macula; young eyes get a small foveal reflex."""
    eye = scene.eye
    wide = gaussian(scene.x, scene.y, eye.fovea_center, 0.20, 1.1)
    core = gaussian(scene.x, scene.y, eye.fovea_center, 0.075)
    hidden = 0.45 if scene.has("is_em") else 1.0
    absorb(
        scene.image,
        [
            (
                wide * np.float32(0.30 * scene.tissue.lutein) + core * np.float32(0.42 * hidden * scene.tissue.lutein),
                _LUTEIN,
            )
        ],
    )
    if eye.youth > 0.45 and not scene.has("is_em") and not scene.has("is_amd"):
        reflex = gaussian(scene.x, scene.y, (eye.fovea_center[0] + 0.006, eye.fovea_center[1] + 0.004), 0.013)
        blend(scene.image, reflex * np.float32(0.55 * eye.youth * scene.tissue.foveal_reflex), (1.0, 0.82, 0.62))


def paint_nerve_fibres(scene: Scene) -> None:
    """Add the sheen of the nerve fibres above and below the disc; glaucoma removes a wedge of it."""
    eye = scene.eye
    dx, dy = scene.offsets(eye.disc_center)
    distance = np.sqrt(dx * dx + dy * dy) + np.float32(1e-6)
    upright = np.abs(dy) / distance
    reach = smoothstep(0.62, 0.14, distance) * smoothstep(0.06, 0.16, distance)
    fibres = scene.view.noise(scene.eye_stream("fibres"), cells=44, aspect=0.55)
    sheen = reach * upright * (1 + fibres * np.float32(0.18))
    strength = (0.05 + 0.13 * eye.youth) * scene.tissue.sheen
    if scene.has("is_gc"):
        strength *= 0.6
        direction = np.arctan2(-dy, -dx)  # 0 is towards the macula
        wedge = np.exp(-np.square((direction + np.float32(0.95)) * np.float32(1 / 0.17)))
        dark = wedge * smoothstep(0.10, 0.2, distance) * smoothstep(1.0, 0.5, distance)
        absorb(scene.image, [(dark * np.float32(0.30), (0.75, 0.9, 0.8))])
    blend(scene.image, np.clip(sheen * np.float32(strength), 0, 1), (0.98, 0.86, 0.62))
