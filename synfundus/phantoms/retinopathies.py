"""Signs of retinopathies: diabetic, by grade, with macular edema; of vein occlusion and hypertension."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from synfundus.phantoms.canvas import Rgb, absorb, blend, blob_outlines, gaussian, ribbons
from synfundus.phantoms.circulation import changed_tree, occluded_quadrant
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
    scene.bleed(mask.finish(blur=0.004), BLOOD)
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
    return ribbons(line, 0.0055)


def _paint_proliferation(scene: Scene) -> None:
    """Add tangles of new vessels at the disc and at an arcade."""
    stream = scene.eye_stream("proliferation")
    disc = np.array(scene.eye.disc_center)
    at_disc = _fronds(stream, disc + np.array([-0.02, -0.05]), 0.26, 13)
    elsewhere = np.array([stream.uniform(-0.45, 0.1), stream.choice([-0.56, 0.56])])
    tangles = np.concatenate([at_disc, _fronds(stream, elsewhere, 0.17, 7)])
    scene.bleed(scene.cover(tangles, 0.75, blur=0.003), (0.40, 1.25, 1.0))


def paint_preretinal_haemorrhage(scene: Scene) -> None:
    """Paint the boat-shaped haemorrhage of the proliferative grade, with a level top, in front of everything else."""
    if scene.labels["dr_grade"] < 4:
        return
    stream = scene.eye_stream("preretinal")
    boat = np.array([stream.uniform(-0.45, 0.25), stream.uniform(0.40, 0.56)])
    width, depth = stream.uniform(0.20, 0.29), stream.uniform(0.13, 0.18)
    bow = np.linspace(0, math.pi, 20)
    hull = np.stack([np.cos(bow) * width, np.sin(bow) ** 0.8 * depth], axis=-1) + boat
    absorb(scene.image, [(scene.cover(hull[None], 1.0, blur=0.006), _DEEP_BLOOD)])


def paint_occlusion(scene: Scene) -> None:
    """Add flame haemorrhages along the branches of the blocked vein, and cotton-wool spots between them."""
    quadrant = occluded_quadrant(scene)
    if quadrant is None:
        return
    stream = scene.eye_stream("flames")
    count = 120 if quadrant >= 0 else 170
    spots, angles = [], []
    for order in changed_tree(scene)[:3]:
        hit = ~order.is_artery & ((order.quadrant == quadrant) | (quadrant == -1))
        lines = order.points[hit]
        ahead = np.gradient(lines, axis=1)
        far = np.hypot(*np.moveaxis(lines - np.array(scene.eye.disc_center), -1, 0))
        good = (far > 0.17) & (far < 1.0)
        spots.append(lines[good])
        angles.append(np.arctan2(ahead[..., 1], ahead[..., 0])[good])
    sites, directions = np.concatenate(spots), np.concatenate(angles)
    chosen = stream.integers(0, len(sites), count)
    places = sites[chosen] + stream.normal(0, 0.065, (count, 2))
    flames = blob_outlines(
        stream,
        places,
        stream.uniform(0.008, 0.016, count),
        raggedness=0.3,
        stretch=stream.uniform(2.0, 5.0, count),
        angles=directions[chosen] + stream.normal(0, 0.25, count),
    )
    scene.bleed(scene.cover(flames, stream.uniform(0.55, 0.95, count), blur=0.005), BLOOD)
    paint_cotton(scene, stream, places[:4] + 0.04)


def paint_hypertensive_lesions(scene: Scene) -> None:
    """Add a few flame haemorrhages and cotton-wool spots around the disc."""
    if not scene.has("is_htr"):
        return
    stream = scene.eye_stream("hypertensive")
    count = scene.grown(9)
    angle = stream.uniform(0, 2 * math.pi, 14)[:count]
    reach = stream.uniform(0.22, 0.42, 14)[:count]
    places = np.array(scene.eye.disc_center) + np.stack([np.cos(angle), np.sin(angle)], axis=-1) * reach[:, None]
    flames = blob_outlines(stream, places, np.full(count, 0.012), raggedness=0.2, stretch=3.5, angles=angle)
    scene.bleed(scene.cover(flames, 0.85, blur=0.004), BLOOD)
    paint_cotton(scene, scene.eye_stream("hypertensive.cotton"), places[:3] + np.array([-0.06, 0.05]))


BLOOD: Rgb = (0.50, 1.55, 1.25)
"""Absorption of a haemorrhage inside the retina."""
_HARD_EXUDATE: Rgb = (1.0, 0.90, 0.50)
_COTTON: Rgb = (0.99, 0.93, 0.80)
_TRIES = 220


def scattered(scene: Scene, stream: np.random.Generator, count: int, *, nearest: float, farthest: float) -> Floats:
    """Return ``count`` positions ``[count, 2]`` around the posterior pole, away from fovea and disc.

    A larger count extends the list without changing the first positions.

    Args:
        scene: The scene.
        stream: Stream of the eye for this kind of lesion.
        count: Number of positions.
        nearest: Minimum distance from the fovea.
        farthest: Maximum distance from the centre of the field.
    """
    angle = stream.uniform(0, 2 * math.pi, _TRIES)
    radius = farthest * np.sqrt(stream.uniform(0.02, 1, _TRIES))
    places = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    from_fovea = np.hypot(*(places - np.array(scene.eye.fovea_center)).T)
    from_disc = np.hypot(*(places - np.array(scene.eye.disc_center)).T)
    free = (from_fovea > nearest) & (from_disc > 1.5 * scene.eye.disc_axes[1])
    return np.asarray(places[free][:count])


def paint_exudates(scene: Scene, stream: np.random.Generator, spots: Floats, radii: Floats) -> None:
    """Paint hard exudates at ``spots`` ``[n, 2]`` with ``radii`` ``[n]``."""
    outlines = blob_outlines(stream, spots, radii, raggedness=0.3, corners=10)
    blend(scene.image, scene.cover(outlines, 0.95, blur=0.004), _HARD_EXUDATE)


def paint_cotton(scene: Scene, stream: np.random.Generator, spots: Floats) -> None:
    """Paint cotton-wool spots at ``spots`` ``[n, 2]``."""
    if len(spots) == 0:
        return
    radii = stream.uniform(0.032, 0.052, 40)[: len(spots)]
    outlines = blob_outlines(
        stream, spots, radii, raggedness=0.5, stretch=1.25, angles=stream.uniform(0, math.pi, 40)[: len(spots)]
    )
    blend(scene.image, scene.cover(outlines, 0.9, blur=0.019), _COTTON)
