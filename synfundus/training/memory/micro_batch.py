"""The largest micro-batch that fits into memory: which sizes are tried and which is chosen. `rehearsal` tries one.

Candidates are the divisors of a rank's share of the global batch, so that the choice changes only rounding. They are
tried in ascending order. On a GPU the allocator refuses one that is too large, without harm. On a CPU the process could
be killed, so a candidate is tried only if its forecast fits: let a pass over b images have m_t(b) = c_t + s_t b bytes
alive at moment t, with c_t >= 0 for what does not grow (gradients, workspaces). Then the peak over rb images, r >= 1,
is at most r times the peak over b. A line through two sizes would be no such bound: the peak is a maximum of lines, and
gradients may hide how fast the others rise.

Source: ADR-0006; the bound is elementary.
"""

from __future__ import annotations

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
