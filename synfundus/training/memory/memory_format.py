"""Whether convolutions are faster on NHWC memory: decided on pairs of timed steps, not assumed.

It depends on the card, the precision and the widths: cuDNN's bf16 kernels want NHWC, fp32 ones often do not, and on a
CPU it is a toss-up. Rounding may differ between the two, so a run keeps what it began with.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

LEAST_GAIN = 0.02
"""Part of a step that NHWC must save; below, both count as equally fast and torch's own layout is kept."""
MOST_PAIRS = 15
MOST_SECONDS = 4.0
"""After this the pairs made so far decide."""
_LEAST_PAIRS = 3


@dataclass(frozen=True)
class FormatChoice:
    """What was measured.

    Attributes:
        channels_last: Use NHWC.
        contiguous_s: Median seconds of a step on NCHW memory.
        channels_last_s: Median seconds of a step on NHWC memory.
        pairs: Steps of each.
    """

    channels_last: bool
    contiguous_s: float
    channels_last_s: float
    pairs: int

    def describe(self) -> str:
        """Say it in a line."""
        return (
            f"channels_last {'on' if self.channels_last else 'off'}: a step takes {1e3 * self.channels_last_s:.1f} ms "
            f"with, {1e3 * self.contiguous_s:.1f} ms without (median of {self.pairs})"
        )


def choose_format(pairs: list[tuple[float, float]]) -> FormatChoice:
    """Decide on pairs of seconds, NCHW first: by the median of their ratios, in which slow spells cancel out."""
    ratio = statistics.median(nhwc / nchw for nchw, nhwc in pairs)
    return FormatChoice(
        channels_last=ratio < 1.0 - LEAST_GAIN,
        contiguous_s=statistics.median(nchw for nchw, _ in pairs),
        channels_last_s=statistics.median(nhwc for _, nhwc in pairs),
        pairs=len(pairs),
    )


def measure_format(step_s: Callable[[bool], float], *, clock: Callable[[], float] = time.perf_counter) -> FormatChoice:
    """Time both layouts in turns, after one pair that warms up.

    Args:
        step_s: Runs a step, with NHWC memory or without; returns its seconds.
        clock: Seconds; tests have their own.
    """
    began = clock()
    pairs = [_pair(step_s, first=False)]  # the warm-up decides alone where it has used up the time
    number = 0
    while number < MOST_PAIRS and clock() - began < MOST_SECONDS:
        if number == 0:
            pairs = []
        pairs.append(_pair(step_s, first=number % 2 == 1))
        number += 1
    return choose_format(pairs)


def timed_images(micro_batch: int, *, one_image_s: float) -> int:
    """Return how many images a timed step has: the micro-batch, or as many as leave time for a few pairs.

    Args:
        micro_batch: What the run takes.
        one_image_s: Seconds of a step of one image; more images take at most as many times that.
    """
    affordable = MOST_SECONDS / (2 * (1 + _LEAST_PAIRS) * max(one_image_s, 1e-9))
    return max(1, min(micro_batch, int(affordable)))


def _pair(step_s: Callable[[bool], float], *, first: bool) -> tuple[float, float]:
    """Run a step of each layout, the given one first; returns the seconds, NCHW first."""
    seconds = {layout: step_s(layout) for layout in (first, not first)}
    return seconds[False], seconds[True]
