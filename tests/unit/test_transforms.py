from __future__ import annotations

import numpy as np
import pytest
from fundus_discs import Disc, Pixels, draw_disc, write_text
from photographs import retina
from PIL import Image, ImageDraw

from synfundus.errors import DataError
from synfundus.photographs.field_of_view import Circle, find_field_of_view
from synfundus.photographs.transforms import (
    RIM_SHRINK,
    crop_to_field_of_view,
    fundus_mask,
)


def circle_of(disc: Disc) -> Circle:
    return Circle(disc.x, disc.y, disc.radius)


def radii(size: int) -> Pixels:
    grid = np.arange(size) + 0.5 - size / 2
    return np.asarray(np.hypot(grid[:, None], grid[None]) / (size / 2))


@pytest.mark.parametrize("size", [32, 128, 224])
@pytest.mark.parametrize(
    "disc", [Disc(300, 300, 150, 150, 120), Disc(900, 1200, 640, 420, 400), Disc(128, 128, 60, 66, 50)], ids=str
)
def test_the_disc_fills_the_crop_and_nothing_lies_outside(disc: Disc, size: int) -> None:
    cropped = crop_to_field_of_view(draw_disc(disc, noise=0), circle_of(disc), size)
    assert cropped.shape == (size, size, 3)
    assert cropped.dtype == np.uint8
    distance = radii(size)
    assert not cropped[distance > RIM_SHRINK].any()
    assert (cropped[distance < 0.93][:, 0] > 30).all()


def test_burned_in_text_leaves_no_trace() -> None:
    disc = Disc(256, 256, 128, 128, 118)
    clean = draw_disc(disc, noise=0)
    image = Image.fromarray(clean)
    write_text(image)
    written = np.asarray(image)
    assert (written != clean).any()
    for size in (32, 64, 128, 200):
        np.testing.assert_array_equal(
            crop_to_field_of_view(written, circle_of(disc), size), crop_to_field_of_view(clean, circle_of(disc), size)
        )


def test_text_beside_a_straight_cut_leaves_no_trace_though_it_lies_within_the_circle() -> None:
    clean = draw_disc(Disc(256, 256, 128, 128, 118), noise=0)
    clean[:45] = clean[-45:] = 0
    image = Image.fromarray(clean)
    draw = ImageDraw.Draw(image)
    for y in (20, 28, 216, 222):
        draw.text((100, y), "DOE JANE 1950", fill=(255, 255, 255))
    written = np.asarray(image)
    for size in (32, 64, 128, 200):
        crops = [crop_to_field_of_view(picture, find_field_of_view(picture), size) for picture in (clean, written)]
        visible = round(size * (118 - 83) / 236)
        for crop in crops:
            assert not crop[: visible - 1].any()
            assert not crop[-visible + 1 :].any()
        assert np.abs(crops[0].astype(int) - crops[1]).max() <= 16


def test_white_right_outside_the_rim_does_not_shine_in() -> None:
    disc = Disc(512, 512, 256, 256, 240)
    y, x = np.mgrid[:512, :512] + 0.5
    outside = np.hypot(x - 256, y - 256) > 240
    black, white = (np.full((512, 512, 3), 80, dtype=np.uint8) for _ in range(2))
    black[outside], white[outside] = 0, 255
    for size in (37, 64, 128, 512):
        np.testing.assert_array_equal(
            crop_to_field_of_view(white, circle_of(disc), size), crop_to_field_of_view(black, circle_of(disc), size)
        )


def test_what_the_frame_cut_off_is_black_and_the_rest_keeps_its_light() -> None:
    disc = Disc(200, 300, 150, 100, 140)
    flat = np.full((200, 300, 3), 90, dtype=np.uint8)
    cropped = crop_to_field_of_view(flat, circle_of(disc), 140)
    mask = fundus_mask(circle_of(disc), frame_height_px=200, frame_width_px=300, image_size_px=140)
    assert not cropped[~mask].any()
    assert not cropped[:20].any()
    assert not cropped[-20:].any()
    deep = mask & (radii(140) < 0.93)
    assert (cropped[deep] == 90).all()
    assert mask[22:118, 70].all()


def test_the_crop_is_centred_to_a_fraction_of_a_pixel() -> None:
    disc = Disc(257, 301, 140.3, 120.7, 101.4)
    cropped = crop_to_field_of_view(draw_disc(disc, noise=0), circle_of(disc), 96).astype(np.float64).sum(axis=2)
    position = np.arange(96) + 0.5
    assert abs((cropped.sum(axis=0) * position).sum() / cropped.sum() - 48) < 0.5
    assert abs((cropped.sum(axis=1) * position).sum() / cropped.sum() - 48) < 0.5


def test_a_fine_pattern_is_averaged_not_aliased() -> None:
    disc = Disc(1024, 1024, 512, 512, 500)
    stripes = np.zeros((1024, 1024, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    cropped = crop_to_field_of_view(stripes, circle_of(disc), 64)
    middle = cropped[radii(64) < 0.8]
    assert np.abs(middle.astype(int) - 100).max() <= 3


def test_a_small_picture_is_enlarged() -> None:
    disc = Disc(64, 64, 32, 32, 30)
    assert crop_to_field_of_view(draw_disc(disc), circle_of(disc), 256)[128, 128].max() > 60


def test_a_crop_of_a_crop_is_the_crop() -> None:
    photograph = retina()
    once = crop_to_field_of_view(photograph, find_field_of_view(photograph), 256)
    again = find_field_of_view(once)
    assert abs(again.radius_px - 128 * RIM_SHRINK) < 2.5
    assert np.hypot(again.center_x_px - 128, again.center_y_px - 128) < 2


@pytest.mark.parametrize("circle", [Circle(500, 500, 50), Circle(50, 50, 5000), Circle(-80, 20, 30)])
def test_a_circle_that_is_not_in_the_picture_is_refused(circle: Circle) -> None:
    with pytest.raises(DataError, match="is not inside a picture of 100 x 100 px"):
        crop_to_field_of_view(np.zeros((100, 100, 3), dtype=np.uint8), circle, 64)
