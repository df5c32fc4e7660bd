from __future__ import annotations

import math
from collections import Counter, defaultdict
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from synfundus.errors import ConfigError
from synfundus.labels.schema import DISEASES, READABLE
from synfundus.phantoms.camera import Camera, camera_of
from synfundus.phantoms.clinic import (
    Exam,
    exam_of,
    recorded_labels_of,
    true_labels_of,
)
from synfundus.phantoms.draw import LABEL_NAMES, SMALLEST_SIZE_PX, Phantom, PhantomTruth, draw_exam, draw_phantom
from synfundus.phantoms.scene import anatomy_of
from synfundus.phantoms.vessels import vessel_tree

SEED = 11
SIZE = 128
WITH_TEXT = 2  # a photograph with a name in its margin
HEALTHY = {name: int(name in READABLE) for name in LABEL_NAMES}
Pixels = NDArray[np.uint8]


def photograph(index: int, size: int = SIZE) -> Phantom:
    return draw_phantom(seed=SEED, index=index, image_size_px=size)


def camera_at(index: int) -> Camera:
    exam = exam_of(SEED, index)
    return camera_of(SEED, exam, anatomy_of(SEED, exam), disc_readable=True, image_size_px=SIZE)


@lru_cache(maxsize=1)
def label_rows() -> NDArray[np.int64]:
    return np.array([list(true_labels_of(SEED, exam_of(SEED, index)).values()) for index in range(6000)])


@lru_cache(maxsize=64)
def drawn(eye: int, changes: tuple[tuple[str, int], ...]) -> tuple[Pixels, PhantomTruth]:
    """One of a few eyes, healthy but for the changes."""
    exam = Exam(index=1000 + eye, patient=500 + eye, visit=0, eye_side=eye % 2)
    labels = {**HEALTHY, "eye_side": eye % 2, **dict(changes)}
    return draw_exam(seed=SEED, exam=exam, labels=labels, image_size_px=SIZE)


def distance_from(x: float, y: float) -> NDArray[np.float64]:
    centers = np.arange(SIZE) + 0.5
    distance: NDArray[np.float64] = np.hypot(centers[None, :] - x, centers[:, None] - y)
    return distance


def visible_field(truth: PhantomTruth, *, grow: float) -> NDArray[np.bool_]:
    rows = np.abs(np.arange(SIZE) + 0.5 - truth.center_y_px)[:, None]
    circle = distance_from(truth.center_x_px, truth.center_y_px) < truth.radius_px + grow
    visible: NDArray[np.bool_] = circle & (rows < truth.cut_half_height_px + grow)
    return visible


def difference(eye: int, *changes: tuple[str, int]) -> tuple[NDArray[np.float64], PhantomTruth]:
    """Greatest channel difference ``[h, w]`` between the healthy eye and the changed one."""
    base, _ = drawn(eye, ())
    other, truth = drawn(eye, changes)
    return np.abs(base.astype(float) - other.astype(float)).max(axis=-1), truth


# --- determinism ------------------------------------------------------------------------------------------


def test_same_arguments_give_the_same_bytes_in_any_order() -> None:
    wanted = [0, 7, 3, 40]
    first = {index: photograph(index, 64).pixels.tobytes() for index in wanted}
    vessel_tree.cache_clear()
    again = {index: photograph(index, 64).pixels.tobytes() for index in reversed(wanted)}
    assert first == again
    assert len(set(first.values())) == len(wanted)


def test_another_seed_is_another_clinic() -> None:
    ours, theirs = (draw_phantom(seed=seed, index=5, image_size_px=64).pixels for seed in (1, 2))
    assert np.abs(ours.astype(int) - theirs).mean() > 5


def test_far_indices_need_no_earlier_ones() -> None:
    far = photograph(10**12 + 5, 64)
    assert far.pixels.max() > 20
    assert far.patient_id == f"P{exam_of(SEED, 10**12 + 5).patient:06d}"


# --- patients, eyes, visits -------------------------------------------------------------------------------


def test_patients_have_two_eyes_and_one_to_three_visits_in_one_stretch() -> None:
    exams = [exam_of(SEED, index) for index in range(1200)]
    patients = [exam.patient for exam in exams]
    assert patients == sorted(patients)
    assert sorted(set(patients)) == list(range(300))
    by_patient = defaultdict(list)
    for exam in exams:
        by_patient[exam.patient].append((exam.visit, exam.eye_side))
    for seen in by_patient.values():
        assert seen == [(visit, side) for visit in range(len(seen) // 2) for side in (0, 1)]
    assert set(Counter(len(seen) for seen in by_patient.values())) == {2, 4, 6}


def test_an_eye_keeps_its_anatomy_from_visit_to_visit_but_not_its_pose() -> None:
    first, second = (Exam(index=30 + 2 * visit, patient=9, visit=visit, eye_side=0) for visit in (0, 1))
    assert anatomy_of(SEED, first) == anatomy_of(SEED, second)
    poses = [
        camera_of(SEED, exam, anatomy_of(SEED, exam), disc_readable=True, image_size_px=SIZE).view
        for exam in (first, second)
    ]
    assert poses[0] != poses[1]


def test_two_eyes_of_a_patient_are_alike_but_not_mirror_copies() -> None:
    right, left = (anatomy_of(SEED, Exam(index=30, patient=9, visit=0, eye_side=side)) for side in (0, 1))
    stranger = anatomy_of(SEED, Exam(index=33, patient=10, visit=0, eye_side=0))
    assert right.pigmentation == left.pigmentation
    assert right.pigmentation != stranger.pigmentation
    assert right.fovea_center != left.fovea_center
    trees = [vessel_tree(SEED, 9, eye, anatomy)[0].points for eye, anatomy in ((18, right), (19, left))]
    trees.append(vessel_tree(SEED, 10, 20, stranger)[0].points)
    between_eyes = np.hypot(*np.moveaxis(trees[0] - trees[1], -1, 0)).mean()
    between_patients = np.hypot(*np.moveaxis(trees[0] - trees[2], -1, 0)).mean()
    assert 0.005 < between_eyes < between_patients


def test_diseases_never_get_better_and_readability_comes_and_goes() -> None:
    history: dict[tuple[int, int], list[dict[str, int]]] = defaultdict(list)
    for index in range(2400):
        exam = exam_of(SEED, index)
        history[exam.patient, exam.eye_side].append(true_labels_of(SEED, exam))
    steps = [(a, b) for visits in history.values() for a, b in pairwise(visits)]
    for name in DISEASES:
        assert all(after[name] >= before[name] for before, after in steps), name
    assert any(after["dr_grade"] > before["dr_grade"] for before, after in steps)
    assert any(after["is_fundus"] > before["is_fundus"] for before, after in steps)


# --- labels -----------------------------------------------------------------------------------------------


def test_labels_are_the_sixteen_of_the_schema() -> None:
    phantom = photograph(0, 64)
    assert len(LABEL_NAMES) == 16
    assert tuple(phantom.labels) == tuple(phantom.true_labels) == LABEL_NAMES


def test_grades_and_diseases_are_as_frequent_as_intended() -> None:
    rows = label_rows()
    grades = np.bincount(rows[:, 0], minlength=5) / len(rows)
    np.testing.assert_allclose(grades, [0.56, 0.11, 0.15, 0.09, 0.09], atol=0.03)
    share = dict(zip(LABEL_NAMES, rows.mean(axis=0), strict=True))
    for name in DISEASES[1:]:
        assert 0.035 < share[name] < 0.17, name
    for name in READABLE:
        assert 0.04 < 1 - share[name] < 0.105, name
    assert share["eye_side"] == pytest.approx(0.5)


def test_label_combinations_are_plausible() -> None:
    column = {name: label_rows()[:, k] for k, name in enumerate(LABEL_NAMES)}
    assert column["dr_grade"][column["is_dme"] == 1].min() >= 2
    assert np.corrcoef(column["is_pm"], column["is_dm"])[0, 1] > 0.08
    assert column["is_macular_readable"][column["is_fundus"] == 0].max() == 0
    healthy = (label_rows()[:, :11].sum(axis=1) == 0).mean()
    assert 0.25 < healthy < 0.45


def test_about_one_label_in_twenty_is_unknown_and_the_others_are_true() -> None:
    unknown: Counter[str] = Counter()
    readable = 0
    for index in range(3000):
        exam = exam_of(SEED, index)
        truth = true_labels_of(SEED, exam)
        table = recorded_labels_of(SEED, exam, truth)
        assert all(value in (None, truth[name]) for name, value in table.items())
        if truth["is_fundus"]:
            readable += 1
            unknown.update(name for name, value in table.items() if value is None)
    for name in LABEL_NAMES:
        assert 0.035 < unknown[name] / readable < 0.065, name


def test_of_a_photograph_that_shows_nothing_only_that_is_recorded() -> None:
    recorded: Counter[str] = Counter()
    unreadable = 0
    for index in range(3000):
        exam = exam_of(SEED, index)
        truth = true_labels_of(SEED, exam)
        if not truth["is_fundus"]:
            unreadable += 1
            table = recorded_labels_of(SEED, exam, truth)
            recorded.update(name for name, value in table.items() if value is not None)
    assert unreadable > 100
    assert set(recorded) == {name for name in LABEL_NAMES if name == "is_fundus" or name.endswith("_readable")}
    assert min(recorded.values()) > 0.85 * unreadable


# --- geometry ---------------------------------------------------------------------------------------------


def test_the_true_circle_is_the_bright_region() -> None:
    for eye in range(12):
        pixels, truth = drawn(eye, ())
        if truth.camera == "framed":
            continue
        level = pixels.max(axis=-1)
        assert (level[visible_field(truth, grow=-1.5)] > 25).mean() > 0.985  # the rest: a notch
        outside = level[~visible_field(truth, grow=1.5)]
        allowed = 0.0 if truth.burned_in_text is None else 0.25
        assert (outside > 3).mean() <= allowed
        assert 0.42 <= truth.radius_px / SIZE <= 0.49


def test_the_disc_lies_nasally_and_the_fovea_below_it() -> None:
    below = []
    for index in range(60):
        camera = camera_at(index)
        exam = exam_of(SEED, index)
        eye = anatomy_of(SEED, exam)
        disc, fovea = camera.view.to_pixels(np.array([eye.disc_center, eye.fovea_center]))
        assert (disc[0] > fovea[0]) == (exam.eye_side == 0)
        below.append(fovea[1] > disc[1])
    assert np.mean(below) > 0.8


def test_the_disc_is_brighter_and_the_fovea_darker_than_the_retina_between() -> None:
    for eye in range(6):
        pixels, truth = drawn(eye, ())
        green = pixels[..., 1].astype(float)
        inside = distance_from(truth.disc_x_px, truth.disc_y_px) < truth.disc_radius_px * 0.8
        disc = np.quantile(green[inside], 0.75)  # between the vessels, which cover nearly half of it
        from_fovea = distance_from(truth.fovea_x_px, truth.fovea_y_px)
        fovea = np.median(green[from_fovea < 3])
        around = np.median(green[(from_fovea > 12) & (from_fovea < 18)])
        assert disc > around + 15
        assert fovea < around - 3


def test_the_fovea_is_as_many_disc_diameters_away_as_in_people() -> None:
    eyes = [anatomy_of(SEED, exam_of(SEED, index)) for index in range(0, 2100, 7)]
    ratios = [math.dist(eye.disc_center, eye.fovea_center) / sum(eye.disc_axes) for eye in eyes]
    assert np.mean(ratios) == pytest.approx(2.65, abs=0.06)
    assert np.std(ratios) == pytest.approx(0.30, abs=0.04)


def test_all_kinds_of_camera_occur_as_often_as_intended() -> None:
    cameras = [camera_at(index) for index in range(1500)]
    kinds = Counter(camera.kind for camera in cameras)
    assert kinds["cut"] / 1500 == pytest.approx(0.20, abs=0.04)
    assert kinds["framed"] / 1500 == pytest.approx(0.08, abs=0.03)
    assert sum(camera.burned_in_text is not None for camera in cameras) / 1500 == pytest.approx(0.15, abs=0.04)


def test_burned_in_text_lies_in_the_margin_and_is_known() -> None:
    with_text = [i for i in range(80) if camera_at(i).burned_in_text is not None][:6]
    for index in with_text:
        phantom = photograph(index)
        outside = phantom.pixels.max(axis=-1)[~visible_field(phantom.truth, grow=2)]
        assert phantom.truth.burned_in_text
        assert (outside > 90).sum() > 12


def test_a_framed_slide_has_a_lighter_frame_inside_a_black_margin() -> None:
    index = next(i for i in range(200) if camera_at(i).kind == "framed" and camera_at(i).burned_in_text is None)
    phantom = photograph(index)
    frame = phantom.pixels[10, 10]
    assert phantom.truth.camera == "framed"
    assert phantom.pixels[:2].max() <= 3
    assert 12 <= frame.min() <= frame.max() <= 34


def test_the_margin_is_the_same_at_every_size() -> None:
    tones = []
    for size in (128, 256, 400):
        phantom = photograph(WITH_TEXT, size)
        assert phantom.truth.burned_in_text == photograph(WITH_TEXT).truth.burned_in_text
        centers = np.arange(size) + 0.5
        away = np.hypot(centers[None] - phantom.truth.center_x_px, centers[:, None] - phantom.truth.center_y_px)
        margin = phantom.pixels[away > phantom.truth.radius_px + 3].astype(float)
        brightest = margin[margin.sum(axis=-1).argmax()]
        tones.append(brightest / brightest.sum())
    np.testing.assert_allclose(tones[1:], [tones[0]] * 2, atol=0.03)


# --- every label can be seen ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LABEL_NAMES if name not in ("dr_grade", "eye_side", "is_dme")])
def test_every_label_changes_the_picture_inside_the_field_and_nowhere_else(name: str) -> None:
    for eye in range(4):
        changed, truth = difference(eye, (name, 1 - HEALTHY[name]))
        inside = visible_field(truth, grow=1.5)
        assert (changed[inside] > 12).sum() > 40, f"eye {eye}"
        assert changed[~inside].max() <= 1, f"eye {eye}"


def test_macular_edema_is_seen_on_top_of_retinopathy() -> None:
    for eye in range(4):
        base, truth = drawn(eye, (("dr_grade", 2),))
        other, _ = drawn(eye, (("dr_grade", 2), ("is_dme", 1)))
        changed = np.abs(base.astype(float) - other).max(axis=-1) > 12
        near = distance_from(truth.fovea_x_px, truth.fovea_y_px) < 0.45 * truth.radius_px
        assert (changed & near).sum() > 40
        assert (changed & near).sum() > 0.9 * changed.sum()


def test_each_grade_of_retinopathy_shows_more_than_the_one_before() -> None:
    areas = []
    for grade in (1, 2, 3, 4):
        areas.append(np.mean([(difference(eye, ("dr_grade", grade))[0] > 12).sum() for eye in range(4)]))
    assert areas[0] > 15
    assert areas[1] > 2 * areas[0]
    assert areas[2] > 1.5 * areas[1]
    assert areas[3] > areas[1]


def test_the_proliferative_grade_shows_a_large_preretinal_haemorrhage() -> None:
    for eye in range(4):
        severe, _ = drawn(eye, (("dr_grade", 3),))
        proliferative, truth = drawn(eye, (("dr_grade", 4),))
        dark = [
            ((pixels[..., 1] < 24) & (pixels[..., 0] > 40) & visible_field(truth, grow=-4)).sum()
            for pixels in (severe, proliferative)
        ]
        assert dark[1] > dark[0] + 25


@pytest.mark.parametrize("name", ["is_amd", "is_em", "is_macular_readable"])
def test_macular_signs_lie_at_the_macula(name: str) -> None:
    for eye in range(3):
        changed, truth = difference(eye, (name, 1 - HEALTHY[name]))
        near = distance_from(truth.fovea_x_px, truth.fovea_y_px) < 0.6 * truth.radius_px
        assert changed[near].sum() > 0.6 * changed.sum()


def test_an_anomaly_of_the_optic_nerve_lies_at_the_disc() -> None:
    for eye in range(3):
        changed, truth = difference(eye, ("is_aon", 1))
        near = distance_from(truth.disc_x_px, truth.disc_y_px) < 2.2 * truth.disc_radius_px
        assert (changed[near] > 12).sum() > 0.6 * (changed > 12).sum()


def test_glaucoma_brightens_the_disc_and_darkens_wedges_that_start_there() -> None:
    for eye in range(3):
        (healthy, truth), (glaucoma, _) = drawn(eye, ()), drawn(eye, (("is_gc", 1),))
        change = glaucoma[..., 1].astype(float) - healthy[..., 1].astype(float)
        away = distance_from(truth.disc_x_px, truth.disc_y_px) / truth.disc_radius_px
        assert (change[away < 2.6] > 12).sum() > 0.9 * (change > 12).sum()
        wedges = (change < -5) & (away > 2.0)
        assert wedges.sum() > 40
        assert away[wedges].max() < 11


def test_glaucoma_enlarges_the_bright_cup() -> None:
    for eye in range(4):
        (healthy, truth), (cupped, _) = drawn(eye, ()), drawn(eye, (("is_gc", 1),))
        disc = distance_from(truth.disc_x_px, truth.disc_y_px) < truth.disc_radius_px
        limit = np.quantile(healthy[..., 2][disc], 0.9)
        assert (cupped[..., 2][disc] > limit).mean() > 0.2


def test_vein_occlusion_bleeds_in_a_sector() -> None:
    one_sided = 0
    for eye in range(8):
        changed, truth = difference(eye, ("is_rvo", 1))
        rows = np.arange(SIZE) + 0.5
        above, below = changed[rows < truth.disc_y_px].sum(), changed[rows >= truth.disc_y_px].sum()
        one_sided += max(above, below) > 2.5 * min(above, below)
    assert one_sided >= 4  # the others are occlusions of the central vein or overlap the midline


def test_a_photograph_that_is_no_fundus_loses_its_vessels() -> None:
    for eye in range(6):
        (good, truth), (bad, _) = drawn(eye, ()), drawn(eye, (("is_fundus", 0),))
        inside = visible_field(truth, grow=-4)
        detail = [
            np.abs(np.diff(pixels[..., 1].astype(float), axis=1))[inside[:, 1:] & inside[:, :-1]].mean()
            for pixels in (good, bad)
        ]
        assert detail[1] < 0.7 * detail[0]


def test_lesions_of_an_earlier_visit_are_still_there_at_the_next() -> None:
    pictures = []
    for visit, grade in ((0, 0), (0, 3), (2, 0), (2, 3)):
        # The same index keeps camera and noise: only time passes.
        exam = Exam(index=1000, patient=500, visit=visit, eye_side=0)
        labels = {**HEALTHY, "dr_grade": grade}
        pictures.append(draw_exam(seed=SEED, exam=exam, labels=labels, image_size_px=SIZE)[0].astype(float))
    early = np.abs(pictures[1] - pictures[0]).max(axis=-1) > 30
    late = np.abs(pictures[3] - pictures[2]).max(axis=-1) > 30
    assert (early & late).sum() > 0.9 * early.sum()
    assert late.sum() > 1.1 * early.sum()


# --- pixels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 101, 256, 512])
def test_any_size_shows_the_same_scene(size: int) -> None:
    small, large = photograph(WITH_TEXT, 128), photograph(WITH_TEXT, size)
    assert large.pixels.shape == (size, size, 3)
    assert large.pixels.dtype == np.uint8
    assert large.truth.radius_px / size == pytest.approx(small.truth.radius_px / 128)
    assert large.truth.disc_x_px / size == pytest.approx(small.truth.disc_x_px / 128)
    if size % 128 == 0:
        shrunk = large.pixels.reshape(128, size // 128, 128, size // 128, 3).mean(axis=(1, 3))
        assert np.corrcoef(shrunk.ravel(), small.pixels.astype(float).ravel())[0, 1] > 0.985


def test_sensor_noise_is_low_enough_to_compress() -> None:
    pixels, truth = drawn(0, (("is_fundus", 0),))
    inside = visible_field(truth, grow=-6)
    residual = np.diff(pixels[..., 1].astype(float), n=2, axis=1) / np.sqrt(6)
    noise = np.median(np.abs(residual[inside[:, 1:-1]])) * 1.4826
    assert 0.3 < noise < 2.5


def test_clinic_shows_many_fundus_colours() -> None:
    colors = np.array([anatomy_of(SEED, exam_of(SEED, 12 * block)).pigmentation for block in range(60)])
    assert colors.std(axis=0).min() > 0.04
    assert (colors[:, 0] > colors[:, 1]).all()
    assert (colors[:, 1] > colors[:, 2]).all()


def test_a_negative_index_or_a_tiny_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="negative"):
        photograph(-1)
    with pytest.raises(ConfigError, match="too small"):
        photograph(0, 32)


def test_signs_that_fall_outside_a_small_frame_are_left_out() -> None:
    # an occlusion whose cotton-wool spots all lie beyond the frame once made an empty outline list
    for index in range(400):
        draw_phantom(seed=7, index=index, image_size_px=SMALLEST_SIZE_PX)
