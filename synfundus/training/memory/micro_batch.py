"""The largest micro-batch that memory holds: candidates, what is tried, what is chosen. How it is tried is `rehearsal`.

Candidates are the divisors of a rank's share of the global batch, so that the choice changes rounding and nothing else.
They are tried in rising order. On a GPU one that is too large is refused by the allocator, and nothing is lost. On a
host it could cost the process its life, so a candidate is tried only where its forecast fits: let a pass over b images
have m_t(b) = c_t + s_t b bytes alive at moment t, with c_t >= 0 for what does not grow (gradients, workspaces). Then
the peak over rb images, r >= 1, is at most r times the peak over b. A line through two sizes would be no such bound:
the peak is a maximum of lines, and gradients may hide how fast the others rise.

Source: ADR-0006; the bound is elementary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from synfundus.distributed.agreement import raise_together
from synfundus.distributed.world import World
from synfundus.errors import ConfigError
from synfundus.training.memory.footprint import GIB


@dataclass(frozen=True)
class Budget:
    """What a rank may use.

    Attributes:
        bytes: Of its device, or of its part of the host.
        fixed_bytes: What will be taken whatever the micro-batch: masters, moments, averages, buckets.
        careful: Try only what is forecast to fit.
    """

    bytes: int
    fixed_bytes: int
    careful: bool


@dataclass(frozen=True)
class Need:
    """What a candidate takes on one rank, the fixed part included.

    Attributes:
        bytes: At the peak; None when memory ran out.
        budget_bytes: What there is.
        forecast: An upper bound; the candidate was not tried.
    """

    bytes: int | None
    budget_bytes: int
    forecast: bool = False

    @property
    def fits(self) -> bool:
        """Whether there is enough."""
        return self.bytes is not None and self.bytes <= self.budget_bytes

    @property
    def fill(self) -> float:
        """Part of the budget that is taken; infinite when memory ran out."""
        return float("inf") if self.bytes is None else self.bytes / max(self.budget_bytes, 1)

    def __str__(self) -> str:
        budget = f"{self.budget_bytes / GIB:.1f} GiB"
        if self.bytes is None:
            return f"more than {budget}"
        return f"{'up to ' if self.forecast else ''}{self.bytes / GIB:.1f} GiB of {budget}"


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        size: Images per rank and forward pass.
        need: What it takes on the fullest rank.
        refused: The next candidate and what it would take; None when a rank's whole share fits.
    """

    size: int
    need: Need
    refused: tuple[int, Need] | None

    def describe(self) -> str:
        """Say it in a line."""
        if self.refused is None:
            return f"micro-batch {self.size} found: all of a rank's share ({self.need})"
        larger, need = self.refused
        return f"micro-batch {self.size} found ({larger} would need {need})"


def candidates(share: int) -> list[int]:
    """Return the divisors of a rank's share of the global batch, rising."""
    small = [size for size in range(1, int(share**0.5) + 1) if share % size == 0]
    return sorted({*small, *(share // size for size in small)})


def forecast(size: int, *, tried: int, peak_bytes: int) -> int:
    """Return an upper bound of the peak over ``size`` images from that over ``tried``, which are not more."""
    return -(-peak_bytes * size // tried)


def fullest(needs: Sequence[Need]) -> Need:
    """Return the need of the rank that has least left: what decides for all."""
    return max(needs, key=lambda need: need.fill)


def find_micro_batch(
    share: int, *, peak: Callable[[int], int | None], budget: Budget, world: World, where: str
) -> Finding:
    """Try candidates in rising order and return the largest that fits on every rank. Collective.

    All ranks try the same candidates at the same time, as they will train.

    Args:
        share: Images of a global batch on a rank.
        peak: Runs a pass over so many images on this rank; returns its most bytes, None when memory ran out.
        budget: What this rank may use.
        world: The job.
        where: The option this settles.

    Raises:
        ConfigError: On every rank when not even one image fits on one of them.
        Exception: On every rank what a pass of any has met.
    """
    found: tuple[int, Need] | None = None
    refused: tuple[int, Need] | None = None
    last: tuple[int, int] | None = None  # the size this rank has tried, and its peak
    for size in candidates(share):
        if budget.careful:
            # before the first pass only the fixed part is known
            most = 0 if last is None else forecast(size, tried=last[0], peak_bytes=last[1])
            foreseen = Need(budget.fixed_bytes + most, budget.bytes, forecast=last is not None)
            foreseen = fullest(world.all_gather(foreseen))
            if not foreseen.fits:
                refused = (size, foreseen)
                break
        taken = _pass(peak, size, world)
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
            hint="turn on gradient_checkpointing, use more ranks, or a smaller network",
        )
    return Finding(*found, refused)


def _pass(peak: Callable[[int], int | None], size: int, world: World) -> int | None:
    """Run a pass; an error of any rank is raised on all. Collective."""
    taken: int | None = None
    fault: Exception | None = None
    try:
        taken = peak(size)
    except Exception as error:  # noqa: BLE001 - raised on every rank
        fault = error
    raise_together(fault, world)
    return taken
