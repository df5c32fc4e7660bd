"""A thread that looks whether the rank still moves, and ends the job with everybody's stacks when one does not.

Whatever can wait for ever says what it waits for: a step for the other ranks, a batch for its shard, a save for the
disk. When one takes longer than its limit, the rank writes where all its threads stand and puts a notice up for the
others, which do the same; all exit with 75, so that a batch script queues the job again. A rank whose interpreter is
held by one C call cannot run this thread: Python's own timer (faulthandler) then writes the stacks, without help.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from synfundus.distributed.stall_mark import leave_mark
from synfundus.distributed.world import NoticeBoard
from synfundus.errors import Stalled

T = TypeVar("T")
PHASE_PATIENCE = 10
"""Times the limit that what is no step may take: a validation pass, a preview; at most that, a start or an export."""
_NOTICE = "stalled"
_STANDARD_ERROR = 2
"""By its number: whoever has replaced `sys.stderr` need not have given it a file."""
_MOST_POLL_S = 5.0
_PATIENCE_S = 3.0
"""Time for what may hang itself: putting up a notice, naming a sample."""


@dataclass(frozen=True)
class _Activity:
    """Something that should end."""

    what: Callable[[], str]
    began: float
    limit_s: float


class Watchdog:
    """Watches one rank.

    Args:
        rank: This rank.
        world_size: Number of ranks.
        board: Where the ranks leave one another notices.
        limit_s: Longest time anything may take that does not ask for more; 0 watches nothing.
        longest_phase_s: Longest time a phase may take: less than the others wait for a rank in it.
    """

    def __init__(
        self, *, rank: int, world_size: int, board: NoticeBoard, limit_s: float, longest_phase_s: float = math.inf
    ) -> None:
        self._rank = rank
        self._world_size = world_size
        self._board = board
        self._limit_s = limit_s
        self._phase_s = min(PHASE_PATIENCE * limit_s, longest_phase_s)
        self._poll_s = min(_MOST_POLL_S, max(0.05, limit_s / 10))
        self._activities: dict[int, _Activity] = {}
        self._next_number = 0
        self._notice = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch while the block runs."""
        if self._limit_s == 0:
            yield
            return
        self._ended.clear()
        watch = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        # apart: the rank that keeps the notices may be the one that stands still, and reading waits for it
        listen = threading.Thread(target=self._listen, name="watchdog-notices", daemon=True)
        watch.start()
        listen.start()
        try:
            yield
        finally:
            self._ended.set()
            watch.join()
            faulthandler.cancel_dump_traceback_later()
            listen.join(_PATIENCE_S)  # the store it reads from may be closed next

    def expect_end(self, what: Callable[[], str], *, patience: int = 1) -> AbstractContextManager[None]:
        """Expect the block to end within a limit. Any thread may call it, also several at a time.

        Args:
            what: Says what the block does; asked only when it does not end.
            patience: Its limit as a multiple of the watchdog's.
        """
        return self._expect(what, patience * self._limit_s)

    def phase(self, what: str) -> AbstractContextManager[None]:
        """Expect the end of work that is no step and that other ranks wait for, such as a start."""
        return self._expect(lambda: what, self._phase_s)

    @contextlib.contextmanager
    def _expect(self, what: Callable[[], str], limit_s: float) -> Iterator[None]:
        with self._lock:
            number = self._next_number
            self._next_number += 1
            self._activities[number] = _Activity(what, time.monotonic(), limit_s)
        try:
            yield
        finally:
            with self._lock:
                del self._activities[number]

    def _watch(self) -> None:
        while not self._ended.wait(self._poll_s):
            # set again each time: it comes only if this thread is kept from running
            faulthandler.dump_traceback_later(self._limit_s + 2 * self._poll_s, exit=True, file=_STANDARD_ERROR)
            name = f"rank {self._rank} of {self._world_size}"
            overdue = self._overdue()
            if overdue is not None:
                faulthandler.cancel_dump_traceback_later()
                text = f"no end of {_told(overdue)} after {time.monotonic() - overdue.began:.0f} s"
                _try(partial(self._post, text))
                self._end(f"{name}: {text}")
            if self._notice:
                faulthandler.cancel_dump_traceback_later()
                self._end(f"{name} is at: {self._doing()}; it ends because {self._notice}")

    def _listen(self) -> None:
        with contextlib.suppress(RuntimeError):  # who keeps the notices is gone: collectives notice that themselves
            while not self._ended.wait(self._poll_s):
                notice = self._board.read(_NOTICE)
                if notice is not None:
                    found = json.loads(notice)
                    self._notice = f"rank {found['rank']} reports {found['text']}"
                    return

    def _overdue(self) -> _Activity | None:
        """Return what has taken too long."""
        now = time.monotonic()
        overdue = [activity for activity in self._current() if now - activity.began > activity.limit_s]
        return overdue[0] if overdue else None

    def _doing(self) -> str:
        return ", ".join(map(_told, self._current())) or "nothing that is watched"

    def _current(self) -> list[_Activity]:
        with self._lock:
            return list(self._activities.values())

    def _post(self, text: str) -> None:
        self._board.post(_NOTICE, json.dumps({"rank": self._rank, "text": text}))

    def _end(self, headline: str) -> None:
        """Write the stacks in one piece and leave."""
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
            file.seek(0)
            stacks = file.read()
        text = f"Nothing moves\n  {headline}\n  stacks of its threads:\n".encode() + stacks
        text += b"the same command goes on from the last checkpoint\n"
        with contextlib.suppress(OSError):
            os.write(_STANDARD_ERROR, text)
        _try(leave_mark)
        if self._world_size > 1:
            # until the others have read the notice, which rank 0 keeps: they would take its end for a fault
            time.sleep(2.5 * self._poll_s)
        os._exit(Stalled.exit_code)


def _told(activity: _Activity) -> str:
    """Say what it is; naming a sample may itself wait for what stands still."""
    return _try(activity.what) or "something that cannot be named now"


def _try(work: Callable[[], T]) -> T | None:
    """Run something that may fail or never end; None then."""
    results: list[T] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            results.append(work())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return results[0] if results else None
