"""A worker process that does not outlive the process it works for, whatever it is doing when that is killed."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

ORPHANED = 70
"""Exit code of a worker whose parent is gone; nobody is there to read it."""


def end_with_parent() -> None:
    """Have this process end at once when its parent does; to be called first in a worker."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        # not an exception: the main thread may sit in a decoder, or wait for a store
        os._exit(ORPHANED)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
