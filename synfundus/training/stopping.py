"""A signal sets a flag; the loop stops at a step boundary."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from synfundus.errors import Interrupted
from synfundus.processes.stop_signals import exit_code_of, handlers, leave_at_once, say


@dataclass
class StopFlag:
    """The signals that asked this process to stop, by name.

    Attributes:
        names: In the order they came.
        quiet: Say nothing at the first Ctrl-C: another rank does.
    """

    names: list[str] = field(default_factory=list)
    quiet: bool = False

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
    """Let stop signals set the flag while the block runs; a second Ctrl-C ends the process at once."""

    def handle(number: int) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and name in flag.names:
            leave_at_once(exit_code_of(number))
        flag.raise_(name)
        if number == signal.SIGINT and not flag.quiet:
            say("\nstopping after this step, and saving; a second Ctrl-C ends at once, without")

    with handlers(handle):
        yield
