"""Worker processes that exit with their parent, even if it is killed."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

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
