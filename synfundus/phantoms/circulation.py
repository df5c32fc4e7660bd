"""Paint the vessels, with the changes that diseases make to all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from synfundus.phantoms.canvas import Mask, Rgb, absorb
from synfundus.phantoms.scene import Scene
from synfundus.phantoms.vessels import Branches, vessel_tree
from synfundus.phantoms.wide.tree import fine_vessel_tree, visible_share

_FAINTEST = 0.06
"""Density below which a branch cannot be seen."""
_SILVER: Rgb = (-0.36, -1.15, -1.05)


def occluded_quadrant(scene: Scene) -> int | None:
    """Return the quadrant of a branch vein occlusion, -1 for a central one, None without occlusion."""
    if not scene.has("is_rvo"):
        return None
    stream = scene.eye_stream("occlusion")
    return -1 if stream.random() < 0.2 else int(stream.choice(4, p=(0.5, 0.34, 0.08, 0.08)))


def changed_tree(scene: Scene) -> tuple[Branches, ...]:
    """Return the vessel tree of the eye with its diseases: narrowed arteries, dilated veins, traction."""
    grow = fine_vessel_tree if scene.variety == "wide" else vessel_tree
    orders = grow(scene.seed, scene.exam.patient, scene.exam.eye, scene.eye)
    return tuple(_change(scene, order) for order in orders)


def _change(scene: Scene, order: Branches) -> Branches:
    factor = np.ones(len(order.points))
    if scene.has("is_htr"):
        factor = np.where(order.is_artery, factor * 0.66, factor * 1.08)
    if scene.labels["dr_grade"] >= 3:
        factor = np.where(order.is_artery, factor, factor * 1.15)
    blocked = occluded_quadrant(scene)
    points = order.points
    if blocked is not None:
        hit = ~order.is_artery & ((order.quadrant == blocked) | (blocked == -1))
        factor = np.where(hit, factor * 1.38, factor)
        x, y = points[..., 0], points[..., 1]
        sway = np.stack([np.sin(31 * y + 17 * x), np.sin(33 * x - 15 * y)], axis=-1) * 0.013
        points = points + sway * hit[:, None, None]
    if scene.has("is_gc"):
        # With a deep cup the vessels hang over its nasal edge.
        away = points - np.array(scene.eye.disc_center)
        reach = 0.75 * scene.eye.disc_axes[0]
        near = np.exp(-(away**2).sum(axis=-1) / (2 * reach**2))
        points = points + (0.5 * scene.eye.disc_axes[0] * near)[..., None] * np.array([1.0, 0.0])
    if scene.has("is_em"):
        pull = np.add(scene.eye.fovea_center, (0.05, -0.03)) - points
        strength = 0.42 * np.exp(-(pull**2).sum(axis=-1) / (2 * 0.26**2))
        points = points + pull * strength[..., None]
    return replace(order, points=points, widths=order.widths * factor[:, None])


def paint_vessels(scene: Scene) -> None:
    """Add veins, arteries and the arterial reflex to the layers of blood."""
    orders, tissue = changed_tree(scene), scene.tissue
    if scene.variety == "wide":
        orders = tuple(_thinned(scene, order) for order in orders)
        orders = tuple(order.select(order.density > _FAINTEST) for order in orders)
    veins, arteries, reflex = scene.mask(), scene.mask(), scene.mask()
    hypertensive = scene.has("is_htr")
    for order in reversed(orders):
        _draw(veins, order.select(~order.is_artery))
    for order in reversed(orders):
        walls = order.select(order.is_artery)
        if hypertensive:
            # Thickened walls hide the vein below: arteriovenous nicking.
            veins.polygons(walls.outlines(1.9 if order is orders[0] else 1.5), 0.0)
        _draw(arteries, walls)
    for order in orders[:2]:
        walls = order.select(order.is_artery)
        reflex.polygons(walls.outlines(0.55 if hypertensive else tissue.reflex_width), walls.density)
    shine = _SILVER if hypertensive else tissue.reflex
    layers = ((veins, tissue.venous), (arteries, tissue.arterial), (reflex, shine))
    scene.blood += [(mask.finish(blur=tissue.vessel_blur), color) for mask, color in layers]


def _thinned(scene: Scene, order: Branches) -> Branches:
    """Return branches whose density makes up for what drawing in whole samples adds to their width."""
    view = scene.view
    share = visible_share(order, radius_px=view.zoom * view.radius_px, supersampling=view.supersampling)
    return replace(order, density=order.density * share)


def _draw(mask: Mask, branches: Branches) -> None:
    mask.polygons(branches.outlines(), branches.density)


def absorb_blood(scene: Scene) -> None:
    """Apply all layers of blood."""
    absorb(scene.image, scene.blood)
    scene.blood = []
