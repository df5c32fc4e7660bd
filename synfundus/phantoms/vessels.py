"""Grow the retinal vessel tree: arcades around the macula, nasal trunks, three orders of branches.

All branches of an order are grown at once, as arrays. All coordinates are eye coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from synfundus.phantoms.canvas import ribbons
from synfundus.phantoms.scene import EyeAnatomy
from synfundus.seeding import keyed_generator

Floats = NDArray[np.float64]

TRUNK_POINTS = 28
# Way points relative to the disc's centre as (temporal, up); mirrored in `up` for the lower half.
_TEMPORAL_ARCADE = [(0.0, 0.0), (0.015, 0.14), (0.10, 0.32), (0.32, 0.47), (0.64, 0.51), (0.98, 0.43), (1.32, 0.22)]
_NASAL_TRUNK = [(0.0, 0.0), (-0.05, 0.12), (-0.14, 0.29), (-0.28, 0.47), (-0.44, 0.64), (-0.60, 0.80), (-0.78, 0.95)]
_NASAL_MINOR = [(0.0, 0.0), (-0.11, 0.05), (-0.23, 0.09), (-0.36, 0.11), (-0.50, 0.13), (-0.65, 0.17), (-0.80, 0.22)]
_MACULAR_MINOR = [(0.0, 0.0), (0.11, 0.05), (0.20, 0.085), (0.29, 0.10), (0.38, 0.095), (0.46, 0.08), (0.53, 0.06)]


@dataclass(frozen=True)
class Branches:
    """One order of branches.

    Attributes:
        points: Centre lines ``[n, p, 2]``.
        widths: Widths ``[n, p]``.
        is_artery: ``[n]``.
        quadrant: 0 superior-temporal, 1 inferior-temporal, 2 superior-nasal, 3 inferior-nasal ``[n]``.
        density: Density of the blood column, 0..1 ``[n]``.
    """

    points: Floats
    widths: Floats
    is_artery: NDArray[np.bool_]
    quadrant: NDArray[np.int64]
    density: Floats

    def outlines(self, scale: float = 1.0) -> Floats:
        """Return closed outlines ``[n, 2p, 2]`` of the branches, ``scale`` times their width."""
        return ribbons(self.points, self.widths * (0.5 * scale))

    def select(self, keep: NDArray[np.bool_] | slice) -> Branches:
        """Return the branches where ``keep`` ``[n]`` holds, or those of a slice."""
        return Branches(*(getattr(self, one.name)[keep] for one in fields(self)))


@lru_cache(maxsize=2)
def spline_basis(knots: int, points: int) -> Floats:
    """Return the Catmull-Rom basis ``[points, knots]`` through ``knots`` way points."""
    t = np.linspace(0, knots - 1 - 1e-9, points)
    basis = np.zeros((points, knots))
    for row, value in enumerate(t):
        k, u = int(value), value - int(value)
        weights = (
            -0.5 * u + u**2 - 0.5 * u**3,
            1 - 2.5 * u**2 + 1.5 * u**3,
            0.5 * u + 2 * u**2 - 1.5 * u**3,
            -0.5 * u**2 + 0.5 * u**3,
        )
        for step, weight in zip(range(k - 1, k + 3), weights, strict=True):
            basis[row, min(max(step, 0), knots - 1)] += weight
    return basis


def _trunks(patient: np.random.Generator, own: np.random.Generator, eye: EyeAnatomy) -> Branches:
    """Return the twelve trunks: an artery and a vein for each of two arcades, two nasal trunks, two minor trunks."""
    shapes, quadrants, widths = [], [], []
    for way, upper, lower, width in (
        (_TEMPORAL_ARCADE, 0, 1, 1.0),
        (_NASAL_TRUNK, 2, 3, 0.78),
        (_NASAL_MINOR, 2, 3, 0.42),
        (_MACULAR_MINOR, 0, 1, 0.34),
    ):
        for quadrant, up in ((upper, 1.0), (lower, -1.0)):
            shapes += [np.array(way) * (-1.0, -up)] * 2
            quadrants += [quadrant] * 2
            widths += [width] * 2
    ways = np.stack(shapes)
    n = len(ways)
    is_artery = np.arange(n) % 2 == 1
    spread = np.where(is_artery, 0.93, 1.03)[:, None, None] * patient.uniform(0.92, 1.08, (n, 1, 2))
    grown = np.linspace(0, 1, ways.shape[1])[None, :, None]
    ways = ways * spread * own.uniform(0.96, 1.04, (n, 1, 2))
    ways = ways + (patient.normal(0, 0.035, ways.shape) + own.normal(0, 0.022, ways.shape)) * np.sqrt(grown) * 0.9
    # Vein and artery leave the cup side by side, slightly nasal.
    side = np.where(is_artery, 0.16, -0.12) * eye.disc_axes[0]
    ways[:, :, 0] += side[:, None] + 0.12 * eye.disc_axes[0]
    points = np.einsum("pk,nkc->npc", spline_basis(ways.shape[1], TRUNK_POINTS), ways) + np.array(eye.disc_center)
    t = np.linspace(0, 1, TRUNK_POINTS)
    phase = own.uniform(0, 2 * math.pi, (n, 1))
    wave = 0.008 * eye.tortuosity * t * np.sin(phase + 2 * math.pi * own.uniform(2.5, 4.5, (n, 1)) * t)
    points[:, :, 1] += wave
    points[:, :, 0] += 0.6 * np.roll(wave, 5, axis=1)
    base = eye.calibre * np.array(widths) * np.where(is_artery, 0.66, 1.0) * own.uniform(0.92, 1.06, n)
    taper = (1 - 0.90 * t**1.4) * np.clip(t / 0.04 + 0.55, 0, 1)
    minor = np.array(widths) < 0.5
    # The minor vessels emerge at the rim, not from the cup.
    rise = np.where(minor[:, None], np.clip((t - 0.06) / 0.10, 0, 1), 1.0)
    density = np.where(minor, 0.68, 0.95)
    return Branches(points, base[:, None] * taper * rise, is_artery, np.array(quadrants), density)


def branching(
    own: np.random.Generator,
    parents: Branches,
    per_parent: int,
    *,
    spread: tuple[float, float],
    stretch: tuple[float, float],
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
    """Choose where branches leave their parents, on alternating sides.

    Args:
        own: The eye's generator.
        parents: ``n`` branches.
        per_parent: Branches of each.
        spread: Where in its share of the parent a branch leaves, least and most.
        stretch: Where the first share begins, and how much of the parent all take.

    Returns:
        Row of the parent, its point, the parent's direction there, and the side, 1 or -1: ``[n * per_parent]`` each.
    """
    n = len(parents.points)
    last = parents.points.shape[1] - 2
    where = (np.arange(per_parent) + own.uniform(*spread, (n, per_parent))) / per_parent
    at = np.clip((stretch[0] + stretch[1] * where) * last, 1, last).astype(np.int64).reshape(-1)
    row = np.repeat(np.arange(n), per_parent)
    ahead = parents.points[row, at + 1] - parents.points[row, at]
    along = np.arctan2(ahead[:, 1], ahead[:, 0])
    turns = np.tile(np.where(np.arange(per_parent) % 2 == 0, 1.0, -1.0), n)
    side = turns * np.repeat(own.choice([-1.0, 1.0], n), per_parent)
    return row, at, along, side


def _sprout(
    own: np.random.Generator,
    parents: Branches,
    eye: EyeAnatomy,
    *,
    per_parent: int,
    lengths: tuple[float, float],
    steps: int,
    density: float,
) -> Branches:
    """Grow the next order: ``per_parent`` branches from each parent, on alternating sides."""
    count = len(parents.points) * per_parent
    row, at, along, side = branching(own, parents, per_parent, spread=(0.15, 0.85), stretch=(0.08, 0.88))
    heading = along + side * own.uniform(0.45, 0.95, count)
    start = parents.points[row, at]
    fovea = np.array(eye.fovea_center)
    to_fovea = fovea - start
    distance = np.hypot(to_fovea[:, 0], to_fovea[:, 1])
    facing = np.cos(heading) * to_fovea[:, 0] + np.sin(heading) * to_fovea[:, 1]
    inward = (facing > 0) & (distance < 0.8) & (parents.quadrant[row] < 2)
    length = own.uniform(*lengths, count)
    length = np.where(inward, np.minimum(length, 0.9 * distance), length)
    bend = own.normal(0, 0.05, count) - side * 0.035
    jitter = own.normal(0, 0.10 * eye.tortuosity, (steps, count))
    path = np.empty((count, steps + 1, 2))
    path[:, 0] = position = start
    for step in range(steps):
        pull = fovea - position
        goal = np.where(
            inward, np.arctan2(pull[:, 1], pull[:, 0]), 0.65 * along + 0.35 * np.arctan2(-pull[:, 1], -pull[:, 0])
        )
        turn = (goal - heading + math.pi) % (2 * math.pi) - math.pi
        heading = heading + np.where(inward, 0.14, 0.05) * turn + bend + jitter[step]
        position = position + (length / steps)[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
        path[:, step + 1] = position
    base = parents.widths[row, at] * own.uniform(0.50, 0.74, count) * np.where(inward, 0.8, 1.0)
    widths = base[:, None] * (1 - 0.75 * np.linspace(0, 1, steps + 1))
    return Branches(path, widths, parents.is_artery[row], parents.quadrant[row], density * np.where(inward, 0.82, 1.0))


def spare_fovea_and_disc(branches: Branches, eye: EyeAnatomy) -> Branches:
    """Reduce the width of branches in the foveal avascular zone and over the disc."""
    from_fovea = np.hypot(*np.moveaxis(branches.points - np.array(eye.fovea_center), -1, 0))
    from_disc = np.hypot(*np.moveaxis(branches.points - np.array(eye.disc_center), -1, 0))
    keep = np.clip((from_fovea - 0.06) / 0.10, 0, 1) * np.clip((from_disc - 0.06) / 0.06, 0, 1)
    return replace(branches, widths=branches.widths * keep)


def joined(*parts: Branches) -> Branches:
    """Return the branches of several calls as one order."""
    return Branches(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(Branches)))


@lru_cache(maxsize=8)
def vessel_tree(seed: int, patient: int, eye_number: int, eye: EyeAnatomy) -> tuple[Branches, ...]:
    """Return the vessel tree of the eye: the trunks, then the branches by order."""
    shared = keyed_generator(seed, "phantom.vessels.patient", index=patient)
    own = keyed_generator(seed, "phantom.vessels.eye", index=eye_number)
    trunks = _trunks(shared, own, eye)
    arcades, nasal, minor = (trunks.select(slice(*ends)) for ends in ((0, 4), (4, 8), (8, None)))
    first = joined(
        _sprout(own, arcades, eye, per_parent=7, lengths=(0.30, 0.75), steps=14, density=0.80),
        _sprout(own, nasal, eye, per_parent=4, lengths=(0.25, 0.55), steps=14, density=0.74),
        _sprout(own, minor, eye, per_parent=2, lengths=(0.15, 0.30), steps=14, density=0.60),
    )
    first = spare_fovea_and_disc(first, eye)
    second = _sprout(own, first, eye, per_parent=2, lengths=(0.14, 0.36), steps=8, density=0.55)
    return trunks, first, spare_fovea_and_disc(second, eye)
