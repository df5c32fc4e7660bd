"""Worker processes and the signals that stop a job: the rank decides, its workers are deaf to them from birth.

srun sends a signal to every process of a step, not to the ranks alone. A new interpreter takes a second until it can
ignore one, and would be ended by it before; what is blocked where a process is started stays blocked in it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


@contextlib.contextmanager
def started_deaf() -> Iterator[None]:
    """Have processes that are started in the block begin with the signals blocked; this one gets them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        # the first start of a process starts this one, too, and lets two of the signals through again
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stops() -> None:
    """Ignore the signals for good; to be called in a worker. Its end is that of its rank."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
