"""Curves of runs as a picture."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from synfundus.pictures.charts import Curve, Panel, draw_curves, smooth, spans_decades, usual_smoothing

RISE = [(float(x), x / 10) for x in range(1, 11)]
BLUE, ORANGE = (0x56, 0xB4, 0xE9), (0xE6, 0x9F, 0x00)


def pixels(data: bytes) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int16)


def share_of(picture: NDArray[np.int16], colour: tuple[int, int, int]) -> float:
    return float((np.abs(picture - np.array(colour)).max(axis=2) < 24).mean())


def test_smoothing_keeps_what_is_constant_and_starts_without_bias() -> None:
    assert [y for _, y in smooth([(1.0, 3.0), (2.0, 3.0), (5.0, 3.0)], 0.9)] == pytest.approx([3.0, 3.0, 3.0])
    assert smooth(RISE, 0.0) == RISE


def test_the_usual_smoothing_leaves_short_curves_alone_and_averages_over_a_fiftieth_of_long_ones() -> None:
    assert usual_smoothing(1) == usual_smoothing(50) == 0.0
    assert 1 / (1 - usual_smoothing(5000)) == pytest.approx(100)


def test_smoothing_is_the_weighted_mean_of_all_before() -> None:
    values, factor = [2.0, -1.0, 4.0], 0.5
    weights = [factor**2, factor, 1.0]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert smooth(list(enumerate(values)), factor)[-1][1] == pytest.approx(expected)


def test_a_logarithmic_axis_is_for_positive_values_far_apart() -> None:
    assert spans_decades([Curve(0, [(0.0, 0.01), (1.0, 0.2)])])
    assert not spans_decades([Curve(0, [(0.0, 0.1), (1.0, 0.2)])])
    assert not spans_decades([Curve(0, [(0.0, 0.0), (1.0, 100.0)])])
    assert not spans_decades([])


def test_every_run_has_its_colour_in_every_panel_and_in_the_legend() -> None:
    both = [Curve(0, RISE), Curve(1, [(x, 1 - y) for x, y in RISE])]
    alone = draw_curves([Panel("loss", both[:1], False)], ["a"], heading="h", smoothing=0.5)
    picture = draw_curves([Panel("loss", both, False)], ["a", "b"], heading="h", smoothing=0.5)
    assert share_of(pixels(alone), BLUE) > 0.0005
    assert share_of(pixels(alone), ORANGE) == 0.0
    assert share_of(pixels(picture), ORANGE) > 0.0005


def test_the_same_arguments_give_the_same_bytes() -> None:
    arguments = ([Panel("loss", [Curve(0, RISE)], True)], ["run"])
    assert draw_curves(*arguments, heading="h", smoothing=0.5) == draw_curves(*arguments, heading="h", smoothing=0.5)


@pytest.mark.parametrize("name", ["_hidden", "a$b$c", "run\\alpha$", "名前", "x" * 300, ""])
def test_a_run_may_have_any_name(name: str) -> None:
    plain = draw_curves([Panel("p", [Curve(0, RISE)], False)], [""], heading="h", smoothing=0.0)
    named = draw_curves([Panel("p", [Curve(0, RISE)], False)], [name], heading="h", smoothing=0.0)
    assert pixels(plain).shape == pixels(named).shape
    assert (plain != named) == bool(name)


def test_more_runs_than_colours_and_a_single_point_are_drawn() -> None:
    curves = [Curve(number, [(1.0, float(number + 1))]) for number in range(20)]
    few = draw_curves([Panel("p", curves[:1], False)], ["r"] * 20, heading="h", smoothing=0.5)
    many = draw_curves([Panel("p", curves, False)], ["r"] * 20, heading="h", smoothing=0.5)
    assert few != many


def test_three_panels_take_two_lines() -> None:
    panel = Panel("p", [Curve(0, RISE)], False)
    one = pixels(draw_curves([panel], ["r"], heading="h", smoothing=0.0))
    three = pixels(draw_curves([panel] * 3, ["r"], heading="h", smoothing=0.0))
    assert three.shape[1] == pytest.approx(2 * one.shape[1], abs=2)
    assert one.shape[0] < three.shape[0] < 2 * one.shape[0]


def test_the_backend_of_a_notebook_is_not_inherited() -> None:
    code = (
        "from synfundus.pictures.charts import Curve, Panel, draw_curves\n"
        "panel = Panel('loss', [Curve(0, [(1.0, 1.0), (2.0, 3.0)])], logarithmic=False)\n"
        "assert draw_curves([panel], ['run'], heading='', smoothing=None)[:4] == b'\\x89PNG'\n"
    )
    variables = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
