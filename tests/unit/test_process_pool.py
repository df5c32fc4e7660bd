from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from synfundus.errors import DataError, LaunchError
from synfundus.processes import pool as process_pool
from synfundus.processes.pool import Lost, process_map
from synfundus.processes.stop_signals import STOP_SIGNALS


def square(number: int) -> int:
    time.sleep(0.002 * (number % 3))
    return number * number


def odd_is_wrong(number: int) -> int:
    if number % 2:
        raise DataError(f"{number} is odd", where="here", hint="double it")
    return number


def breaks(number: int) -> int:
    return number // 0


def die_of_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_once(place: str) -> str:
    """Die the first time."""
    marker = Path(place)
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def sleep_at_two(number: int) -> int:
    if number == 2:
        time.sleep(60)
    return number


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order_and_the_pool_serves_again(workers: int) -> None:
    with process_map(workers) as mapped:
        assert list(mapped(square, range(40))) == [n * n for n in range(40)]
        assert list(mapped(square, range(5))) == [n * n for n in range(5)]
        assert list(mapped(square, [])) == []


def test_tasks_are_taken_as_they_are_needed() -> None:
    taken = []

    def tasks() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    with process_map(2) as mapped:
        results = mapped(square, tasks())
        assert next(results) == 0
        assert len(taken) <= 2 * 4 + 1


def test_an_error_of_ours_arrives_whole_and_a_foreign_one_without_its_text() -> None:
    with process_map(1) as mapped:
        with pytest.raises(DataError) as caught:
            list(mapped(odd_is_wrong, [2, 4, 5]))
        assert (caught.value.message, caught.value.where, caught.value.hint) == ("5 is odd", "here", "double it")
        with pytest.raises(LaunchError, match="ZeroDivisionError in breaks"):
            list(mapped(breaks, [1]))
        assert list(mapped(square, [3])) == [9]


def test_a_task_whose_workers_die_twice_is_named_and_the_rest_is_done() -> None:
    lost: list[Lost[int]] = []

    def name(one: Lost[int]) -> int:
        lost.append(one)
        return -1

    with process_map(2) as mapped:
        assert list(mapped(die_of_three, range(8), lost=name)) == [0, 1, 2, -1, 4, 5, 6, 7]
    assert [(one.task, one.hung) for one in lost] == [(3, False)]
    assert lost[0].detail == "its worker process died: it was killed by signal 9, 2 times"


def test_a_worker_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    with process_map(1) as mapped:
        assert list(mapped(die_once, [str(tmp_path / "a"), str(tmp_path / "b")])) == ["done", "done"]


def test_without_anybody_to_name_it_a_lost_task_ends_the_run() -> None:
    with process_map(1) as mapped, pytest.raises(LaunchError, match="killed by signal 9"):
        list(mapped(die_of_three, range(8)))


def test_a_worker_that_hangs_is_ended_and_named() -> None:
    began = time.monotonic()
    with process_map(2, limit_s=3.0) as mapped:
        assert list(mapped(sleep_at_two, range(6), lost=lambda one: -1 if one.hung else -2)) == [0, 1, -1, 3, 4, 5]
    assert time.monotonic() - began < 30


def test_a_worker_that_does_not_start_in_time_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_pool, "_START_S", 0.0)
    with process_map(1) as mapped, pytest.raises(LaunchError, match="did not start"):
        list(mapped(square, [1]))


def test_the_time_a_worker_takes_to_start_is_not_the_task_s() -> None:
    with process_map(1, limit_s=0.1) as mapped:  # an interpreter with its imports takes longer than that
        assert list(mapped(operator.neg, [3])) == [-3]


PARENT = """
import sys, time
from synfundus.processes.pool import process_map
def never(number):
    time.sleep(600)
if __name__ == "__main__":
    with process_map(2) as mapped:
        pool = mapped.workers()
        print(*(worker.process.pid for worker in pool), flush=True)
        list(mapped(never, range(4)))
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    folders = f"{Path(__file__).parent}:{Path(__file__).parents[2]}"
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": folders}
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    time.sleep(1.5)  # they are at work, not at their pipes
    parent.kill()
    parent.wait()
    parent.stdout.close()
    ends = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < ends:
        time.sleep(0.1)
    left = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_to_every_process_of_a_step_ends_no_worker(number: signal.Signals) -> None:
    with process_map(2) as run:
        for worker in run.workers():  # their interpreters are only starting
            assert worker.process.pid is not None
            os.kill(worker.process.pid, number)
        first = {worker.process.pid for worker in run.workers()}
        assert list(run(square, range(8))) == [number * number for number in range(8)]
        for pid in first:
            assert pid is not None
            os.kill(pid, number)
        assert list(run(square, range(8))) == [number * number for number in range(8)]
        assert {worker.process.pid for worker in run.workers()} == first
