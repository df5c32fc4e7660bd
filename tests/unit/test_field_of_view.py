from __future__ import annotations

import numpy as np
import pytest
from fundus_discs import Disc, Pixels, draw_disc
from photographs import photograph, retina
from PIL import Image, ImageDraw, ImageFont

from synfundus.phantoms.draw import draw_phantom
from synfundus.photographs.field_of_view import Circle, FieldOfViewError, NoFieldOfView, find_field_of_view

TOLERANCE = 0.015
NOT_FUNDI = (
    *("astronaut", "brick", "camera", "cat", "clock", "coffee", "grass", "gravel", "hubble_deep_field"),
    *("rocket", "text"),
)


def error_of(found: Circle, x: float, y: float, radius: float) -> float:
    off = np.hypot(found.center_x_px - x, found.center_y_px - y)
    return float(max(off, abs(found.radius_px - radius)) / radius)


def assert_found(disc: Disc, pixels: Pixels) -> None:
    found = find_field_of_view(pixels)
    assert error_of(found, disc.x, disc.y, disc.radius) < TOLERANCE, found


def rejection(pixels: Pixels) -> NoFieldOfView:
    with pytest.raises(FieldOfViewError) as caught:
        find_field_of_view(np.ascontiguousarray(pixels))
    return caught.value.reason


def as_rgb(picture: Pixels) -> Pixels:
    return np.repeat(picture[:, :, None], 3, axis=2) if picture.ndim == 2 else picture[:, :, :3]


@pytest.mark.parametrize(
    "look",
    [
        {},
        {"level": 40.0},
        {"level": 24.0, "blur_px": 1.5},
        {"level": 120.0, "blur_px": 2.0},
        {"text": True},
        {"level": 40.0, "text": True},
        {"frame_px": 5},
        {"noise": 12.0},
        {"shade": 0.45},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "disc",
    [
        Disc(128, 128, 64, 64, 59),
        Disc(256, 256, 128, 128, 118),
        Disc(256, 256, 90, 150, 85),
        Disc(400, 600, 310, 196, 188),
    ],
    ids=str,
)
def test_a_whole_disc_is_found_whatever_it_looks_like(disc: Disc, look: dict[str, float]) -> None:
    assert_found(disc, draw_disc(disc, **look))  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [200.0, 40.0])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(
    "disc",
    [
        Disc(200, 256, 128, 100, 118),
        Disc(170, 256, 128, 85, 118),
        Disc(256, 200, 100, 128, 118),
        Disc(200, 200, 100, 100, 115),
        Disc(256, 256, 128, 128, 155),
        Disc(200, 260, 130, 100, 145),
        Disc(256, 256, 60, 150, 85),
        Disc(256, 256, 128, 100, 115),
    ],
    ids=["top-bottom", "top-bottom-much", "left-right", "four", "four-much", "four-wide", "left", "top"],
)
def test_a_disc_cut_by_the_frame_is_found(disc: Disc, text: bool, level: float) -> None:
    assert_found(disc, draw_disc(disc, text=text, level=level))


@pytest.mark.parametrize("sides", [2, 4])
def test_a_disc_cut_by_black_stripes_inside_the_frame_is_found(sides: int) -> None:
    disc = Disc(256, 256, 128, 128, 118)
    pixels = draw_disc(disc)
    pixels[:30] = pixels[-30:] = 0
    if sides == 4:
        pixels[:, :30] = pixels[:, -30:] = 0
    assert_found(disc, pixels)


@pytest.mark.parametrize("level", [200.0, 45.0, 30.0])
@pytest.mark.parametrize("mount", [28, 120, 255])
def test_a_disc_on_the_grey_mount_of_a_slide_is_found(mount: int, level: float) -> None:
    disc = Disc(256, 256, 130, 126, 105)
    pixels = draw_disc(disc, level=level).astype(int)
    y, x = np.mgrid[:256, :256]
    off_disc = np.hypot(x + 0.5 - disc.x, y + 0.5 - disc.y) > disc.radius
    pixels[off_disc] += mount
    black_edge = (np.minimum(x, y) < 8) | (np.maximum(x, y) > 247)
    pixels[black_edge] = 0
    assert_found(disc, np.clip(pixels, 0, 255).astype(np.uint8))


def test_the_circle_scales_with_the_photograph() -> None:
    disc = Disc(1000, 1500, 700, 520, 450)
    large = draw_disc(disc)
    assert_found(disc, large)
    small = find_field_of_view(np.ascontiguousarray(large[::4, ::4]))
    assert error_of(small, 175, 130, 112.5) < TOLERANCE


def test_a_real_photograph_with_a_notch_in_its_rim_is_found() -> None:
    found = find_field_of_view(retina())
    assert error_of(found, 705.5, 704.0, 695.5) < 0.01
    assert found.inlier_fraction > 0.9


def test_a_real_photograph_cut_and_darkened_is_found() -> None:
    cut = np.ascontiguousarray(retina()[150:1250] // 6)
    assert error_of(find_field_of_view(cut), 705.5, 554.0, 695.5) < TOLERANCE


def test_the_circles_of_phantoms_are_found() -> None:
    errors = []
    for index in range(96):
        phantom = draw_phantom(seed=5, index=index, image_size_px=128)
        truth = phantom.truth
        found = find_field_of_view(phantom.pixels)
        errors.append(error_of(found, truth.center_x_px, truth.center_y_px, truth.radius_px))
    assert max(errors) < TOLERANCE
    assert float(np.median(errors)) < 0.005


def test_straight_cuts_are_found_where_they_are_and_nowhere_else() -> None:
    cut = 0
    for index in range(60):
        phantom = draw_phantom(seed=6, index=index, image_size_px=128)
        truth, found = phantom.truth, find_field_of_view(phantom.pixels)
        edges = (found.left_px, found.top_px, found.right_px, found.bottom_px)
        if truth.camera != "cut":
            assert edges == (-np.inf, -np.inf, np.inf, np.inf)
            continue
        cut += 1
        assert (found.left_px, found.right_px) == (-np.inf, np.inf)
        assert abs(found.top_px - (truth.center_y_px - truth.cut_half_height_px)) < 1.5
        assert abs(found.bottom_px - (truth.center_y_px + truth.cut_half_height_px)) < 1.5
    assert cut >= 5


def test_a_shadow_is_not_a_cut() -> None:
    found = find_field_of_view(draw_disc(Disc(256, 256, 128, 128, 118), shade=0.45))
    assert found.left_px == -np.inf


@pytest.mark.parametrize("x", [3.0, 253.0])
def test_a_centre_at_the_edge_of_the_frame_is_found(x: float) -> None:
    disc = Disc(256, 256, x, 128, 100)
    assert_found(disc, draw_disc(disc))


def test_the_result_depends_on_the_pixels_alone() -> None:
    pixels = draw_disc(Disc(200, 256, 128, 100, 118))
    np.random.default_rng(1)
    assert find_field_of_view(pixels) == find_field_of_view(pixels.copy())


@pytest.mark.parametrize("name", NOT_FUNDI)
def test_a_picture_that_is_no_fundus_is_refused_by_name(name: str) -> None:
    assert rejection(as_rgb(photograph(name))) == NoFieldOfView.NO_FIELD_OF_VIEW


def printed_page() -> Pixels:
    """Draw lines of black letters on white paper."""
    page = Image.new("L", (384, 192), 230)
    lines = "\n".join("in + out + left, named and counted " * 2 for _ in range(14))
    ImageDraw.Draw(page).text((6, 4), lines, font=ImageFont.load_default(10), fill=20)
    return np.asarray(page)


def skull() -> Pixels:
    """Draw a slice of a head as a scanner shows it: a bright oval rim around grey, on black."""
    y, x = np.mgrid[-1:1:400j, -1:1:400j]
    outer, inner = (x / 0.69) ** 2 + (y / 0.92) ** 2 < 1, (x / 0.66) ** 2 + (y / 0.87) ** 2 < 1
    ventricles = ((np.abs(x) - 0.22) / 0.13) ** 2 + (y / 0.34) ** 2 < 1
    return np.where(ventricles, 0.0, np.where(inner, 51.0, np.where(outer, 255.0, 0.0)))


def shapes() -> dict[str, Pixels]:
    y, x = np.mgrid[:300, :300].astype(np.float64) - 150
    distance = np.hypot(x, y)
    drawn = {
        "linear gradient": (x + 150) * 0.85,
        "cone": np.clip(255 - 1.7 * distance, 0, 255),
        "soft blob": 255 * np.exp(-((distance / 60) ** 2)),
        "ring": 255.0 * (np.abs(distance - 100) < 4),
        "square": 200.0 * ((np.abs(x) < 90) & (np.abs(y) < 90)),
        "octagon": 200.0 * ((np.abs(x) < 120) & (np.abs(y) < 120) & (np.abs(x) + np.abs(y) < 170)),
        "ellipse": 200.0 * ((x / 130) ** 2 + (y / 95) ** 2 < 1),
        "white": np.full((300, 300), 255.0),
        "grey": np.full((300, 300), 90.0),
        "page in negative": 255.0 - printed_page(),
        "checkerboard": 255.0 * (((x // 25) + (y // 25)) % 2),
        "skull": skull(),
        "noise": np.random.default_rng(0).integers(0, 256, (300, 300)).astype(np.float64),
        "retina without a rim": retina()[400:1000, 400:1000].max(axis=2).astype(np.float64),
        "thin strip": np.tile(np.arange(40.0)[:, None] * 5, (1, 4000)),
    }
    return {name: as_rgb(np.clip(picture, 0, 255).astype(np.uint8)) for name, picture in drawn.items()}


@pytest.mark.parametrize("name", list(shapes()))
def test_a_shape_that_is_no_disc_on_black_is_refused(name: str) -> None:
    assert rejection(shapes()[name]) == NoFieldOfView.NO_FIELD_OF_VIEW


@pytest.mark.parametrize("noise", [1, 7])
def test_a_black_frame_is_named(noise: int) -> None:
    assert rejection(np.random.default_rng(0).integers(0, noise, (240, 320, 3), dtype=np.uint8)) == "all_black"


def test_a_black_frame_with_a_name_on_it_is_still_black() -> None:
    pixels = np.zeros((240, 320, 3), dtype=np.uint8)
    pixels[220:230, 10:80:3] = 255
    assert rejection(pixels) == NoFieldOfView.ALL_BLACK


def test_a_disc_too_small_to_be_the_field_of_view_is_named() -> None:
    assert rejection(draw_disc(Disc(300, 300, 100, 100, 40))) == NoFieldOfView.TOO_SMALL
    assert rejection(as_rgb(photograph("coins"))) == NoFieldOfView.TOO_SMALL
    assert rejection(np.full((20, 400, 3), 99, dtype=np.uint8)) == NoFieldOfView.TOO_SMALL
