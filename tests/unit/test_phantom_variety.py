"""Phantoms of variety ``wide``: reproducible, as different as intended, and their labels can be seen."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from synfundus.labels.schema import READABLE
from synfundus.phantoms.clinic import LABEL_NAMES, Exam, exam_of
from synfundus.phantoms.draw import PhantomTruth, draw_exam, draw_phantom
from synfundus.phantoms.scene import EyeAnatomy, anatomy_of
from synfundus.phantoms.tissue import Tissue
from synfundus.phantoms.wide import capture
from synfundus.phantoms.wide.capture import Capture, capture_of
from synfundus.phantoms.wide.eyes import tissue_of, widened_eye
from synfundus.phantoms.wide.tree import fine_vessel_tree
from synfundus.photographs.field_of_view import find_field_of_view

SEED = 11
HEALTHY = {name: int(name in READABLE) for name in LABEL_NAMES}
Pixels = NDArray[np.uint8]


def exam_number(eye: int) -> Exam:
    return Exam(index=1000 + eye, patient=500 + eye, visit=0, eye_side=eye % 2)


def eye_number(number: int) -> EyeAnatomy:
    return widened_eye(SEED, exam_number(number), anatomy_of(SEED, exam_number(number)))


def tissue_number(number: int) -> Tissue:
    return tissue_of(SEED, exam_number(number), eye_number(number))


@lru_cache(maxsize=1)
def captures() -> list[Capture]:
    return [capture_of(SEED, exam_number(number)) for number in range(400)]


@lru_cache(maxsize=128)
def drawn(eye: int, changes: tuple[tuple[str, int], ...] = (), size: int = 128) -> tuple[Pixels, PhantomTruth]:
    labels = {**HEALTHY, "eye_side": eye % 2, **dict(changes)}
    return draw_exam(seed=SEED, exam=exam_number(eye), labels=labels, image_size_px=size, variety="wide")


def away(truth: PhantomTruth, size: int) -> NDArray[np.float64]:
    """Distance ``[h, w]`` from the centre of the field, in radii."""
    at = np.arange(size) + 0.5
    distance: NDArray[np.float64] = np.hypot(at[None] - truth.center_x_px, at[:, None] - truth.center_y_px)
    return distance / truth.radius_px


def in_field(truth: PhantomTruth, size: int) -> NDArray[np.bool_]:
    rows = np.abs(np.arange(size) + 0.5 - truth.center_y_px)[:, None]
    inside: NDArray[np.bool_] = (away(truth, size) < 0.95) & (rows < truth.cut_half_height_px - 2)
    return inside


def spread(values: list[float]) -> tuple[float, float]:
    low, high = np.percentile(values, [3, 97])
    return float(low), float(high)


def test_same_arguments_give_the_same_bytes_in_any_order() -> None:
    first = {i: draw_phantom(seed=1, index=i, image_size_px=64, variety="wide").pixels.tobytes() for i in (0, 7, 30)}
    fine_vessel_tree.cache_clear()
    again = {i: draw_phantom(seed=1, index=i, image_size_px=64, variety="wide").pixels.tobytes() for i in (30, 7, 0)}
    assert first == again
    assert len(set(first.values())) == 3


def test_the_varieties_share_patients_and_labels_but_no_picture() -> None:
    for index in range(4):
        demo, wide = (
            draw_phantom(seed=1, index=index, image_size_px=64, variety=variety) for variety in ("demo", "wide")
        )
        assert (demo.labels, demo.true_labels, demo.patient_id) == (wide.labels, wide.true_labels, wide.patient_id)
        assert np.abs(demo.pixels.astype(int) - wide.pixels).mean() > 3


def test_an_eye_keeps_its_tissues_and_every_photograph_has_its_own_light() -> None:
    first, second = (Exam(index=30 + 2 * visit, patient=9, visit=visit, eye_side=0) for visit in (0, 1))
    eyes = [widened_eye(SEED, exam, anatomy_of(SEED, exam)) for exam in (first, second)]
    assert eyes[0] == eyes[1]
    assert tissue_of(SEED, first, eyes[0]) == tissue_of(SEED, second, eyes[1])
    assert capture_of(SEED, first) != capture_of(SEED, second)


def test_the_disc_is_as_large_as_in_people() -> None:
    ratios, angles = [], []
    for number in range(400):
        eye = eye_number(number)
        ratios.append(math.dist(eye.disc_center, eye.fovea_center) / sum(eye.disc_axes))
        angles.append(
            math.degrees(math.atan2(eye.fovea_center[1] - eye.disc_center[1], eye.disc_center[0] - eye.fovea_center[0]))
        )
    assert np.mean(ratios) == pytest.approx(2.65, abs=0.06)
    assert np.std(ratios) == pytest.approx(0.30, abs=0.06)
    assert np.mean(angles) == pytest.approx(6.5, abs=1.0)


def test_disc_and_fovea_lie_in_the_field_at_any_angle_of_view() -> None:
    sizes = []
    for eye in range(60):
        _, truth = drawn(eye, size=64)
        sizes.append(2 * truth.disc_radius_px / truth.radius_px)
        for x, y in ((truth.disc_x_px, truth.disc_y_px), (truth.fovea_x_px, truth.fovea_y_px)):
            assert math.hypot(x - truth.center_x_px, y - truth.center_y_px) < truth.radius_px
    assert max(sizes) > 1.8 * min(sizes)  # fields of 30 to 60 degrees


def test_vessels_range_from_barely_visible_to_strong() -> None:
    low, high = spread([tissue_number(number).venous[1] for number in range(300)])
    assert low < 0.26
    assert high > 1.05


def test_strong_blood_makes_dark_vessels_in_the_picture() -> None:
    seen, strength = [], []
    for number in range(0, 60, 2):
        pixels, truth = drawn(number, size=128)
        green = pixels[..., 1].astype(float)[in_field(truth, 128) & (away(truth, 128) < 0.85)]
        seen.append((np.median(green) - np.percentile(green, 8)) / np.median(green))
        strength.append(tissue_number(number).venous[1])
    assert np.corrcoef(seen, strength)[0, 1] > 0.25


def test_most_photographs_are_clear_and_some_hazy_blurred_noisy_or_compressed() -> None:
    taken = captures()
    assert 0.1 < np.mean([shot.veil > 0.08 for shot in taken]) < 0.4
    assert 0.1 < np.mean([shot.blur > 0.004 for shot in taken]) < 0.3
    assert 0.02 < np.mean([shot.motion != (0.0, 0.0) for shot in taken]) < 0.12
    low, high = spread([shot.noise for shot in taken])
    assert low < 0.5
    assert high > 2.8
    assert min(shot.quality for shot in taken if shot.quality is not None) < 62
    low, high = spread([shot.gain for shot in taken])
    assert low < 0.75
    assert high > 1.2


def test_colours_span_those_of_real_photographs() -> None:
    """Their 5th and 95th percentiles in a public set of one camera lie within the phantoms' range."""
    colors = []
    for eye in range(70):
        pixels, truth = drawn(eye, size=64)
        colors.append(pixels[in_field(truth, 64)].astype(float).mean(axis=0))
    red, green, blue = np.array(colors).T
    for values, low, high in ((red, 118, 206), (green, 44, 110), (green / red, 0.36, 0.58), (blue / green, 0.05, 0.66)):
        assert values.min() < low
        assert values.max() > high


@pytest.mark.parametrize(("setting", "value"), [("blur", 0.02), ("veil", 0.6), ("motion", (0.05, 0.0))])
def test_blur_haze_and_shake_cost_detail(setting: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    detail = {}
    for kind, changes in (("clear", {}), ("spoiled", {setting: value})):
        shot = {"blur": 0.002, "veil": 0.0, "scatter": 0.0, "motion": (0.0, 0.0), "noise": 0.1, **changes}
        monkeypatch.setattr(
            capture, "capture_of", lambda seed, exam, shot=shot: replace(capture_of(seed, exam), **shot)
        )
        differences = []
        for eye in range(4):
            pixels, truth = draw_exam(
                seed=SEED, exam=exam_number(eye), labels=HEALTHY, image_size_px=128, variety="wide"
            )
            green, inside = pixels[..., 1].astype(float), in_field(truth, 128)
            differences.append(np.diff(green, axis=1)[inside[:, 1:]].std() / green[inside].mean())
        detail[kind] = np.mean(differences)
    assert detail["spoiled"] < 0.75 * detail["clear"]


@pytest.mark.parametrize("name", [name for name in LABEL_NAMES if name not in ("dr_grade", "eye_side", "is_dme")])
def test_every_label_changes_the_picture_inside_the_field(name: str) -> None:
    areas = []
    for eye in range(6):
        base, truth = drawn(eye)
        other, _ = drawn(eye, ((name, 1 - HEALTHY[name]),))
        changed = np.abs(base.astype(float) - other).max(axis=-1)
        areas.append(int((changed[in_field(truth, 128)] > 10).sum()))
        assert changed[away(truth, 128) > 1.2].max(initial=0) <= 1, eye  # blocks of compression reach a little beyond
    assert np.median(areas) > 40
    assert min(areas) > 0


def test_each_grade_of_retinopathy_shows_more_than_the_one_before() -> None:
    areas = []
    for grade in (1, 2, 3):
        pairs = [(drawn(eye)[0].astype(float), drawn(eye, (("dr_grade", grade),))[0]) for eye in range(6)]
        areas.append(np.mean([(np.abs(base - other).max(axis=-1) > 12).sum() for base, other in pairs]))
    assert areas[0] > 10
    assert areas[1] > 1.8 * areas[0]
    assert areas[2] > 1.4 * areas[1]


def test_the_rim_is_no_redder_than_the_retina_beside_it() -> None:
    """Green by red at the edge, over the same inside: 1.0 to 1.1 in photographs, .4 to .9 in the red ring of `demo`."""
    ratios = []
    for eye in range(12):
        pixels, truth = drawn(eye, size=256)
        uncut = np.abs(np.arange(256) + 0.5 - truth.center_y_px)[:, None] < 0.6 * truth.radius_px
        distance = np.where(uncut, away(truth, 256), np.inf)
        edge, inside = (
            np.median(pixels[(distance > low) & (distance < high)], axis=0) for low, high in ((0.99, 1), (0.93, 0.97))
        )
        ratios.append((edge[1] / max(edge[0], 1)) / (inside[1] / max(inside[0], 1)))
    assert min(ratios) > 0.97


def test_the_field_of_every_readable_photograph_is_found() -> None:
    for eye in range(16):
        pixels, truth = drawn(eye)
        circle = find_field_of_view(pixels)
        assert circle.radius_px == pytest.approx(truth.radius_px, rel=0.06)


@pytest.mark.parametrize("size", [101, 256])
def test_any_size_shows_the_same_scene(size: int) -> None:
    small, large = drawn(3)[1], drawn(3, size=size)[1]
    assert large.disc_x_px / size == pytest.approx(small.disc_x_px / 128)
    if size % 128 == 0:
        step = size // 128
        shrunk = drawn(3, size=size)[0].reshape(128, step, 128, step, 3).mean(axis=(1, 3))
        assert np.corrcoef(shrunk.ravel(), drawn(3)[0].astype(float).ravel())[0, 1] > 0.97


def test_far_indices_need_no_earlier_ones() -> None:
    far = draw_phantom(seed=SEED, index=10**12 + 5, image_size_px=64, variety="wide")
    assert far.patient_id == f"P{exam_of(SEED, 10**12 + 5).patient:06d}"
    assert far.pixels.max() > 20
