"""Blood and infarcts of vein occlusion and hypertension."""

from __future__ import annotations

import math

import numpy as np

from synfundus.phantoms.canvas import blob_outlines
from synfundus.phantoms.circulation import changed_tree, occluded_quadrant
from synfundus.phantoms.lesions import BLOOD, paint_cotton
from synfundus.phantoms.scene import Scene


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
    mask = scene.mask()
    mask.polygons(flames, stream.uniform(0.55, 0.95, count))
    cover = mask.finish(blur=0.005)
    scene.blood.append((cover, BLOOD))
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
    mask = scene.mask()
    mask.polygons(flames, 0.85)
    scene.blood.append((mask.finish(blur=0.004), BLOOD))
    paint_cotton(scene, scene.eye_stream("hypertensive.cotton"), places[:3] + np.array([-0.06, 0.05]))
