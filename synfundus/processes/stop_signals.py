"""Signals that ask a process to stop: Ctrl-C, a closed terminal, a scheduler, a limit of CPU time.

A training saves at the next step and exits with `Preempted`'s code. All other work is left at once: what is finished
is on disk, and the same command resumes from there, as after a kill. Either way one line says how far it came.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from synfundus.errors import Preempted, SynfundusError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
_REQUESTS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""What schedulers send before they end a job: it is to be queued again."""
_STANDARD_ERROR = 2
_SHOW_CURSOR = b"\x1b[?25h"

_LAST_ACTS_S = 3.0

before_leaving: list[Callable[[], None]] = []
"""What a process does before a signal ends it; must not raise."""
_bars: list[Callable[[], str]] = []


@contextmanager
def telling(describe: Callable[[], str]) -> Iterator[None]:
    """Let a function say how far the work in the block has come, should a signal end it."""
    _bars.append(describe)
    try:
        yield
    finally:
        _bars.remove(describe)


def how_far() -> str:
    """Return how far the innermost work has come: ``encoding, 64 of 3,000 images``; empty if nothing counts."""
    return _bars[-1]() if _bars else ""


def heeded_signals() -> tuple[signal.Signals, ...]:
    """Return the stop signals this process does not ignore; under nohup, or behind a script, it is to ignore some."""
    return tuple(number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN)


def exit_code_of(number: int) -> int:
    """Return the exit code of a process that a signal ends before there is anything to save.

    `Preempted`'s for a scheduler's request, else 128 + N: srun sends TERM to all ranks when one has failed and returns
    the highest code, which must not look like a reason to requeue.
    """
    return Preempted.exit_code if number in _REQUESTS else 128 + number


def say(text: str) -> None:
    """Write a line to standard error, whose reader may be gone; safe in a signal handler."""
    with contextlib.suppress(OSError):
        os.write(_STANDARD_ERROR, f"{text}\n".encode())


def leave_at_once(code: int) -> NoReturn:
    """Exit without another word: what `before_leaving` lists is done, and a terminal gets its cursor back."""
    # another thread: the main one may have been interrupted inside what these need
    last = threading.Thread(target=lambda: [act() for act in list(before_leaving)], daemon=True)
    with contextlib.suppress(RuntimeError):  # no more threads
        last.start()
        last.join(_LAST_ACTS_S)
    with contextlib.suppress(OSError):
        if os.isatty(_STANDARD_ERROR):
            os.write(_STANDARD_ERROR, _SHOW_CURSOR)
    os._exit(code)


@contextmanager
def handlers(handle: Callable[[int], None]) -> Iterator[None]:
    """Call a function at every heeded stop signal while the block runs; only possible in the main thread."""

    def handler(number: int, _frame: FrameType | None) -> None:
        handle(number)

    try:
        previous = {number: signal.signal(number, handler) for number in heeded_signals()}
    except ValueError:  # not the main thread: the embedding program handles its signals itself
        yield
        return
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@dataclass
class Ending:
    """What is known of the end of this process.

    Attributes:
        going_on: How the user resumes; may be empty.
        quiet: Say nothing: another rank does.
        code: Exit code, once it is decided: signals that come later do not change it.
        told: What a signal stopped, and how far it was.
    """

    going_on: str = ""
    quiet: bool = False
    code: int | None = None
    told: str = ""


ENDING = Ending()


def report_stop() -> None:
    """Say what stopped this process, once; after Ctrl-C, when its work is unwound."""
    if not ENDING.quiet:
        say(ENDING.told or f"stopped by {signal.SIGINT.name}")
    ENDING.quiet = True


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let a stop signal end the process while the block runs, with one line that says how far its work came.

    Ctrl-C raises KeyboardInterrupt, so that temporary files are removed, and the caller calls `report_stop`; a second
    one, and every other signal, ends the process. One that is exiting with an error, or after it has saved, keeps
    that code.
    """

    def stop(number: int) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, SynfundusError):
            leave_at_once(error.exit_code)
        if ENDING.code is None:
            ENDING.code = exit_code_of(number)
            stopped = ": ".join(filter(None, [f"stopped by {signal.Signals(number).name}", how_far()]))
            ENDING.told = "; ".join(filter(None, [stopped, ENDING.going_on]))
            if number == signal.SIGINT:
                raise KeyboardInterrupt
        if ENDING.told:
            report_stop()
        leave_at_once(ENDING.code)

    with handlers(stop):
        yield
