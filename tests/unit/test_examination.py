from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from synfundus.artifacts.model import noise_purpose
from synfundus.errors import DataError
from synfundus.evaluation.examination.ledger import Check, next_attempt, summarise
from synfundus.evaluation.examination.verdict import Examination, Expectation, Fault, examine, expectation
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, DISEASES, READABLE, LabelSchema, LabelSpec
from synfundus.phantoms.draw import draw_phantom
from synfundus.photographs.rim import Circle
from synfundus.photographs.transforms import crop_to_field_of_view
from synfundus.seeding import keyed_normal

Pixels = NDArray[np.uint8]
READABLE_ROW: dict[str, int | None] = dict.fromkeys(READABLE, 1)


@pytest.fixture(scope="module")
def eyes() -> list[tuple[Pixels, int]]:
    """Readable healthy phantoms at 128 px, and their side."""
    found: list[tuple[Pixels, int]] = []
    for index in range(1, 100, 3):
        drawn = draw_phantom(seed=7, index=index, image_size_px=144)
        labels, truth = drawn.true_labels, drawn.truth
        apart = abs(truth.disc_x_px - truth.center_x_px) > 0.3 * truth.radius_px
        if all(labels[name] for name in READABLE) and not any(labels[name] for name in DISEASES) and apart:
            circle = Circle(truth.center_x_px, truth.center_y_px, truth.radius_px)
            found.append((crop_to_field_of_view(drawn.pixels, circle, 128), labels["eye_side"]))
    return found[:6]


def looked(pixels: Pixels, **labels: int | None) -> tuple[Fault, ...]:
    return examine(pixels, READABLE_ROW | labels, DEFAULT_LABEL_SCHEMA).faults


def test_readable_eyes_pass_on_their_own_side_and_fail_on_the_other(eyes: list[tuple[Pixels, int]]) -> None:
    assert len(eyes) == 6
    assert [looked(pixels, eye_side=side) for pixels, side in eyes] == [()] * 6
    mirrored = [looked(np.ascontiguousarray(pixels[:, ::-1]), eye_side=side) for pixels, side in eyes]
    assert mirrored == [(Fault.WRONG_SIDE,)] * 6
    assert [looked(pixels[:, ::-1]) for pixels, _ in eyes] == [()] * 6  # no side was asked for


def test_mirrored_halves_have_two_discs(eyes: list[tuple[Pixels, int]]) -> None:
    rights = [pixels if side == 0 else pixels[:, ::-1] for pixels, side in eyes]
    both = [np.concatenate([own[:, :63:-1], own[:, 64:]], axis=1) for own in rights]
    assert [looked(pixels) for pixels in both] == [(Fault.SEVERAL_DISCS,)] * len(eyes)


def test_black_white_blurred_and_shifted_images_are_named(eyes: list[tuple[Pixels, int]]) -> None:
    pixels, _ = eyes[0]
    lit = pixels.max(axis=-1, keepdims=True) > 14
    soft = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(5))) * lit
    assert looked(np.zeros_like(pixels)) == (Fault.BLACK,)
    assert looked(pixels // 30) == (Fault.BLACK,)
    assert Fault.SATURATED in looked(np.asarray(lit * np.full_like(pixels, 255)))
    assert looked(soft) == (Fault.BLURRED,)
    assert set(looked(np.roll(pixels, 40, axis=1))) & {Fault.CROPPED, Fault.NO_FIELD}
    assert set(looked(np.ascontiguousarray(pixels[32:96, 32:96]))) & {Fault.CROPPED, Fault.NO_FIELD}


def test_what_was_asked_to_be_unreadable_may_be(eyes: list[tuple[Pixels, int]]) -> None:
    pixels, _ = eyes[0]
    soft = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(5)))
    soft = soft * (pixels.max(axis=-1, keepdims=True) > 14)
    assert looked(soft, is_fundus=0) == ()
    assert looked(np.zeros_like(pixels), is_fundus=0) == ()
    assert Fault.BLURRED not in looked(soft, is_macular_readable=0)


@pytest.mark.parametrize("size", [64, 256, 512])
def test_the_verdict_is_the_same_at_other_sizes(eyes: list[tuple[Pixels, int]], size: int) -> None:
    pixels, side = eyes[1]
    resized = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    assert looked(resized, eye_side=side) in ((), (Fault.BLURRED,) if size == 64 else ())
    figures = examine(resized, READABLE_ROW, DEFAULT_LABEL_SCHEMA).figures
    expected = examine(pixels, READABLE_ROW, DEFAULT_LABEL_SCHEMA).figures
    assert figures["disc_x"] == pytest.approx(expected["disc_x"], abs=0.07)


def test_figures_describe_the_anatomy(eyes: list[tuple[Pixels, int]]) -> None:
    distances = [
        examine(pixels, READABLE_ROW, DEFAULT_LABEL_SCHEMA).figures["fovea_distance_disc_diameters"]
        for pixels, _ in eyes
    ]
    assert all(1.4 < distance < 3.6 for distance in distances if distance is not None)
    assert any(distance is not None for distance in distances)


def test_pixels_of_another_kind_are_refused() -> None:
    for pixels in (np.zeros((128, 96, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)):
        with pytest.raises(DataError, match=r"to look at"):
            examine(pixels, {}, DEFAULT_LABEL_SCHEMA)


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({}, Expectation()),
        ({"eye_side": 0}, Expectation(side="right")),
        ({"eye_side": 1, "is_fundus": None}, Expectation(side="left")),
        ({"is_fundus": 0}, Expectation(readable=False, disc_visible=False, retina_visible=False)),
        ({"is_optic_disc_readable": 0}, Expectation(disc_visible=False, retina_visible=False)),
        ({"is_macular_readable": 0}, Expectation(retina_visible=False)),
    ],
)
def test_labels_say_what_to_expect(row: Mapping[str, int | None], asked: Expectation) -> None:
    assert expectation(row, DEFAULT_LABEL_SCHEMA) == asked


def test_names_of_values_say_which_side_was_asked_for() -> None:
    turned = LabelSchema((LabelSpec("eye_side", 2, values=("left", "right")),))
    assert expectation({"eye_side": 0}, turned).side == "left"
    assert expectation({"eye_side": 0}, LabelSchema((LabelSpec("is_gc", 2),))).side is None


def test_the_first_drawing_keeps_its_noise_and_redraws_have_their_own() -> None:
    assert noise_purpose(0) == "sample"
    drawn = [keyed_normal(3, noise_purpose(attempt), [17], (64,)) for attempt in range(4)]
    assert len({one.tobytes() for one in drawn}) == 4


def seen(*faults: Fault) -> Examination:
    return Examination(faults, {"sharpness": 0.02, "disc_x": None})


@given(st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_redraws_are_bounded(attempt: int, most: int, passed: bool) -> None:
    check = Check(4, attempt, 0, seen() if passed else seen(Fault.NO_DISC))
    following = next_attempt(check, most)
    assert following == (attempt + 1 if attempt < most and not passed else None)


def test_a_line_of_the_ledger_comes_back_and_damage_is_named() -> None:
    check = Check(9, 2, 5, seen(Fault.NO_DISC, Fault.BLURRED), ((Fault.BLACK,), (Fault.WRONG_SIDE,)))
    line = check.to_line()
    back = Check.from_line(line, where="checks.jsonl")
    assert dataclasses.asdict(back) == dataclasses.asdict(check)
    assert back.to_line() == line
    for damaged in (line[:-5], b"{}", b'{"image": "x"}', line.replace(b"blurred", b"blurry")):
        with pytest.raises(DataError, match=r"no line of checks"):
            Check.from_line(damaged, where="checks.jsonl")


def test_the_summary_counts_every_image_once() -> None:
    checks = [
        Check(2, 3, 0, seen(Fault.NO_DISC), ((Fault.BLACK,), (Fault.BLACK,), (Fault.BLURRED,))),
        Check(0, 0, 0, seen()),
        Check(1, 1, 0, seen(), ((Fault.WRONG_SIDE,),)),
    ]
    assert summarise(checks) == {
        "num_images": 3,
        "num_passed_at_once": 1,
        "num_redraws": 4,
        "num_failed": 1,
        "faults_at_first": {"black": 1, "wrong_eye_side": 1},
        "faults_left": {"no_optic_disc": 1},
    }
