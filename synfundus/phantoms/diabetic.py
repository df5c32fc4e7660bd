"""Signs of diabetic retinopathy by grade, and of diabetic macular edema."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from synfundus.phantoms.canvas import Rgb, absorb, blend, blob_outlines, gaussian
from synfundus.phantoms.lesions import BLOOD, paint_cotton, paint_exudates, scattered
from synfundus.phantoms.scene import Scene

Floats = NDArray[np.float64]

_DEEP_BLOOD: Rgb = (0.66, 2.1, 1.7)
# Lesions by grade: microaneurysms, blots, exudate clusters, cotton-wool spots.
_COUNTS = {1: (10, 0, 0, 0), 2: (14, 13, 3, 1), 3: (22, 46, 4, 4), 4: (16, 22, 3, 3)}


def paint_diabetic_exudates(scene: Scene) -> None:
    """Paint hard exudates and cotton-wool spots of grades 2 to 4, and the ring of macular edema."""
    grade = scene.labels["dr_grade"]
    if grade < 2:
        return
    _, _, clusters, cottons = _COUNTS[grade]
    stream = scene.eye_stream("exudates")
    middles = scattered(scene, stream, scene.grown(clusters), nearest=0.24, farthest=0.75)
    if len(middles):
        offsets = stream.normal(0, 0.05, (12, 9, 2))[: len(middles)]
        spots = (middles[:, None] + offsets).reshape(-1, 2)
        radii = stream.uniform(0.010, 0.024, (12, 9))[: len(middles)].reshape(-1)
        paint_exudates(scene, stream, spots, radii)
    stream = scene.eye_stream("cotton")
    paint_cotton(scene, stream, scattered(scene, stream, scene.grown(cottons), nearest=0.3, farthest=0.78))


def paint_macular_edema(scene: Scene) -> None:
    """Paint thickened, greyish retina beside the fovea inside a broken ring of hard exudates."""
    if not scene.has("is_dme"):
        return
    stream = scene.eye_stream("edema")
    turn = stream.uniform(0, 2 * math.pi)
    fovea = np.array(scene.eye.fovea_center)
    middle = fovea + 0.05 * np.array([math.cos(turn), math.sin(turn)])
    swelling = gaussian(scene.x, scene.y, (float(middle[0]), float(middle[1])), 0.10)
    blend(scene.image, swelling * np.float32(0.30), (0.72, 0.56, 0.40))
    count = 34
    angle = turn + stream.uniform(-2.6, 2.6, count)
    radius = stream.normal(0.165, 0.022, count)
    spots = middle + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    paint_exudates(scene, stream, spots, stream.uniform(0.012, 0.026, count))


def paint_diabetic_blood(scene: Scene) -> None:
    """Add microaneurysms, blot haemorrhages, and new vessels, by grade."""
    grade = scene.labels["dr_grade"]
    if grade == 0:
        return
    dots, blots, _, _ = _COUNTS[grade]
    mask = scene.mask()
    stream = scene.eye_stream("microaneurysms")
    places = scattered(scene, stream, scene.grown(dots), nearest=0.10, farthest=0.72)
    radii = stream.uniform(0.013, 0.019, 60)[: len(places)]
    mask.polygons(blob_outlines(stream, places, radii, raggedness=0.08, corners=9), 0.85)
    stream = scene.eye_stream("blots")
    places = scattered(scene, stream, scene.grown(blots), nearest=0.14, farthest=0.88)
    if len(places):
        radii = np.clip(np.exp(stream.normal(-3.85, 0.40, 90)), 0.012, 0.052)[: len(places)]
        stretch = stream.uniform(1.0, 1.7, 90)[: len(places)]
        angles = stream.uniform(0, math.pi, 90)[: len(places)]
        density = stream.uniform(0.5, 0.95, 90)[: len(places)]
        outlines = blob_outlines(stream, places, radii, raggedness=0.32, stretch=stretch, angles=angles)
        mask.polygons(outlines, density)
    scene.blood.append((mask.finish(blur=0.004), BLOOD))
    if grade == 4:
        _paint_proliferation(scene)


def _fronds(stream: np.random.Generator, root: Floats, size: float, count: int) -> Floats:
    """Return a tangle of loops ``[count, 2p, 2]`` of fine new vessels around ``root``."""
    t = np.linspace(0, 1, 16)
    base = stream.uniform(0, 2 * math.pi, (count, 1))
    sweep = stream.uniform(-2.6, 2.6, (count, 1))
    radius = size * stream.uniform(0.5, 1.1, (count, 1)) * np.sin(math.pi * t * stream.uniform(0.6, 0.95, (count, 1)))
    angle = base + sweep * t + 0.35 * np.sin(14 * t + base)
    line = root + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    half = 0.0055
    tangent = np.gradient(line, axis=1)
    normal = np.stack([-tangent[..., 1], tangent[..., 0]], axis=-1)
    normal = normal / (np.hypot(normal[..., 0], normal[..., 1])[..., None] + 1e-9) * half
    loops: Floats = np.concatenate([line + normal, (line - normal)[:, ::-1]], axis=1)
    return loops


def _paint_proliferation(scene: Scene) -> None:
    """Add tangles of new vessels at the disc and at an arcade."""
    stream = scene.eye_stream("proliferation")
    disc = np.array(scene.eye.disc_center)
    tangle = scene.mask()
    tangle.polygons(_fronds(stream, disc + np.array([-0.02, -0.05]), 0.26, 13), 0.75)
    elsewhere = np.array([stream.uniform(-0.45, 0.1), stream.choice([-0.56, 0.56])])
    tangle.polygons(_fronds(stream, elsewhere, 0.17, 7), 0.75)
    scene.blood.append((tangle.finish(blur=0.003), (0.40, 1.25, 1.0)))


def paint_preretinal_haemorrhage(scene: Scene) -> None:
    """Paint the boat-shaped haemorrhage of the proliferative grade, with a level top, in front of everything else."""
    if scene.labels["dr_grade"] < 4:
        return
    stream = scene.eye_stream("preretinal")
    boat = np.array([stream.uniform(-0.45, 0.25), stream.uniform(0.40, 0.56)])
    width, depth = stream.uniform(0.20, 0.29), stream.uniform(0.13, 0.18)
    bow = np.linspace(0, math.pi, 20)
    hull = np.stack([np.cos(bow) * width, np.sin(bow) ** 0.8 * depth], axis=-1) + boat
    mask = scene.mask()
    mask.polygons(hull[None], 1.0)
    absorb(scene.image, [(mask.finish(blur=0.006), _DEEP_BLOOD)])
