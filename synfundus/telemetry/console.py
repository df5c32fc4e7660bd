"""Messages to the user: their interface, and the consoles that need no library.

Jobs and the trainer get a `Console`; `telemetry.sinks` decides how it looks: a rich progress bar, plain lines in a log
file, nothing on ranks other than 0.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Protocol

from synfundus.processes.stop_signals import telling

PLAIN_INTERVAL_S = 5.0
"""Least time between two progress lines in a log file."""
PLAIN_PATIENCE_S = 60.0
"""A log file gets a line after this time even if there is little progress."""
PLAIN_FRACTION = 0.1
"""A log file gets a line each time this fraction of the work is done."""

_lost: list[str] = []


def lose_messages(reason: str) -> None:
    """Remember that messages of this process cannot be written any more."""
    _lost.append(reason)


def lost_messages() -> str:
    """Return, once, why messages of this process cannot be written; empty while they can."""
    return _lost.pop() if _lost else ""


def log_stamp() -> str:
    """Return ``[2026-11-30T09:48:12 node1] `` for a line in the log of a SLURM step, in local time; empty elsewhere."""
    if not {"SLURM_JOB_ID", "SLURM_PROCID"} <= set(os.environ):
        return ""
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return f"[{time.strftime('%Y-%m-%dT%H:%M:%S')} {host}] "


class Progress(Protocol):
    """A running progress bar."""

    def advance(self, amount: int = 1, **fields: str) -> None:
        """Advance by ``amount`` units; ``fields`` replace the values shown beside the bar (``loss="0.123"``)."""


class Console(Protocol):
    """Messages, tables and progress of a job."""

    def message(self, text: str) -> None:
        """Print one line."""

    def warning(self, text: str) -> None:
        """Print one line the user should not miss."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table."""

    @contextmanager
    def progress(self, description: str, *, total: int, unit: str, start: int = 0) -> Iterator[Progress]:
        """Show a progress bar while the block runs: ``start`` of ``total`` ``unit`` are already done."""
        ...


class SilentProgress:
    """Progress that is not shown."""

    def advance(self, amount: int = 1, **fields: str) -> None:
        """Do nothing."""


class SilentConsole:
    """For ranks other than 0, and for tests."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def warning(self, text: str) -> None:
        """Do nothing."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Do nothing."""

    @contextmanager
    def progress(self, description: str, *, total: int, unit: str, start: int = 0) -> Iterator[Progress]:
        """Yield a progress that does nothing."""
        yield SilentProgress()


def how_far(description: str, done: int, total: int, unit: str) -> str:
    """Say how far a work has come, should a signal end it."""
    return f"{description}, {done:,} of {total:,} {unit}"


def format_duration(seconds: float) -> str:
    """Format a duration: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def estimate_remaining_s(*, done: int, start: int, total: int, elapsed_s: float) -> float:
    """Estimate the remaining seconds from the rate since ``start``; NaN before anything is done."""
    if done <= start or elapsed_s <= 0:
        return math.nan
    return (total - done) * elapsed_s / (done - start)


@dataclass
class _PlainProgress:
    """Progress as occasional lines of text."""

    say: Callable[[str], None]
    clock: Callable[[], float]
    description: str
    total: int
    unit: str
    start: int
    fields: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._done = self._said = self.start
        self._began = self._said_at = self.clock()

    @property
    def done(self) -> int:
        """Units that are done."""
        return self._done

    def advance(self, amount: int = 1, **fields: str) -> None:
        """Advance; print a line now and then."""
        self._done += amount
        self.fields.update(fields)
        waited = self.clock() - self._said_at
        much = self._done - self._said >= PLAIN_FRACTION * self.total
        if waited >= PLAIN_PATIENCE_S or (waited >= PLAIN_INTERVAL_S and much):
            self.say_now()

    def say_now(self) -> None:
        """Print a progress line."""
        now = self.clock()
        remaining = estimate_remaining_s(
            done=self._done, start=self.start, total=self.total, elapsed_s=now - self._began
        )
        percent = 100 * self._done / self.total if self.total else 100.0
        parts = [f"{self.description}: {self._done:,}/{self.total:,} {self.unit} ({percent:.0f} %)"]
        parts += [f"{name} {value}" for name, value in self.fields.items()]
        if self._done < self.total and math.isfinite(remaining):
            parts.append(f"ETA {format_duration(remaining)}")
        self.say(", ".join(parts))
        self._said, self._said_at = self._done, now

    def finish(self) -> None:
        """Print a last line, unless it was just printed."""
        if self._said != self._done or self._done == self.start:
            self.say_now()


class PlainConsole:
    """Lines of text, for log files: no colour, no control characters, few progress lines."""

    def __init__(self, stream: IO[str] | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._has_results = self._stream is sys.stdout  # now: while a verb runs, both names are of standard error

    def message(self, text: str) -> None:
        """Print one line; in the log of a SLURM step with time and host, but for results on standard output."""
        stamp = "" if self._has_results else log_stamp()
        self._stream.write("".join(f"{stamp}{line}\n" for line in text.split("\n")))
        self._stream.flush()

    def warning(self, text: str) -> None:
        """Print one line that starts with ``warning:``."""
        self.message(f"warning: {text}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table with aligned columns."""
        cells = [list(columns), *(list(row) for row in rows)]
        widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        self.message("\n".join([title, lines[0], "  ".join("-" * width for width in widths), *lines[1:]]))

    @contextmanager
    def progress(self, description: str, *, total: int, unit: str, start: int = 0) -> Iterator[Progress]:
        """Print progress lines, few enough for a log file."""
        progress = _PlainProgress(self.message, self._clock, description, total, unit, start)
        with telling(lambda: how_far(description, progress.done, total, unit)):
            yield progress
        progress.finish()


class WarningsConsole(SilentConsole):
    """Prints warnings only."""

    def warning(self, text: str) -> None:
        """Print one line on standard error."""
        PlainConsole().warning(text)
