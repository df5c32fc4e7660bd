"""What PSNR does not see: whether vessels are still there, on the one real photograph that may lie here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from photographs import retina
from PIL import Image
from torch import Tensor

from synfundus.models import vessel_metrics
from synfundus.models.pixels import pixels_to_tensor
from synfundus.models.reconstruction_metrics import psnr
from synfundus.models.vessel_metrics import (
    BAND_NAMES,
    VESSEL_BAND,
    band_energy_ratio,
    band_power,
    field_of_view,
    line_excess,
    vessel_correlation,
    vessel_energy_ratio,
    vessel_line_ratio,
    vessel_map,
)
from synfundus.phantoms.draw import draw_phantom


def photograph(size_px: int = 128) -> Tensor:
    """The photograph, cropped to its disc, ``[1, 3, s, s]``."""
    whole = Image.fromarray(retina()).resize((size_px, size_px), Image.Resampling.BOX)
    return pixels_to_tensor(np.array(whole)[None])


def blurred(images: Tensor, sigma_px: float) -> Tensor:
    radius = math.ceil(3 * sigma_px)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma_px) ** 2)
    window = torch.outer(taps, taps) / taps.sum() ** 2
    padded = torch.nn.functional.pad(images, (radius,) * 4, mode="replicate")
    return torch.nn.functional.conv2d(padded, window.expand(3, 1, -1, -1), groups=3)


def drawn_disc(size_px: int = 128, *, light: float = 0.5) -> Tensor:
    """An evenly lit disc on black, without anything in it, ``[1, 3, s, s]`` in 0..1."""
    return light * (distance(size_px) < 0.97).float().expand(1, 3, -1, -1)


def distance(size_px: int) -> Tensor:
    edge = torch.linspace(-1, 1, size_px)
    return torch.hypot(edge[:, None], edge[None, :])


def test_an_equal_image_keeps_all_its_vessels() -> None:
    assert float(vessel_correlation(photograph(), photograph())) == pytest.approx(1.0, abs=1e-6)
    assert band_energy_ratio(photograph(), photograph())[0].tolist() == pytest.approx([1.0] * 4)


def test_a_blur_that_psnr_forgives_loses_the_vessels_and_the_fine_octaves() -> None:
    reference = photograph()
    spoiled = blurred(reference, 2.5)
    assert float(psnr(spoiled, reference, data_range=2.0)) > 26
    assert float(vessel_correlation(spoiled, reference)) < 0.5
    ratios = band_energy_ratio(spoiled, reference)[0].tolist()
    assert ratios[0] > 0.6
    assert max(ratios[VESSEL_BAND:]) < 0.1
    assert ratios == sorted(ratios, reverse=True)


def test_contrast_and_brightness_do_not_count() -> None:
    reference = photograph()
    assert float(vessel_correlation(0.6 * reference + 0.1, reference)) > 0.97


def test_noise_does_not_raise_it() -> None:
    reference = photograph()
    noise = 0.05 * torch.randn(reference.shape, generator=torch.Generator().manual_seed(1))
    lost = blurred(reference, 2.0)
    assert float(vessel_correlation(lost + noise, reference)) < float(vessel_correlation(lost, reference))
    assert float(vessel_correlation(reference + noise, reference)) < 0.95
    assert abs(float(vessel_correlation(noise, reference))) < 0.1


def test_the_map_is_of_the_vessels_whatever_the_size() -> None:
    """Vessels cover a small part; maps of different sizes agree in the contrast of what they show."""
    small, large = (vessel_map(photograph(size)) for size in (128, 512))
    assert large.shape[-1] == 256
    peaks = [float(one.quantile(0.98)) for one in (small, large)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.35)
    reduced = torch.nn.functional.avg_pool2d(large, 2)
    assert float(torch.corrcoef(torch.stack([small.flatten(), reduced.flatten()]))[0, 1]) > 0.8
    assert 0.02 < float((small > 0.02).float().mean()) < 0.2


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 2.5])
def test_a_dark_line_is_found_in_any_direction_and_a_bright_one_or_an_edge_is_not(angle: float) -> None:
    edge = torch.linspace(-1, 1, 128)
    across = (edge[None, :] * math.cos(angle) + edge[:, None] * math.sin(angle)).expand(1, 3, -1, -1)
    line = torch.exp(-0.5 * (across / 0.014) ** 2)
    disc = drawn_disc()
    inside = field_of_view(2 * disc - 1)
    for image, found in ((disc * (1 - 0.2 * line), True), (disc * (1 + 0.2 * line), False)):
        response = vessel_map(2 * image - 1)[inside]
        assert (float(response.max()) > 0.03) is found
    step = vessel_map(2 * disc * (1 + 0.8 * (across > 0)) - 1)[inside]
    assert float(step.max()) < 0.01


@pytest.mark.parametrize("light", [0.15, 0.5, 0.9])
def test_the_rim_of_the_field_of_view_and_the_edge_of_the_disc_are_no_vessels(light: float) -> None:
    image = drawn_disc(light=light) + 0.1 * (distance(128) < 0.2)
    pixels = 2 * image.clamp(0, 1) - 1
    inside = field_of_view(pixels)
    assert 0.5 < float(inside.float().mean()) < 0.7
    assert float(vessel_map(pixels)[inside].max()) < 0.01
    assert math.isnan(float(vessel_correlation(pixels, pixels))), "there is nothing to keep"
    assert float(band_power(2 * drawn_disc(light=light) - 1).max()) < 0.05 * float(band_power(photograph()).min())


def test_a_reference_without_vessels_does_not_count_and_a_reconstruction_without_them_counts_as_nought() -> None:
    reference, empty = photograph(), 2 * drawn_disc() - 1
    black = torch.full_like(reference, -1.0)
    found = vessel_correlation(torch.cat([reference, reference, empty]), torch.cat([empty, black, reference]))
    assert found.isnan().tolist() == [True, True, False]
    assert float(found[2]) == pytest.approx(0.0, abs=0.01)
    assert band_power(black).isnan().all()


def test_octaves_above_what_an_image_resolves_have_no_figure() -> None:
    assert band_power(photograph(64)).isnan()[0].tolist() == [False, False, False, True]


@pytest.mark.parametrize(("cycles", "octave"), [(6, 0), (12, 1), (24, 2), (48, 3)])
def test_a_grating_has_its_power_in_its_octave(cycles: int, octave: int) -> None:
    """A sine of relative amplitude a has the power a^2 / 2, less what counts as the light around it."""
    wave = torch.sin(2 * math.pi * cycles * torch.arange(128) / 128)
    power = band_power(2 * drawn_disc() * (1 + 0.2 * wave) - 1)[0]
    assert BAND_NAMES[int(power.argmax())] == BAND_NAMES[octave]
    background = math.exp(-2 * (math.pi * 0.03 * cycles) ** 2)
    assert float(power[octave]) == pytest.approx(0.02 * (1 - background) ** 2, rel=0.1)


def test_a_set_is_compared_by_its_median_and_images_without_an_eye_are_left_out() -> None:
    power = torch.tensor([[0, 0, 1.0, 0], [0, 0, 2.0, 0], [0, 0, 100.0, 0], [math.nan] * 4])
    assert vessel_energy_ratio(power, 4 * power) == pytest.approx(0.25)
    assert math.isnan(vessel_energy_ratio(power, power[3:]))


def test_phantoms_have_vessels_to_keep() -> None:
    drawn = [draw_phantom(seed=7, index=number, image_size_px=128).pixels for number in range(6)]
    pixels = torch.cat([pixels_to_tensor(one[None]) for one in drawn])
    kept = vessel_correlation(blurred(pixels, 2.0), pixels)
    assert int(kept.isfinite().sum()) >= 4
    assert float(kept.nanmean()) < 0.8


def mottled(image: Tensor, *, seed: int = 0) -> Tensor:
    """Return an image with its fine structure's phases drawn anew: the same energy at every frequency, and no line."""
    green, background = vessel_metrics._green_and_background(image)
    contrast = (green / background - 1) * field_of_view(image)
    phases = torch.fft.rfft2(torch.randn(contrast.shape, generator=torch.Generator().manual_seed(seed))).angle()
    noise = torch.fft.irfft2(torch.polar(torch.fft.rfft2(contrast).abs(), phases), s=contrast.shape[-2:])
    unit = (image + 1) / 2
    ratio = torch.where(field_of_view(image), (1 + noise) * background / green.clamp(min=1e-3), 1.0)
    return ((unit * ratio[:, None]).clamp(0, 1) * 2) - 1


def test_lines_are_counted_and_mottling_of_the_same_energy_is_not() -> None:
    real = photograph()
    spoiled = torch.cat([mottled(real, seed=seed) for seed in range(8)])
    energy = vessel_energy_ratio(band_power(spoiled), band_power(real))
    assert energy > 0.5, "by its energy it has vessels"
    assert vessel_line_ratio(line_excess(spoiled), line_excess(real)) < 0.1
    assert vessel_line_ratio(line_excess(blurred(real, 2.5)), line_excess(real)) < 0.1
    assert vessel_line_ratio(line_excess(real.flip(-1).transpose(-1, -2)), line_excess(real)) == pytest.approx(
        1, abs=0.1
    )


@pytest.mark.parametrize("angle", [0.0, 0.3, 0.9, math.pi / 2, 2.5])
def test_a_long_line_counts_in_any_direction_a_spot_does_not_and_a_bright_line_takes_off(angle: float) -> None:
    x, y = torch.meshgrid(torch.arange(128.0) - 64, torch.arange(128.0) - 64, indexing="xy")
    across, along = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    lines = sum(torch.exp(-0.5 * ((across - shift) / 1.1) ** 2) for shift in range(-60, 61, 12))
    spots = lines * sum(torch.exp(-0.5 * ((along - shift) / 1.1) ** 2) for shift in range(-60, 61, 12))
    excess = [
        float(line_excess(2 * drawn_disc() * (1 + sign * 0.1 * texture) - 1))
        for sign, texture in ((-1, lines), (1, lines), (-1, spots))
    ]
    assert excess[0] > 0.015
    assert excess[1] < -0.013
    assert abs(excess[2]) < 0.2 * excess[0]


def test_lines_are_the_same_at_twice_the_size_and_none_without_an_eye() -> None:
    small, large = (float(line_excess(photograph(size))) for size in (128, 256))
    assert large == pytest.approx(small, rel=0.1)
    assert line_excess(photograph() * 0 - 1).isnan().all()
