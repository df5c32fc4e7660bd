"""Geometries of archives: accepted with the right circle and nothing foreign in the crop, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from field_kinds import (
    KINDS,
    Drawn,
    Sheet,
    draw_kind,
    fault_of,
    montage,
    mount_and_cut_disc,
    reflex,
    rounded_slide,
)
from fundus_discs import Disc, draw_disc
from PIL import Image, ImageDraw

from synfundus.photographs.decode import encode_image
from synfundus.photographs.field_of_view import Circle, FieldOfViewError, find_field_of_view
from synfundus.photographs.preparation import ENLARGED_FLAG, prepare_pixels
from synfundus.photographs.transforms import RIM_SHRINK, crop_to_field_of_view, has_few_levels

Kind = Callable[[np.random.Generator], Drawn]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_few_of_each_kind(kind: Kind) -> None:
    faults = {index: fault_of(draw_kind(kind, index)) for index in range(1000, 1003)}
    assert sum(fault is not None for fault in faults.values()) <= 1, faults


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_campaign_200_of_each_kind(kind: Kind) -> None:
    faults = {index: fault_of(draw_kind(kind, index)) for index in range(200)}
    wrong = {index: fault for index, fault in faults.items() if fault is not None}
    print(json.dumps({"name": f"geometry: {kind.__name__}", "passed": 200 - len(wrong), "of": 200}))
    assert len(wrong) <= 6, wrong


def test_a_name_in_a_band_at_a_cut_leaves_no_trace() -> None:
    for grey in (30, 90, 160, 255):
        clean = draw_disc(Disc(300, 300, 150, 150, 140), noise=0)
        clean[220:] = grey
        image = Image.fromarray(clean)
        ImageDraw.Draw(image).text((90, 232), "DOE JANE 1950-12-01", fill=(0, 0, 0) if grey > 100 else (255, 255, 255))
        written = np.asarray(image)
        circle = find_field_of_view(written)
        assert 216 <= circle.bottom_px <= 220
        crops = [crop_to_field_of_view(picture, circle, 128) for picture in (clean, written)]
        np.testing.assert_array_equal(crops[0], crops[1])
        assert not crops[0][round(128 * 212 / 280) :].any()


def test_text_beyond_a_tilted_cut_leaves_no_trace() -> None:
    sheet = Sheet.black(420, 560, np.random.default_rng(3))
    sheet.disc(280, 210, 200, cut=(9, 0.7, 9, 0.7), tilt=0.3)
    clean = sheet.light.astype(np.uint8)
    image = Image.fromarray(clean)
    ImageDraw.Draw(image).text((180, 355), "DOE JANE", fill=(255, 255, 255))
    written = np.asarray(image)
    circle = find_field_of_view(written)
    assert abs(circle.tilt - 0.3) < 0.05
    first, second = (crop_to_field_of_view(picture, circle, 128) for picture in (clean, written))
    np.testing.assert_array_equal(first, second)


def test_pixels_that_are_nearly_square_become_square() -> None:
    round_disc = draw_disc(Disc(300, 340, 170, 150, 130))
    squeezed = np.asarray(Image.fromarray(round_disc).resize((340, 282), Image.Resampling.LANCZOS))
    circle = find_field_of_view(squeezed)
    assert abs(circle.aspect - 0.94) < 0.01
    crops = [crop_to_field_of_view(picture, find_field_of_view(picture), 128) for picture in (round_disc, squeezed)]
    assert np.abs(crops[0].astype(int) - crops[1])[20:-20, 20:-20].mean() < 4


@pytest.mark.parametrize("shape", [(300, 200), (300, 225), (200, 300)], ids=str)
def test_the_refusal_of_a_squashed_disc_names_the_ratio(shape: tuple[int, int]) -> None:
    disc = Image.fromarray(draw_disc(Disc(300, 300, 150, 150, 140)))
    with pytest.raises(
        FieldOfViewError, match=rf"the rim is {shape[1] / shape[0]:.2f} times as high as wide"
    ) as caught:
        find_field_of_view(np.asarray(disc.resize(shape, Image.Resampling.LANCZOS)))
    assert caught.value.reason == "not_round"


@pytest.mark.parametrize("size", [64, 128, 256])
def test_the_rim_of_a_uniform_disc_keeps_its_level(size: int) -> None:
    """Black beside the disc would ring into it."""
    for radius in (70.0, 400.0):
        picture = np.zeros((900, 900, 3), dtype=np.uint8)
        y, x = np.mgrid[:900, :900] + 0.5
        picture[np.hypot(x - 450, y - 450) < radius] = 120
        cropped = crop_to_field_of_view(picture, Circle(450, 450, radius), size)
        grid = np.arange(size) + 0.5 - size / 2
        kept = np.hypot(grid, grid[:, None]) < RIM_SHRINK * size / 2
        assert set(cropped[kept].ravel().tolist()) == {120}


@pytest.mark.parametrize(("side", "flags"), [(100, (ENLARGED_FLAG,)), (300, ())])
def test_an_enlarged_photograph_is_flagged_and_its_diameter_known(side: int, flags: tuple[str, ...]) -> None:
    data = encode_image(draw_disc(Disc(side, side, side / 2, side / 2, 0.45 * side)), "png")
    prepared = prepare_pixels(data, image_size_px=256, max_pixels=10**6, burned_text="flag")
    assert prepared.flags == flags
    assert abs(prepared.diameter_px - 0.9 * side) <= 2


@pytest.mark.parametrize(
    ("radius", "soft", "few"),
    [(0, 1, False), (3, 1, False), (8, 1, True), (8, 20, False), (20, 1, True)],
    ids=["one grey", "a speck", "a small mark", "a small reflex", "a mark"],
)
def test_one_grey_is_haze_and_two_are_a_mask(radius: float, soft: float, few: bool) -> None:
    """Of 20,000 photographs drawn with haze, 180 have one grey in the middle: they are no masks."""
    y, x = np.mgrid[:300, :300] - 149.5
    mark = np.clip((radius - np.hypot(x, y)) / soft + 1, 0, 1) if radius else np.zeros((300, 300))
    grey = 120 + 85 * mark + np.random.default_rng(5).normal(0, 1.0, (300, 300))
    pixels = np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    assert has_few_levels(pixels, Circle(150, 150, 150)) is few


@pytest.mark.parametrize(
    ("kind", "index"),
    [
        pytest.param(rounded_slide, 21, id="a slide with small corners"),
        pytest.param(rounded_slide, 33, id="a wide slide, whose retina reaches far beyond its circle"),
        pytest.param(rounded_slide, 167, id="a slide in a dark grey mount of one line"),
        pytest.param(rounded_slide, 149, id="a slide in a mount as bright as its retina"),
        pytest.param(mount_and_cut_disc, 61, id="a mount above and below, nearly as wide as the disc"),
        pytest.param(montage, 25, id="two discs that are cut where they meet"),
        pytest.param(reflex, 21, id="a reflex that a circle can follow"),
    ],
)
def test_geometries_that_need_their_own_rule(kind: Kind, index: int) -> None:
    assert fault_of(draw_kind(kind, index)) is None
