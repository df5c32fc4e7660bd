"""The interface for messages to the user.

Jobs and the trainer get a `Console`; `telemetry.sinks` decides how it looks: a rich progress bar, plain lines in a log
file, nothing on ranks other than 0.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol


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
