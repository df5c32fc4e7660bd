"""How verbs report vessel detail: what is counted, what is said, when they warn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from photographs import retina
from PIL import Image

from synfundus.models.pixels import pixels_to_tensor
from synfundus.stages import vessel_detail
from synfundus.stages.vessel_detail import (
    VESSEL_ENERGY,
    VESSEL_FIGURES,
    VesselDetail,
    VesselsBeside,
    describe_vessels,
    lost_vessels,
    missing_vessels,
    unlike_photographs,
    vessel_table,
    vessels_beside,
)


def photographs(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    one = np.array(Image.fromarray(retina()).resize((128, 128), Image.Resampling.BOX))
    return np.stack([np.rot90(one, number) for number in range(count)])


def test_figures_are_over_images_that_show_vessels() -> None:
    pixels = pixels_to_tensor(photographs(3))
    black = torch.full_like(pixels[:1], -1.0)
    detail = VesselDetail()
    detail.add(pixels[:2], pixels[:2])
    detail.add(torch.cat([-pixels[2:], black]), torch.cat([pixels[2:], black]))
    found = detail.figures()
    assert set(found) == set(VESSEL_FIGURES)
    assert found["vessel_images"] == 3
    assert 0.5 < found["vessel_correlation"] < 0.8, "two of three are kept"
    assert found[VESSEL_ENERGY] == pytest.approx(1.0), "a median"


def test_only_the_first_images_cost_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vessel_detail, "_MOST_IMAGES", 5)
    detail = VesselDetail()
    pixels = pixels_to_tensor(photographs(2))
    for _ in range(3):
        detail.add(pixels, pixels)
    assert detail.figures()["vessel_images"] == 5


def test_images_without_vessels_are_not_counted_and_it_is_said() -> None:
    black = torch.full((2, 3, 128, 128), -1.0)
    detail = VesselDetail()
    detail.add(black, black)
    assert detail.figures() == VesselDetail().figures() == {"vessel_images": 0}
    assert describe_vessels(detail.figures()) == "vessels not judged (no image shows any)"
    assert lost_vessels(detail.figures()) == ""


@pytest.mark.parametrize(("correlation", "warned"), [(0.31, True), (0.499, True), (0.5, False), (0.9, False)])
def test_lost_vessels_are_warned_of(correlation: float, warned: bool) -> None:
    said = lost_vessels({"vessel_correlation": correlation})
    assert bool(said) is warned
    assert not warned or f"correlation is {correlation:.2f}" in said


def test_generated_images_are_compared_with_photographs() -> None:
    real = photographs(4)
    same = vessels_beside(real, real)
    assert same.energy == pytest.approx(1.0)
    assert same.lines == pytest.approx(1.0)
    coarse = [np.array(Image.fromarray(one).resize((32, 32)).resize((128, 128))) for one in real]
    found = vessels_beside(np.stack(coarse), real)
    assert found.energy is not None
    assert found.lines is not None
    assert 0.0 < found.energy < 0.3
    assert found.lines < 0.5
    assert vessels_beside(np.zeros_like(real), real) == VesselsBeside(energy=0.0)


@pytest.mark.parametrize(("lines", "warned"), [(-0.02, "0.00"), (0.04, "0.04"), (0.5, ""), (None, "")])
def test_few_vessels_in_generated_images_are_warned_of(lines: float | None, warned: str) -> None:
    said = missing_vessels(VesselsBeside(energy=0.5, lines=lines))
    assert bool(said) == bool(warned)
    assert warned in said


def test_the_table_has_a_dash_where_there_is_no_figure() -> None:
    title, head, rows = vessel_table(
        {"vessel_correlation": 0.31, "vessel_images": 7, VESSEL_ENERGY: 0.2}, VesselsBeside()
    )
    assert "16 to 32 cycles a diameter" in title
    assert len(head) == 4
    assert rows == [["reconstructed", "0.31", "0.20", "-"], ["generated", "-", "-", "-"]]


def test_noise_and_nothing_are_told_from_photographs_and_from_images_of_a_usual_demo() -> None:
    real = photographs(2)
    noise = np.random.default_rng(0).integers(0, 256, real.shape, dtype=np.uint8)
    grainy = np.clip(real + np.random.default_rng(0).normal(0, 4, real.shape), 0, 255).astype(np.uint8)
    for images in (noise, np.zeros_like(real), np.full_like(real, 90)):
        vessels = vessels_beside(images, real)
        assert "do not look like fundus photographs" in unlike_photographs(vessels)
        assert not missing_vessels(vessels), "one warning is enough"
    assert "noise" in unlike_photographs(vessels_beside(noise, real))
    for images in (real, grainy, np.flip(real, axis=2).copy()):
        assert not unlike_photographs(vessels_beside(images, real))


@pytest.mark.parametrize("energy", [0.09, 0.50, 0.77, 0.85, 1.02])
def test_images_of_demos_of_the_usual_length_pass(energy: float) -> None:
    assert not unlike_photographs(VesselsBeside(energy, 0.07))


@pytest.mark.parametrize("energy", [79.58, 4.8, 0.0])
def test_images_of_demos_that_were_too_short_do_not(energy: float) -> None:
    assert f"{energy:.2f} times" in unlike_photographs(VesselsBeside(energy, 0.07))


def test_without_a_figure_nothing_is_claimed() -> None:
    small = photographs(1)[:, ::4, ::4].copy()
    assert not unlike_photographs(vessels_beside(255 - small, small))
