"""Make the network that finds optic discs: ``python -m benchmarks.anatomy_finder`` draws eyes, trains it, writes it.

It sees drawn eyes of both varieties alone, no photograph. Each is turned, mirrored, magnified, tinted, clouded; in a
third of them a second disc is planted, in two fifths the disc is covered by retina, in half of them bright lesions are
added. A quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.planted_faults import Pixels, Point, axes, blurred, lit, transplant
from synfundus.evaluation.examination.anatomy import GRID, WEIGHTS, AnatomyNetwork, relative_colour
from synfundus.evaluation.examination.clarity import WORKING_SIZE_PX
from synfundus.phantoms.draw import Variety, draw_phantom
from synfundus.photographs.rim import Circle
from synfundus.photographs.transforms import crop_to_field_of_view
from synfundus.seeding import keyed_generator

Floats = NDArray[np.float32]
_SEED, _STEP = 101, 2
_SPREAD, _NEAR = 0.055, 0.09
_BATCH, _LR = 32, 4e-3


@dataclass
class Drawn:
    """Drawn eyes: crops ``[n, s, s, 3]``, and of each disc (x, y, radius) and fovea (x, y), and what is readable."""

    pixels: Pixels
    places: NDArray[np.float64]
    readable: NDArray[np.bool_]


@dataclass
class Lesson:
    """What the network learns from: images, and the maps they should give; NaN where it is not said."""

    pixels: list[Pixels] = field(default_factory=list)
    discs: list[Floats] = field(default_factory=list)
    foveas: list[Floats] = field(default_factory=list)
    radii: list[Floats] = field(default_factory=list)


def draw_eyes(number: int, variety: Variety) -> Drawn:
    """Draw eyes and crop them to their field of view."""
    crops, places, readable = [], [], []
    for index in range(0, number * _STEP, _STEP):
        drawn = draw_phantom(seed=_SEED, index=index, image_size_px=144, variety=variety)
        truth, labels = drawn.truth, drawn.true_labels
        circle = Circle(truth.center_x_px, truth.center_y_px, truth.radius_px)
        crops.append(crop_to_field_of_view(drawn.pixels, circle, WORKING_SIZE_PX))
        middle, unit = np.array([truth.center_x_px, truth.center_y_px]), truth.radius_px
        disc = (np.array([truth.disc_x_px, truth.disc_y_px]) - middle) / unit
        fovea = (np.array([truth.fovea_x_px, truth.fovea_y_px]) - middle) / unit
        places.append([*disc, truth.disc_radius_px / unit, *fovea])
        disc_seen = labels["is_fundus"] and labels["is_optic_disc_readable"]
        readable.append([bool(disc_seen), bool(labels["is_macular_readable"])])
    return Drawn(np.stack(crops), np.array(places), np.array(readable))


def add_lesions(pixels: Pixels, draw: np.random.Generator) -> Pixels:
    """Add bright patches without vessels: plaques of exudate, scars, reflexes."""
    x, y = axes(len(pixels))
    seen, picture = lit(pixels), pixels.astype(np.float32)
    if not seen.any():
        return pixels
    base = picture[seen].mean(axis=0)
    for _ in range(draw.integers(1, 5)):
        at, radius = draw.uniform(-0.75, 0.75, 2), math.exp(draw.uniform(math.log(0.025), math.log(0.25)))
        angle = np.arctan2(y - at[1], x - at[0])
        waves = sum(draw.normal(0, 0.22) / k * np.cos(k * angle + draw.uniform(0, 6.3)) for k in range(1, 6))
        away = np.hypot(x - at[0], (y - at[1]) * draw.uniform(1, 1.8))
        edge = radius * draw.uniform(0.1, 1.2) + 0.01
        cover = np.clip((radius * (1 + waves) - away) / edge + 0.5, 0, 1) * draw.uniform(0.3, 1)
        if draw.random() < 0.4:  # a cluster of many
            cover = cover * (draw.random(cover.shape) > draw.uniform(0.1, 0.7))
            cover = blurred((cover * 255).astype(np.uint8), 1.0) / 255
        kind = draw.integers(3)
        tint = np.array([[1.25, 1.3, 0.55], [1.2, 1.5, 1.8], [1.5, 1.4, 1.0]])[kind] * draw.uniform(0.8, 1.6)
        glow = np.array([[1, 0.9, 0.1], [0.7, 0.9, 1], [1, 0.8, 0.5]])[kind] * draw.uniform(0, 60)
        picture += ((base * tint + glow).clip(0, 255) - picture) * cover[..., None]
    return np.asarray(picture.clip(0, 255) * seen[..., None], dtype=np.uint8)


def moved(pixels: Pixels, points: list[Point], draw: np.random.Generator) -> tuple[Pixels, list[Point], float]:
    """Turn, mirror and magnify the eye inside its field; returns where points went, and the magnification."""
    size, angle, zoom = len(pixels), draw.normal(0, 0.2), math.exp(draw.uniform(-0.2, 0.3))
    flip_x, flip_y = draw.choice([-1, 1]), 1 if draw.random() < 0.8 else -1
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([[cos * flip_x, -sin * flip_y], [sin * flip_x, cos * flip_y]]) * zoom
    shift, back, half = draw.uniform(-0.12, 0.12, 2), np.linalg.inv(matrix), size / 2
    offset = half * (1 + shift - back.sum(axis=1))
    rows = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    picture = Image.fromarray(pixels).transform((size, size), Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
    turned = np.array(picture)
    turned[np.hypot(*axes(size)) > 0.985] = 0
    places = (np.array(points) - shift) @ matrix.T
    return turned, [(float(x), float(y)) for x, y in places], zoom


def tinted(pixels: Pixels, draw: np.random.Generator) -> Pixels:
    """Change light, colour, haze, sharpness and noise."""
    seen, (x, y) = lit(pixels)[..., None], axes(len(pixels))
    picture = (pixels.astype(np.float32) / 255) ** math.exp(draw.normal(0, 0.15)) * np.exp(draw.normal(0, 0.1, 3))
    picture = picture * (1 + draw.normal(0, 0.12) * x + draw.normal(0, 0.12) * y)[..., None]
    if draw.random() < 0.3 and seen.any():
        haze = draw.uniform(0, 0.35)
        picture = picture * (1 - haze) + haze * picture[seen[..., 0]].mean(axis=0)
    if draw.random() < 0.25:  # a reflex along the rim
        along = np.cos(np.arctan2(y, x) - draw.uniform(0, 6.3)) > draw.uniform(-1, 0.6)
        rim = np.clip((np.hypot(x, y) - draw.uniform(0.75, 0.95)) * 4, 0, 1) * along
        picture = picture + rim[..., None] * draw.uniform(0, 0.5) * draw.uniform(0.3, 1, 3)
    levels = np.asarray(picture.clip(0, 1) * 255 * seen, dtype=np.uint8)
    if draw.random() < 0.4:
        levels = blurred(levels, draw.uniform(0.3, 1.2))
    noisy = levels + np.rint(draw.normal(0, draw.uniform(0, 3), levels.shape))
    return np.asarray(noisy.clip(0, 255) * seen, dtype=np.uint8)


def _planted(pixels: Pixels, disc: Point, radius: float, draw: np.random.Generator) -> tuple[Pixels, list[Point]]:
    """Plant a second disc, or cover the only one; returns the centres of the discs that are there."""
    kind = draw.random()
    for _ in range(40):
        if kind < 0.3:
            target = (draw.uniform(-0.85, 0.85), draw.uniform(-0.65, 0.65))
            if np.hypot(*target) < 0.88 and math.dist(target, disc) > 2.6 * radius:
                reach, flip = draw.uniform(1.05, 1.7), bool(draw.integers(2))
                return transplant(pixels, disc, target, radius, reach=reach, flip=flip), [disc, target]
        elif kind < 0.7:
            angle, away = draw.uniform(0, 2 * np.pi), draw.uniform(2.5 * radius, 1.2)
            source = (disc[0] + away * math.cos(angle), disc[1] + away * math.sin(angle))
            if np.hypot(*source) + 1.5 * radius < 0.97:
                reach, flip = draw.uniform(1.1, 1.5), bool(draw.integers(2))
                return transplant(pixels, source, disc, 1.25 * radius, reach=reach, flip=flip), []
    return pixels, [disc]


def prepare(eyes: Drawn, *, repeats: int) -> Lesson:
    """Change every eye ``repeats`` times; eyes whose disc cannot be read are left out."""
    lesson, axis = Lesson(), (np.arange(GRID) + 0.5) / GRID * 2 - 1
    x, y = np.meshgrid(axis, axis)
    for number in np.tile(np.flatnonzero(eyes.readable[:, 0]), repeats).tolist():
        draw = keyed_generator(_SEED, "anatomy.lesson", index=len(lesson.pixels))
        pixels, place = eyes.pixels[number], eyes.places[number].tolist()
        disc, radius, fovea = (place[0], place[1]), place[2], (place[3], place[4])
        if draw.random() < 0.5:
            x_off, y_off = (axis_of - at for axis_of, at in zip(axes(WORKING_SIZE_PX), disc, strict=True))
            kept = np.clip((np.hypot(x_off, y_off) - 1.5 * radius) / (0.5 * radius), 0, 1)
            pixels = (add_lesions(pixels, draw) * kept[..., None] + pixels * (1 - kept[..., None])).astype(np.uint8)
        pixels, discs = _planted(pixels, disc, radius, draw)
        pixels, points, zoom = moved(pixels, [*discs, fovea], draw)
        heat, radii = np.zeros((GRID, GRID), np.float32), np.full((GRID, GRID), np.nan, np.float32)
        for at in points[:-1]:
            away = np.hypot(x - at[0], y - at[1])
            heat = np.maximum(heat, np.exp(-0.5 * (away / _SPREAD) ** 2)) if np.hypot(*at) < 1 else heat
            radii[away < _NEAR] = math.log(radius * zoom)
        clear = eyes.readable[number, 1] and np.hypot(*points[-1]) < 0.9
        away = np.hypot(x - points[-1][0], y - points[-1][1]) if clear else np.full_like(x, np.nan)
        lesson.pixels.append(tinted(pixels, draw))
        lesson.discs.append(heat.astype(np.float32))
        lesson.foveas.append(np.exp(-0.5 * (away / _SPREAD) ** 2).astype(np.float32))
        lesson.radii.append(radii)
    return lesson


def _map_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the cross entropy of a map, weighted by how wrong it is; cells that are not said do not count."""
    said, wanted = ~wanted.isnan(), wanted.nan_to_num()
    wrong = (wanted - torch.sigmoid(logits)).abs().detach()
    weight = torch.where(wanted > 0.5, 4.0, 1.0) * wrong + 0.02
    loss = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (loss * weight * said).sum() / (8 * len(wanted))


def train(lesson: Lesson, *, epochs: float) -> AnatomyNetwork:
    """Train the network; the same lesson gives the same weights on the same machine."""
    torch.manual_seed(0)
    network = AnatomyNetwork()
    network.head.bias = nn.Parameter(torch.tensor([-4.0, -4.0, -1.9]))
    images = np.stack(lesson.pixels)
    maps = [torch.from_numpy(np.stack(one)) for one in (lesson.discs, lesson.foveas, lesson.radii)]
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LR, weight_decay=1e-3)
    steps, began = round(epochs * len(images) / _BATCH), time.perf_counter()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, steps, pct_start=0.1)
    for step, chosen in enumerate(_batches(len(images), steps)):
        flip = [-1] if step % 2 else []
        disc, fovea, radius = (one[chosen].flip(flip) for one in maps)
        out = network(relative_colour(images[chosen]).flip(flip))
        said = ~radius.isnan()
        off = ((out[:, 2] - radius.nan_to_num()).abs() * said).sum() / said.sum().clamp(min=1)
        loss = _map_loss(out[:, 0], disc) + 0.4 * _map_loss(out[:, 1], fovea) + 0.3 * off
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        if step % 60 == 59:
            print(
                f"{step + 1} of {steps} steps, loss {float(loss.detach()):.3f}, {time.perf_counter() - began:.0f} s",
                flush=True,
            )
    return network


def _batches(number: int, steps: int) -> Iterator[NDArray[np.int64]]:
    for step in range(steps):
        yield keyed_generator(_SEED, "anatomy.batch", index=step).integers(0, number, _BATCH)


def main() -> None:
    """Draw, train, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wide", type=int, default=3000, help="drawn eyes of variety wide")
    parser.add_argument("--demo", type=int, default=1000, help="drawn eyes of variety demo")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=7)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    drawn = [draw_eyes(given.wide, "wide"), draw_eyes(given.demo, "demo")]
    eyes = Drawn(*(np.concatenate([getattr(one, name.name) for one in drawn]) for name in fields(Drawn)))
    lesson = prepare(eyes, repeats=given.repeats)
    print(f"{len(lesson.pixels):,} images of {len(eyes.pixels):,} drawn eyes", flush=True)
    save_file(train(lesson, epochs=given.epochs).state_dict(), given.out)
    print(f"{given.out}: {given.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
