"""Threads that run requests side by side, and that keep no process alive."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from synfundus.processes.daemon_threads import DaemonThreads


def test_results_come_in_order_and_the_work_is_done_side_by_side() -> None:
    threads = DaemonThreads(4, name="test")
    meeting = threading.Barrier(4, timeout=20)

    def meet(number: int) -> int:
        meeting.wait()
        return number * number

    assert threads.map(meet, range(8)) == [number * number for number in range(8)]
    threads.close()


def test_no_more_threads_are_started_than_are_needed() -> None:
    threads = DaemonThreads(4, name="few")
    for number in range(20):
        assert threads.submit(abs, -number).result() == number
        time.sleep(0.001)
    started = [thread for thread in threading.enumerate() if thread.name.startswith("few-")]
    assert 1 <= len(started) <= 2
    threads.close()
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()


def test_a_failure_is_raised_where_the_result_is_asked_for() -> None:
    threads = DaemonThreads(2, name="test")
    with pytest.raises(ZeroDivisionError):
        threads.map(lambda number: 1 // number, [1, 0])
    assert threads.submit(len, "abc").result() == 3
    threads.close()


def test_closing_cancels_what_has_not_begun_and_waits_for_nothing() -> None:
    threads = DaemonThreads(1, name="test")
    go_on, began = threading.Event(), threading.Event()

    def work() -> str:
        began.set()
        go_on.wait(20)
        return "done"

    first, second = threads.submit(work), threads.submit(work)
    assert began.wait(20)
    threads.close()
    assert second.cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        threads.submit(work)
    go_on.set()
    assert first.result(20) == "done"


def test_a_process_ends_while_a_thread_waits() -> None:
    code = (
        "import time; from synfundus.processes.daemon_threads import DaemonThreads\n"
        "DaemonThreads(2, name='stuck').submit(time.sleep, 60); time.sleep(0.2)"
    )
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=50).returncode == 0
    assert time.monotonic() - began < 30
