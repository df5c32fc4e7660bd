"""How worker processes end: with their parent, even if it is killed, and not by a stop signal, which the rank handles.

srun signals every process of a step, not only the ranks. A new interpreter needs a second before it can ignore a
signal and would be killed by it until then, so signals are blocked while a process is started, which it inherits.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

from synfundus.processes.stop_signals import STOP_SIGNALS

ORPHANED = 70
"""Exit code of a worker whose parent is gone."""


def end_with_parent() -> None:
    """Exit this process as soon as its parent ends; call it first in a worker."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        # not an exception: the main thread may be inside a decoder or waiting for a store
        os._exit(ORPHANED)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Start processes in the block with the stop signals blocked; this process receives them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        # the first start of a process also starts this one, which unblocks two of the signals
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals() -> None:
    """Ignore the stop signals; call it in a worker, which ends with its rank."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
