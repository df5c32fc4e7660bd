"""Errors that every rank learns of: a rank that fails must not leave the others waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from synfundus.distributed.world import World
from synfundus.errors import ErrorReport

T = TypeVar("T")


def raise_together(fault: Exception | None, world: World) -> None:
    """Raise on every rank if any has a fault: its own, else that of the lowest rank with one. Collective.

    Args:
        fault: What went wrong on this rank, if anything.
        world: The job.
    """
    _exchange(fault, None, world)


@contextmanager
def together(world: World) -> Iterator[None]:
    """Raise what a block raises on any rank on every rank. Collective at its end, the block itself must not be."""
    fault: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised below, on every rank
        fault = error
    raise_together(fault, world)


def on_rank_0(work: Callable[[], T], world: World) -> T:
    """Run something on rank 0 alone and return its result, or raise its error, on every rank. Collective.

    Args:
        work: Must not be collective; its result is small and plain.
        world: The job.
    """
    result: T | None = None
    fault: Exception | None = None
    if world.rank == 0:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised on every rank
            fault = error
    return cast("T", _exchange(fault, result, world)[0])


def _exchange(fault: Exception | None, result: object, world: World) -> list[object]:
    """Return every rank's result, or raise as `raise_together` does. Collective."""
    answers = world.all_gather((None if fault is None else ErrorReport.of(fault), result))
    if fault is not None:
        raise fault
    for rank, (report, _) in enumerate(answers):
        if report is not None:
            raise report.to_error(source=f"rank {rank}")
    return [result for _, result in answers]
