"""A signal sets a flag; the loop stops at a step boundary."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from synfundus.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""Sent by SLURM at a preemption or before the time limit."""


@dataclass
class StopFlag:
    """The signals that asked this process to stop, by name."""

    names: list[str] = field(default_factory=list)

    @property
    def raised(self) -> bool:
        """Whether there was a signal."""
        return bool(self.names)

    def check(self) -> None:
        """Interrupt work that can be repeated later; called between its parts.

        Raises:
            Interrupted: There was a signal.
        """
        if self.raised:
            raise Interrupted(f"postponed, because {self.names[0]} came")

    def raise_(self, name: str) -> None:
        """Record a signal."""
        self.names.append(name)


@contextmanager
def catch_signals(flag: StopFlag) -> Iterator[None]:
    """Let SIGTERM and SIGUSR2 set the flag while the block runs; only possible in the main thread."""

    def handler(number: int, _frame: FrameType | None) -> None:
        flag.raise_(signal.Signals(number).name)

    try:
        previous = {number: signal.signal(number, handler) for number in SIGNALS}
    except ValueError:  # not the main thread: the embedding program handles its signals itself
        yield
        return
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
