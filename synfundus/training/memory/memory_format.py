"""Whether convolutions are faster with NHWC memory, measured on pairs of timed steps.

It depends on the GPU, the precision and the widths: cuDNN's bf16 kernels prefer NHWC, fp32 ones often do not, and on a
CPU either may win. Rounding may differ between the two, so a run keeps the format it started with.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

LEAST_GAIN = 0.02
"""Fraction of a step that NHWC must save; below it torch's default layout is kept."""
MOST_PAIRS = 15
MOST_SECONDS = 4.0
"""After this time the pairs measured so far decide."""
_LEAST_PAIRS = 3


@dataclass(frozen=True)
class FormatChoice:
    """What was measured.

    Attributes:
        channels_last: Use NHWC.
        contiguous_s: Median seconds of a step on NCHW memory.
        channels_last_s: Median seconds of a step on NHWC memory.
        pairs: Number of timed steps of each.
    """

    channels_last: bool
    contiguous_s: float
    channels_last_s: float
    pairs: int

    def describe(self) -> str:
        """Return a line for the log."""
        return (
            f"channels_last {'on' if self.channels_last else 'off'}: a step takes {1e3 * self.channels_last_s:.1f} ms "
            f"with, {1e3 * self.contiguous_s:.1f} ms without (median of {self.pairs})"
        )


def choose_format(pairs: list[tuple[float, float]]) -> FormatChoice:
    """Decide from pairs of seconds, NCHW first, by the median of their ratios, which is robust to slow phases."""
    ratio = statistics.median(nhwc / nchw for nchw, nhwc in pairs)
    return FormatChoice(
        channels_last=ratio < 1.0 - LEAST_GAIN,
        contiguous_s=statistics.median(nchw for nchw, _ in pairs),
        channels_last_s=statistics.median(nhwc for _, nhwc in pairs),
        pairs=len(pairs),
    )


def measure_format(step_s: Callable[[bool], float], *, clock: Callable[[], float] = time.perf_counter) -> FormatChoice:
    """Time both layouts in alternation, after a warm-up pair.

    Args:
        step_s: Runs a step, with NHWC memory or without; returns its seconds.
        clock: Returns seconds; an argument for tests.
    """
    began = clock()
    pairs = [_pair(step_s, first=False)]  # the warm-up pair alone decides if it used up the time
    number = 0
    while number < MOST_PAIRS and clock() - began < MOST_SECONDS:
        if number == 0:
            pairs = []
        pairs.append(_pair(step_s, first=number % 2 == 1))
        number += 1
    return choose_format(pairs)


def timed_images(micro_batch: int, *, one_image_s: float) -> int:
    """Return the number of images of a timed step: the micro-batch, or fewer to leave time for a few pairs.

    Args:
        micro_batch: Micro-batch of the run.
        one_image_s: Seconds of a step of one image; ``n`` images take at most ``n`` times as long.
    """
    affordable = MOST_SECONDS / (2 * (1 + _LEAST_PAIRS) * max(one_image_s, 1e-9))
    return max(1, min(micro_batch, int(affordable)))


def _pair(step_s: Callable[[bool], float], *, first: bool) -> tuple[float, float]:
    """Run a step of each layout, the given one first; returns the seconds, NCHW first."""
    seconds = {layout: step_s(layout) for layout in (first, not first)}
    return seconds[False], seconds[True]
