"""Curves of runs in one chart. The only module that imports matplotlib."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Point = tuple[float, float]

SOFTWARE = "synfundus plot"
"""Name of the writer, in every PNG."""
_BACKGROUND = "#16171a"
_PANEL = "#1c1d21"
_INK = "#d6d8dc"
_FAINT = "#9699a0"
_RULE = "#3a3c42"
# Okabe and Ito's colour-blind-safe palette without black, in an order that is readable on a dark background
_COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#0072b2", "#d6d8dc")
_STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
_PANEL_INCHES = (5.4, 3.1)
_HEAD_INCHES = 0.62
_LEGEND_LINE_INCHES = 0.24
_DPI = 120
_DECADES_FOR_LOG = 1.0
_POINTS_AFTER_SMOOTHING = 50


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
        run: Number of the run, from 0; determines colour and line style in every panel.
        points: (images seen, value), in order, finite.
    """

    run: int
    points: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: What is drawn.
        curves: At least one.
        logarithmic: Whether the value axis is logarithmic.
    """

    title: str
    curves: Sequence[Curve]
    logarithmic: bool


def smooth(points: Sequence[Point], factor: float) -> list[Point]:
    """Return the exponential moving average of the points, corrected for the bias towards 0 at the start.

    Args:
        points: (x, y); their spacing in x is ignored.
        factor: Weight of the past, 0 (none) to below 1.

    Source: Kingma and Ba 2015 (arXiv 1412.6980), Sec. 3: the bias correction.
    """
    total = weight = 0.0
    result = []
    for x, y in points:
        total = factor * total + (1.0 - factor) * y
        weight = factor * weight + (1.0 - factor)
        result.append((x, total / weight))
    return result


def usual_smoothing(num_points: int) -> float:
    """Return a factor that averages over about a fiftieth of the curve; 0 for a short curve."""
    return max(0.0, 1.0 - _POINTS_AFTER_SMOOTHING / max(num_points, 1))


def spans_decades(curves: Sequence[Curve]) -> bool:
    """Whether all values are positive and span so many decades that a logarithmic axis shows them better."""
    values = [y for curve in curves for _, y in curve.points]
    return bool(values) and min(values) > 0.0 and math.log10(max(values) / min(values)) > _DECADES_FOR_LOG


def draw_curves(panels: Sequence[Panel], run_names: Sequence[str], *, heading: str, smoothing: float | None) -> bytes:
    """Draw panels in a grid and return a PNG; the same arguments give the same pixels.

    Args:
        panels: At least one.
        run_names: Name of each run, for the legend.
        heading: One line at the top.
        smoothing: Weight of the past in the bold line, None for `usual_smoothing`; the values themselves are drawn
            faintly behind it.
    """
    os.environ.pop("MPLBACKEND", None)  # a notebook's: matplotlib refuses at import what is not installed here
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    head = _HEAD_INCHES + _LEGEND_LINE_INCHES * len(run_names)
    size = (columns * _PANEL_INCHES[0], lines * _PANEL_INCHES[1] + head)
    figure = Figure(figsize=size, dpi=_DPI, facecolor=_BACKGROUND, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel, smoothing=smoothing)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    _write_head(figure, run_names, heading, share=head / size[1])
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a run may have any name
        figure.savefig(stream, format="png", facecolor=_BACKGROUND, metadata={"Software": SOFTWARE})
    return stream.getvalue()


def _draw_panel(axes: Axes, panel: Panel, *, smoothing: float | None) -> None:
    from matplotlib.ticker import EngFormatter

    for curve in panel.curves:
        colour, style = _COLOURS[curve.run % len(_COLOURS)], _STYLES[curve.run // len(_COLOURS) % len(_STYLES)]
        positions = [x for x, _ in curve.points]
        values = [y for _, y in curve.points]
        factor = usual_smoothing(len(positions)) if smoothing is None else smoothing
        if factor > 0.0 and len(positions) > 1:
            axes.plot(positions, values, color=colour, linewidth=0.7, alpha=0.35)
            values = [y for _, y in smooth(curve.points, factor)]
        mark = "o" if len(positions) == 1 else ""
        axes.plot(positions, values, color=colour, linestyle=style, linewidth=1.5, marker=mark, markersize=4)
    if panel.logarithmic:
        axes.set_yscale("log")
    _plain(axes.set_title(panel.title, color=_INK, fontsize=11, loc="left"))
    axes.set_xlabel("images seen", color=_FAINT, fontsize=8)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_facecolor(_PANEL)
    axes.grid(visible=True, color=_RULE, linewidth=0.5)
    axes.tick_params(which="both", colors=_FAINT, labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(_RULE)


def _write_head(figure: Figure, run_names: Sequence[str], heading: str, *, share: float) -> None:
    """Write the heading and the legend, one line per run, at the top of the chart."""
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0.0, 0.0, 1.0, 1.0 - share))  # type: ignore[call-arg]  # the stubs lack the options
    height = figure.get_figheight()
    _plain(figure.text(0.012, 1.0 - 0.3 / height, heading, color=_INK, fontsize=13, va="center"))
    for number, name in enumerate(run_names):
        y = 1.0 - (_HEAD_INCHES + _LEGEND_LINE_INCHES * number) / height
        colour, style = _COLOURS[number % len(_COLOURS)], _STYLES[number // len(_COLOURS) % len(_STYLES)]
        figure.add_artist(Line2D([0.012, 0.042], [y, y], color=colour, linestyle=style, linewidth=2.0))
        label = Text(0.05, y, name, color=_INK, fontsize=9, va="center", transform=figure.transFigure)
        figure.add_artist(_plain(label))


def _plain(text: Text) -> Text:
    """Turn off the parsing of formulas between dollar signs."""
    text.set_parse_math(False)
    return text
