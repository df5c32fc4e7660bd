"""Errors that every rank learns of: a rank that fails must not leave the others waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

from synfundus.distributed.start import HINT, differences
from synfundus.distributed.world import World, share_of
from synfundus.errors import ErrorReport, Interrupted, LaunchError
from synfundus.storage import documents

T = TypeVar("T")
U = TypeVar("U")


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


def require_same(document: Mapping[str, object], world: World) -> None:
    """Raise on every rank unless all found the same. Collective.

    Args:
        document: What this rank's work depends on, as JSON; small.
        world: The job.

    Raises:
        LaunchError: Names the first rank that found something else than rank 0, and what.
    """
    first, *others = world.all_gather(documents.flatten(documents.as_json(document)))
    for rank, other in enumerate(others, start=1):
        if verdict := differences(first, other, rank=rank):
            raise LaunchError(verdict, where=f"rank {world.rank}", hint=HINT)


def share_out(units: Sequence[U], work: Callable[[Sequence[U]], Sequence[T]], world: World) -> list[T]:
    """Let every rank do its share of some units; return all results, or raise a rank's error, everywhere. Collective.

    Args:
        units: The same on all ranks.
        work: Returns a result for each of the units it gets, at least one; not collective, the results small and plain.
        world: The job.

    Returns:
        The result of each unit, in their order.
    """
    results: Sequence[T] = ()
    fault: Exception | None = None
    try:
        results = work(mine) if (mine := share_of(units, world)) else ()
    except Exception as error:  # noqa: BLE001 - raised on every rank
        fault = error
    shares = cast("list[Sequence[T]]", _exchange(fault, results, world))
    return [shares[number % world.size][number // world.size] for number in range(len(units))]


def _exchange(fault: Exception | None, result: object, world: World) -> list[object]:
    """Return every rank's result, or raise as `raise_together` does. Collective.

    A run survives an interruption but no other fault, so one rank's other fault is raised in place of interruptions.
    """
    answers = world.all_gather((None if fault is None else ErrorReport.of(fault), result))
    reports = [(rank, report) for rank, (report, _) in enumerate(answers) if report is not None]
    for rank, report in sorted(reports, key=lambda item: item[1].kind == Interrupted.__name__):
        postponed = isinstance(fault, Interrupted) and report.kind != Interrupted.__name__
        raise fault if fault is not None and not postponed else report.to_error(source=f"rank {rank}")
    return [result for _, result in answers]
