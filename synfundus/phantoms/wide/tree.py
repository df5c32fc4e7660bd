"""Vessel tree of variety ``wide``: longer, finer and more orders of branches than the demo's, in wider fields."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from synfundus.phantoms.scene import EyeAnatomy
from synfundus.phantoms.vessels import Branches, Floats, branching, joined, spare_fovea_and_disc, spline_basis
from synfundus.seeding import keyed_generator

_POINTS = 40
# Way points relative to the disc's centre as (temporal, up); mirrored in `up` for the lower half.
_TEMPORAL = [(0, 0), (0.01, 0.13), (0.09, 0.31), (0.30, 0.47), (0.62, 0.53), (0.98, 0.52), (1.32, 0.46), (1.70, 0.42)]
_NASAL = [(0, 0), (-0.03, 0.12), (-0.12, 0.28), (-0.26, 0.44), (-0.44, 0.60), (-0.63, 0.76), (-0.84, 0.92), (-1.1, 1.1)]
_UPRIGHT = [(0, 0), (0.01, 0.11), (0.04, 0.26), (0.08, 0.44), (0.15, 0.64), (0.25, 0.86), (0.36, 1.10), (0.48, 1.36)]
_ACROSS = [
    (0, 0),
    (-0.09, 0.05),
    (-0.21, 0.10),
    (-0.35, 0.14),
    (-0.51, 0.18),
    (-0.70, 0.24),
    (-0.90, 0.31),
    (-1.1, 0.4),
]
_MACULAR = [(0, 0), (0.09, 0.05), (0.17, 0.09), (0.25, 0.115), (0.33, 0.12), (0.41, 0.11), (0.48, 0.09), (0.54, 0.07)]
_TRUNKS = (
    (_TEMPORAL, 0, 1, 1.0),
    (_NASAL, 2, 3, 0.72),
    (_UPRIGHT, 2, 3, 0.55),
    (_ACROSS, 2, 3, 0.40),
    (_MACULAR, 0, 1, 0.30),
)


def _trunks(patient: np.random.Generator, own: np.random.Generator, eye: EyeAnatomy) -> Branches:
    """Return an artery and a vein for each of ten ways."""
    shapes, quadrants, widths = [], [], []
    for way, upper, lower, width in _TRUNKS:
        for quadrant, up in ((upper, 1.0), (lower, -1.0)):
            shapes += [np.array(way) * (-1.0, -up)] * 2
            quadrants += [quadrant] * 2
            widths += [width] * 2
    ways = np.stack(shapes)
    n, knots = len(ways), ways.shape[1]
    is_artery = np.arange(n) % 2 == 1
    grown = np.linspace(0, 1, knots)[None, :, None]
    # Artery and vein of a pair share most of their way.
    pair = np.repeat(patient.uniform(0.84, 1.16, (n // 2, 1, 2)), 2, axis=0)
    ways = ways * pair * own.uniform(0.93, 1.07, (n, 1, 2))
    shared = np.repeat(patient.normal(0, 0.05, (n // 2, knots, 2)), 2, axis=0)
    ways = ways + (shared + own.normal(0, 0.035, ways.shape)) * np.sqrt(grown)
    ways[:, :, 0] += (np.where(is_artery, 0.14, -0.12) + 0.1)[:, None] * eye.disc_axes[0]
    points = np.einsum("pk,nkc->npc", spline_basis(knots, _POINTS), ways) + np.array(eye.disc_center)
    t = np.linspace(0, 1, _POINTS)
    wave = np.zeros((n, _POINTS, 2))
    for cycles, size in ((own.uniform(3, 5, (n, 1, 2)), 0.008), (own.uniform(7, 11, (n, 1, 2)), 0.0035)):
        wave += size * np.sin(2 * math.pi * (own.uniform(0, 1, (n, 1, 2)) + cycles * t[None, :, None]))
    points = points + wave * eye.tortuosity * np.minimum(4 * t, 1)[None, :, None]
    calibre = eye.calibre * np.array(widths) * np.where(is_artery, own.uniform(0.62, 0.82, n), 1.0)
    calibre = calibre * own.uniform(0.85, 1.12, n)
    taper = (1 - 0.68 * t**1.1) * np.clip(t / 0.05 + 0.5, 0, 1)
    widths_along = calibre[:, None] * taper
    density = np.clip((calibre / eye.calibre) ** 0.35, 0.35, 1.0)
    return Branches(points, widths_along, is_artery, np.array(quadrants), density)


def _sprout(
    own: np.random.Generator,
    parents: Branches,
    eye: EyeAnatomy,
    *,
    per_parent: int,
    lengths: tuple[float, float],
    steps: int,
) -> Branches:
    """Grow the next order: branches leave on alternating sides, then swing towards their parent's direction."""
    count = len(parents.points) * per_parent
    row, at, along, side = branching(own, parents, per_parent, spread=(0.05, 0.95), stretch=(0.13, 0.85))
    heading = along + side * own.uniform(0.5, 1.25, count)
    start = parents.points[row, at]
    fovea = np.array(eye.fovea_center)
    distance = np.hypot(*(fovea - start).T)
    facing = np.cos(heading) * (fovea - start)[:, 0] + np.sin(heading) * (fovea - start)[:, 1]
    inward = (facing > 0.3 * distance) & (distance < 0.85) & (parents.quadrant[row] < 2)
    share = np.sqrt(parents.widths[row, at] / eye.calibre)
    length = own.uniform(*lengths, count) * np.clip(0.35 + share, 0.5, 1.2)
    length = np.where(inward, np.minimum(length, own.uniform(0.75, 0.97, count) * distance), length)
    path = np.empty((count, steps + 1, 2))
    path[:, 0] = position = start
    swing = np.zeros(count)
    jitter = own.normal(0, 0.11 * math.sqrt(eye.tortuosity), (steps, count))
    pace = (length / steps)[:, None]
    for step in range(steps):
        pull = fovea - position
        away = np.arctan2(-pull[:, 1], -pull[:, 0])
        outward = np.angle(0.8 * np.exp(1j * along) + 0.35 * np.exp(1j * away))
        goal = np.where(inward, np.arctan2(pull[:, 1], pull[:, 0]), outward)
        turn = (goal - heading + math.pi) % (2 * math.pi) - math.pi
        swing = 0.6 * swing + jitter[step]
        heading = heading + np.where(inward, 1.8, 1.3) / steps * turn + swing
        position = position + pace * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
        path[:, step + 1] = position
    base = (
        parents.widths[row, at] * own.uniform(0.45, 0.85, count) * np.where(inward, own.uniform(0.5, 0.95, count), 1.0)
    )
    widths = base[:, None] * (1 - 0.6 * np.linspace(0, 1, steps + 1))
    density = np.clip((base / eye.calibre) ** 0.4 * own.uniform(0.6, 1.15, count), 0.1, 1.0)
    return Branches(path, widths, parents.is_artery[row], parents.quadrant[row], density)


@lru_cache(maxsize=8)
def fine_vessel_tree(seed: int, patient: int, eye_number: int, eye: EyeAnatomy) -> tuple[Branches, ...]:
    """Return the vessel tree of the eye: the trunks, then three orders of branches."""
    shared = keyed_generator(seed, "phantom.wide.vessels.patient", index=patient)
    own = keyed_generator(seed, "phantom.wide.vessels.eye", index=eye_number)
    trunks = _trunks(shared, own, eye)
    arcades, others = trunks.select(slice(0, 4)), trunks.select(slice(4, None))
    first = joined(
        _sprout(own, arcades, eye, per_parent=9, lengths=(0.30, 1.0), steps=18),
        _sprout(own, others, eye, per_parent=3, lengths=(0.25, 0.75), steps=18),
    )
    first = spare_fovea_and_disc(first, eye)
    second = spare_fovea_and_disc(_sprout(own, first, eye, per_parent=2, lengths=(0.15, 0.50), steps=10), eye)
    third = spare_fovea_and_disc(_sprout(own, second, eye, per_parent=2, lengths=(0.08, 0.28), steps=6), eye)
    return trunks, first, second, third


def visible_share(branches: Branches, *, radius_px: float, supersampling: int) -> Floats:
    """Return the share ``[n]`` of a drawn polygon's coverage that a branch really has.

    A polygon narrower than a sample is drawn a sample wide, and every one a sample wider than it is.
    """
    samples = branches.widths.mean(axis=1) * radius_px * supersampling
    return np.asarray(samples / (samples + 1))
