"""What a watchdog does in a process of its own, which it ends."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from synfundus.distributed.watchdog import Watchdog
from synfundus.distributed.world import LocalStatusStore

SCRIPT = """
import threading, time
from synfundus.distributed.watchdog import Watchdog
from synfundus.distributed.world import LocalStatusStore

store = LocalStatusStore()
watchdog = Watchdog(rank=0, world_size=1, store=store, limit_s=0.5)
with watchdog.running():
    {body}
print("went on")
"""


def ends(body: str) -> subprocess.CompletedProcess[str]:
    code = SCRIPT.format(body=body)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_what_takes_too_long_ends_the_process_with_its_name_and_stack() -> None:
    done = ends("with watchdog.expect_end(lambda: 'the tea'): time.sleep(30)")
    assert done.returncode == 75
    assert done.stdout == ""
    assert "rank 0 of 1: no end of the tea after" in done.stderr
    assert 'File "<string>", line 9' in done.stderr


def test_a_notice_of_another_rank_ends_the_process_as_well() -> None:
    done = ends(
        'store.set(\'stalled\', \'{"rank": 3, "text": "no end of the tea after 9 s"}\')\n'
        "    with watchdog.expect_end(lambda: 'the cake'): time.sleep(30)"
    )
    assert done.returncode == 75
    assert "rank 0 of 1 is at: the cake; it ends because rank 3 reports no end of the tea after 9 s" in done.stderr


def test_a_name_that_does_not_come_delays_nothing_for_long() -> None:
    done = ends("with watchdog.expect_end(lambda: threading.Event().wait()): time.sleep(30)")
    assert done.returncode == 75
    assert "no end of something that cannot be named now" in done.stderr


@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(2)",
        "for _ in range(8):\n        with watchdog.expect_end(lambda: 'the tea'): time.sleep(0.2)",
        "with watchdog.expect_end(lambda: 'the tea', patience=20): time.sleep(2)",
    ],
)
def test_what_ends_in_time_or_is_not_watched_goes_on(body: str) -> None:
    done = ends(body)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


def test_a_phase_may_take_longer_but_no_longer_than_the_others_wait() -> None:
    body = "store = LocalStatusStore()\n    with watchdog.phase('the start'): time.sleep(2)"
    assert ends(body).stdout == "went on\n"
    code = SCRIPT.format(body="with watchdog.phase('the start'): time.sleep(30)")
    code = code.replace("limit_s=0.5", "limit_s=0.5, longest_phase_s=1.0")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 75
    assert "no end of the start after 1 s" in done.stderr


def test_a_limit_of_nought_watches_nothing() -> None:
    watchdog = Watchdog(rank=0, world_size=1, store=LocalStatusStore(), limit_s=0)
    with watchdog.running(), watchdog.expect_end(lambda: "the tea"):
        time.sleep(0.3)
