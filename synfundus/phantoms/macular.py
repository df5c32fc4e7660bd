"""Lesions of macula and choroid: drusen, atrophy, epiretinal membrane, chorioretinal scars."""

from __future__ import annotations

import math

import numpy as np

from synfundus.phantoms.canvas import Rgb, absorb, blend, blob_outlines, gaussian, smoothstep
from synfundus.phantoms.scene import Scene

_PIGMENT: Rgb = (1.5, 1.7, 1.5)


def paint_macular_degeneration(scene: Scene) -> None:
    """Paint soft drusen around the fovea, and in some eyes a pale patch of geographic atrophy."""
    if not scene.has("is_amd"):
        return
    stream = scene.eye_stream("drusen")
    count = scene.grown(44)
    angle = stream.uniform(0, 2 * math.pi, 60)[:count]
    reach = 0.29 * stream.uniform(0.01, 1, 60)[:count] ** 0.75
    places = np.array(scene.eye.fovea_center) + np.stack([np.cos(angle), np.sin(angle)], axis=-1) * reach[:, None]
    radii = 0.011 + 0.030 * stream.uniform(0, 1, 60)[:count] ** 1.6
    is_geographic = stream.random() < 0.4
    size = stream.uniform(0.12, 0.17) * (1 + 0.08 * scene.exam.visit)
    shape = scene.view.noise(stream, cells=26) * np.float32(0.30)
    spots = np.array(scene.eye.fovea_center) + stream.normal(0, 0.07, (5, 2))
    drusen = blob_outlines(stream, places, radii, raggedness=0.12, corners=12)
    blend(scene.image, scene.cover(drusen, 0.85, blur=0.008), (0.98, 0.82, 0.48))
    if is_geographic:
        distance = np.hypot(*scene.offsets(scene.eye.fovea_center))
        patch = smoothstep(1.08, 0.92, distance * np.float32(1 / size) + shape)
        blend(scene.image, patch * np.float32(0.72), (0.97, 0.74, 0.48))
    stream = scene.eye_stream("clumps")
    clumps = blob_outlines(stream, spots, stream.uniform(0.008, 0.02, 5), raggedness=0.4)
    absorb(scene.image, [(scene.cover(clumps, 0.6, blur=0.004), _PIGMENT)])


def paint_myopic_atrophy(scene: Scene) -> None:
    """Paint the pale patches of pathologic myopia beside the macula."""
    if not scene.has("is_pm"):
        return
    stream = scene.eye_stream("myopic")
    fovea = np.array(scene.eye.fovea_center)
    turn = stream.uniform(0, 2 * math.pi)
    angle = turn + np.array([0.0, 1.1, 2.9])
    reach = np.array([0.16, 0.30, 0.34])
    places = fovea + np.stack([np.cos(angle), np.sin(angle)], axis=-1) * reach[:, None]
    radii = np.array([0.10, 0.055, 0.05]) * stream.uniform(0.8, 1.2, 3) * (1 + 0.08 * scene.exam.visit)
    patches = blob_outlines(stream, places, radii, raggedness=0.3, corners=24)
    blend(scene.image, scene.cover(patches, 0.85, blur=0.008), (0.96, 0.86, 0.64))
    spots = places[0] + stream.normal(0, 0.06, (4, 2))
    clumps = blob_outlines(stream, spots, stream.uniform(0.010, 0.02, 4), raggedness=0.4)
    absorb(scene.image, [(scene.cover(clumps, 0.6, blur=0.004), _PIGMENT)])


def paint_chorioretinal_scars(scene: Scene) -> None:
    """Paint pale, sharply bordered scars with black pigment in the mid-periphery."""
    if not scene.has("is_crp"):
        return
    stream, limit = scene.eye_stream("scars"), 14
    count = scene.grown(8)
    angle = stream.uniform(0, 2 * math.pi) + np.arange(limit) * 2.4 + stream.normal(0, 0.35, limit)
    reach = stream.uniform(0.50, 0.84, limit)
    places = (np.stack([np.cos(angle), np.sin(angle)], axis=-1) * reach[:, None])[:count]
    radii = stream.uniform(0.030, 0.095, limit)[:count]
    border, spot = stream.uniform(0.05, 0.65, limit)[:count], stream.uniform(0.15, 0.5, limit)[:count]
    inner = places + (stream.normal(0, 0.5, (limit, 2)))[:count] * radii[:, None]
    stretch, turn = stream.uniform(1, 1.6, limit)[:count], stream.uniform(0, math.pi, limit)[:count]
    shape = blob_outlines(stream, places, radii, raggedness=0.42, stretch=stretch, angles=turn, corners=24)
    dark = scene.mask()
    middle = places[:, None, :]
    dark.polygons(middle + (shape - middle) * 1.18, border)
    dark.polygons(middle + (shape - middle) * 0.90, 0.0)
    spots = scene.eye_stream("scars.pigment")
    dark.polygons(blob_outlines(spots, inner, radii * spot, raggedness=0.6, stretch=1.4, angles=turn), 0.9)
    blend(scene.image, scene.cover(shape, 0.85, blur=0.009), (0.96, 0.82, 0.58))
    absorb(scene.image, [(dark.finish(blur=0.009), _PIGMENT)])


def paint_epiretinal_membrane(scene: Scene) -> None:
    """Add a glistening membrane over the macula, with folds that fan out from beside the fovea."""
    if not scene.has("is_em"):
        return
    stream = scene.eye_stream("membrane")
    fovea = scene.eye.fovea_center
    center = (fovea[0] + 0.05, fovea[1] - 0.03)
    outline, ripple = scene.view.noise(stream, cells=18), scene.view.noise(stream, cells=22)
    area = gaussian(scene.x, scene.y, center, 0.20) * (1 + outline * np.float32(0.35))
    turn = stream.uniform(0, math.pi)
    across, along = scene.offsets(center, turn)
    phase = across * np.float32(2 * math.pi / 0.115) / (1 + np.float32(1.6) * np.abs(along)) + ripple * np.float32(0.9)
    wave = np.sin(phase)
    crest = np.clip(wave, 0, 1) ** 3
    absorb(scene.image, [(np.clip(-wave, 0, 1) * area * np.float32(0.30), (0.7, 0.8, 0.6))])
    glint = np.clip(area * (np.float32(0.26) + np.float32(0.38) * crest), 0, 0.8)
    blend(scene.image, glint, (0.97, 0.93, 0.82))
