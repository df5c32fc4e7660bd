"""Errors of one rank, known to all."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fake_engine import ALONE, run_ranks

from synfundus.distributed.agreement import on_rank_0, raise_together, share_out, together
from synfundus.distributed.world import World
from synfundus.errors import CorruptShard, DataError, Interrupted, StorageError


def test_without_a_fault_nothing_is_raised() -> None:
    assert run_ranks(3, lambda world: raise_together(None, world)) == [None, None, None]


def test_every_rank_raises_its_own_fault_or_the_first_ranks() -> None:
    faults = [None, CorruptShard("bent", where="shard 7"), DataError("other")]
    results = run_ranks(3, lambda world: raise_together(faults[world.rank], world))
    assert results[1:] == faults[1:]
    assert type(results[0]) is CorruptShard
    assert (results[0].message, results[0].where) == ("bent", "shard 7")


def test_an_error_nobody_expected_arrives_with_its_rank_and_traceback() -> None:
    results = run_ranks(2, lambda world: raise_together(KeyError("gone") if world.rank else None, world))
    assert isinstance(results[0], RuntimeError)
    assert str(results[0]).startswith("rank 1 failed:\n")
    assert "KeyError: 'gone'" in str(results[0])


def test_a_block_that_fails_on_one_rank_fails_on_all() -> None:
    def work(world: World) -> str:
        with together(world):
            if world.rank == 1:
                raise DataError("torn")
        return "behind it"

    assert all(isinstance(result, DataError) and result.message == "torn" for result in run_ranks(3, work))

    def fine(world: World) -> int:
        with together(world):
            own = world.rank
        return own

    assert run_ranks(3, fine) == [0, 1, 2]


def test_what_rank_0_does_alone_has_one_result_everywhere() -> None:
    done: list[int] = []

    def work(world: World) -> str:
        def note() -> str:
            done.append(world.rank)
            return "result"

        return on_rank_0(note, world)

    assert run_ranks(3, work) == ["result"] * 3
    assert done == [0]


def test_what_rank_0_fails_at_fails_everywhere() -> None:
    def work(world: World) -> None:
        on_rank_0(fail, world)

    def fail() -> None:
        raise StorageError("disk full")

    assert all(isinstance(result, StorageError) and result.message == "disk full" for result in run_ranks(3, work))
    with pytest.raises(StorageError):
        on_rank_0(fail, ALONE)


@pytest.mark.parametrize("count", [0, 2, 3, 7])
def test_shared_out_work_gives_every_rank_all_results_in_order(count: int) -> None:
    done: list[tuple[int, int]] = []

    def work(world: World) -> list[int]:
        def share(mine: Sequence[int]) -> list[int]:
            done.extend((unit, world.rank) for unit in mine)
            return [unit**2 for unit in mine]

        return share_out(range(count), share, world)

    assert run_ranks(3, work) == [[unit**2 for unit in range(count)]] * 3
    assert sorted(done) == [(unit, unit % 3) for unit in range(count)]


def test_an_interruption_of_one_rank_reaches_all_but_no_rank_survives_the_fault_of_another() -> None:
    faults: list[Exception | None] = [None, Interrupted("later"), None]

    def work(world: World) -> list[int]:
        def share(mine: Sequence[int]) -> list[int]:
            if fault := faults[world.rank]:
                raise fault
            return list(mine)

        return share_out(range(3), share, world)

    assert [type(result) for result in run_ranks(3, work)] == [Interrupted] * 3
    faults[2] = DataError("torn")
    assert [type(result) for result in run_ranks(3, work)] == [DataError] * 3
