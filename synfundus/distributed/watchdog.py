"""A thread that detects a stalled rank and ends the job with the stacks of all ranks.

Work that could wait forever is registered under a name: a step waits for the other ranks, a batch for its shard, a save
for the disk. When one exceeds its limit, the rank writes the stacks of all its threads and sets its status, on which
the other ranks do the same; all exit with 75, so that a batch script requeues the job. A rank whose interpreter is
blocked by one C call cannot run this thread: Python's own timer (faulthandler) then writes the stacks.
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

from synfundus.distributed.requeue import request_requeue
from synfundus.distributed.world import StatusStore
from synfundus.errors import Stalled

T = TypeVar("T")
PHASE_PATIENCE = 10
"""Limit of work that is no step (validation, a preview, a start, an export), as a multiple of the watchdog's."""
_STATUS = "stalled"
_STANDARD_ERROR = 2
"""By number: a replacement of `sys.stderr` need not have a file."""
_MOST_POLL_S = 5.0
_PATIENCE_S = 3.0
"""Time for what may itself hang: setting the status, naming a sample."""


@dataclass(frozen=True)
class _Activity:
    """Work that should end."""

    what: Callable[[], str]
    began: float
    limit_s: float


class Watchdog:
    """Watches one rank.

    Args:
        rank: This rank.
        world_size: Number of ranks.
        store: Tells the ranks which of them has stalled.
        limit_s: Limit of work that asks for no other; 0 turns the watchdog off.
        longest_phase_s: Upper limit of a phase: below the timeout of the ranks that wait for it.
    """

    def __init__(
        self, *, rank: int, world_size: int, store: StatusStore, limit_s: float, longest_phase_s: float = math.inf
    ) -> None:
        self._rank = rank
        self._world_size = world_size
        self._store = store
        self._limit_s = limit_s
        self._phase_s = min(PHASE_PATIENCE * limit_s, longest_phase_s)
        self._poll_s = min(_MOST_POLL_S, max(0.05, limit_s / 10))
        self._activities: dict[int, _Activity] = {}
        self._next_number = 0
        self._stalled = ""
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
        # a second thread: reading waits for the rank that hosts the store, and that may be the stalled one
        listen = threading.Thread(target=self._listen, name="watchdog-status", daemon=True)
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
        """Expect the block to end within a limit. Any thread may call it, several at a time too.

        Args:
            what: Names the work; called only if it does not end.
            patience: Limit as a multiple of the watchdog's.
        """
        return self._expect(what, patience * self._limit_s)

    def phase(self, what: str) -> AbstractContextManager[None]:
        """Expect the block to end within the limit of a phase: work other ranks wait for that is no step."""
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
            # set anew in each round: it fires only if this thread cannot run
            faulthandler.dump_traceback_later(self._limit_s + 2 * self._poll_s, exit=True, file=_STANDARD_ERROR)
            name = f"rank {self._rank} of {self._world_size}"
            now = time.monotonic()
            overdue = next((one for one in self._current() if now - one.began > one.limit_s), None)
            if overdue is not None:
                faulthandler.cancel_dump_traceback_later()
                text = f"no end of {_told(overdue)} after {time.monotonic() - overdue.began:.0f} s"
                _try(partial(self._store.set, _STATUS, json.dumps({"rank": self._rank, "text": text})))
                self._end(f"{name}: {text}")
            if self._stalled:
                faulthandler.cancel_dump_traceback_later()
                doing = ", ".join(map(_told, self._current())) or "nothing that is watched"
                self._end(f"{name} is at: {doing}; it ends because {self._stalled}")

    def _listen(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone with its rank: collectives notice that themselves
            while not self._ended.wait(self._poll_s):
                status = self._store.get(_STATUS)
                if status is not None:
                    found = json.loads(status)
                    self._stalled = f"rank {found['rank']} reports {found['text']}"
                    return

    def _current(self) -> list[_Activity]:
        with self._lock:
            return list(self._activities.values())

    def _end(self, headline: str) -> None:
        """Write the stacks in one piece and exit."""
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
            file.seek(0)
            stacks = file.read()
        text = f"Nothing moves\n  {headline}\n  stacks of its threads:\n".encode() + stacks
        text += b"run the same command again to resume from the last checkpoint\n"
        with contextlib.suppress(OSError):
            os.write(_STANDARD_ERROR, text)
        _try(request_requeue)
        if self._world_size > 1:
            # until the other ranks have read the status, which rank 0 hosts: its exit would look like a fault to them
            time.sleep(2.5 * self._poll_s)
        os._exit(Stalled.exit_code)


def _told(activity: _Activity) -> str:
    """Name an activity; to name a sample may itself wait for what is stalled."""
    return _try(activity.what) or "something that cannot be named now"


def _try(work: Callable[[], T]) -> T | None:
    """Run something that may fail or never end; None if it does."""
    results: list[T] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            results.append(work())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return results[0] if results else None
