"""What a run measures at its start: the largest micro-batch that fits into memory, and the faster memory format.

`rehearsal` tries a micro-batch; which are tried and which is chosen is decided here. Candidates are the divisors of a
rank's share of the global batch, so that the choice changes only rounding. They are tried in ascending order. On a GPU
the allocator refuses one that is too large, without harm. On a CPU the process could be killed, so a candidate is tried
only if its forecast fits: let a pass over b images have m_t(b) = c_t + s_t b bytes alive at moment t, with c_t >= 0 for
what does not grow (gradients, workspaces). Then the peak over rb images, r >= 1, is at most r times the peak over b. A
line through two sizes would be no such bound: the peak is a maximum of lines, and gradients may hide how fast the
others rise.

Whether convolutions are faster with NHWC memory depends on the GPU, the precision and the widths: cuDNN's bf16 kernels
prefer it, fp32 ones often do not, and on a CPU either may win. Rounding may differ between the two, so a run keeps the
format it started with.

Source: ADR-0006; the bound is elementary.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from synfundus.distributed.agreement import together
from synfundus.distributed.world import World
from synfundus.errors import ConfigError
from synfundus.training.memory.footprint import GIB


@dataclass(frozen=True)
class MemoryBudget:
    """Memory a rank may use.

    Attributes:
        bytes: Memory of its device, or its share of the host's.
        fixed_bytes: Memory needed at any micro-batch: masters, moments, averages, buckets.
        careful: Try only sizes that are forecast to fit.
    """

    bytes: int
    fixed_bytes: int
    careful: bool


@dataclass(frozen=True)
class Need:
    """Memory a candidate needs on one rank, the fixed part included.

    Attributes:
        bytes: Peak; None if memory ran out.
        budget_bytes: Available memory.
        forecast: The peak is an upper bound; the candidate was not tried.
    """

    bytes: int | None
    budget_bytes: int
    forecast: bool = False

    @property
    def fits(self) -> bool:
        """Whether it fits."""
        return self.bytes is not None and self.bytes <= self.budget_bytes

    @property
    def fill(self) -> float:
        """Fraction of the budget it needs; infinite if memory ran out."""
        return float("inf") if self.bytes is None else self.bytes / max(self.budget_bytes, 1)

    def __str__(self) -> str:
        budget = f"{self.budget_bytes / GIB:.1f} GiB"
        if self.bytes is None:
            return f"more than {budget}"
        return f"{'up to ' if self.forecast else ''}{self.bytes / GIB:.1f} GiB of {budget}"


@dataclass(frozen=True)
class MicroBatchChoice:
    """The chosen micro-batch.

    Attributes:
        size: Images per rank and forward pass.
        need: Its memory on the fullest rank.
        refused: The next candidate and its memory; None if a rank's whole share fits.
    """

    size: int
    need: Need
    refused: tuple[int, Need] | None

    def describe(self) -> str:
        """Return a line for the log."""
        if self.refused is None:
            return f"micro-batch {self.size} found: all of a rank's share ({self.need})"
        larger, need = self.refused
        return f"micro-batch {self.size} found ({larger} would need {need})"


def candidates(share: int) -> list[int]:
    """Return the divisors of a rank's share of the global batch, ascending."""
    small = [size for size in range(1, int(share**0.5) + 1) if share % size == 0]
    return sorted({*small, *(share // size for size in small)})


def forecast(size: int, *, tried: int, peak_bytes: int) -> int:
    """Return an upper bound of the peak over ``size`` images from the peak over ``tried`` <= ``size`` images."""
    return -(-peak_bytes * size // tried)


def fullest(needs: Sequence[Need]) -> Need:
    """Return the need of the rank with the least memory left, which decides for all."""
    return max(needs, key=lambda need: need.fill)


def find_micro_batch(
    share: int, *, peak: Callable[[int], int | None], budget: MemoryBudget, world: World, where: str
) -> MicroBatchChoice:
    """Try candidates in ascending order and return the largest that fits on every rank. Collective.

    All ranks try the same candidates at the same time, as in training.

    Args:
        share: Images of a global batch on a rank.
        peak: Runs a pass over that many images on this rank; returns its peak bytes, None if memory ran out.
        budget: What this rank may use.
        world: The job.
        where: The option this determines.

    Raises:
        ConfigError: On every rank, if one image does not fit on one of them.
        Exception: On every rank, an error of any rank's pass.
    """
    found: tuple[int, Need] | None = None
    refused: tuple[int, Need] | None = None
    last: tuple[int, int] | None = None  # the last size this rank tried, and its peak
    for size in candidates(share):
        if budget.careful:
            # before the first pass only the fixed part is known
            most = 0 if last is None else forecast(size, tried=last[0], peak_bytes=last[1])
            foreseen = Need(budget.fixed_bytes + most, budget.bytes, forecast=last is not None)
            foreseen = fullest(world.all_gather(foreseen))
            if not foreseen.fits:
                refused = (size, foreseen)
                break
        with together(world):
            taken = peak(size)
        need = Need(None if taken is None else budget.fixed_bytes + taken, budget.bytes)
        worst = fullest(world.all_gather(need))
        if not worst.fits or taken is None:
            refused = (size, worst)
            break
        found, last = (size, worst), (size, taken)
    if found is None:
        raise ConfigError(
            f"not even one image fits: it needs {refused[1] if refused else 'too much'}",
            where=where,
            hint="turn on gradient_checkpointing, or use more ranks or a smaller network",
        )
    return MicroBatchChoice(*found, refused)


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
    warm_up = _pair(step_s, first=False)
    pairs: list[tuple[float, float]] = []
    while len(pairs) < MOST_PAIRS and clock() - began < MOST_SECONDS:
        pairs.append(_pair(step_s, first=len(pairs) % 2 == 1))
    return choose_format(pairs or [warm_up])  # the warm-up decides if it used up the time


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
