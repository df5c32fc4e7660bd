"""What a worker does with photographs that take it down; importable by name, as worker processes need it."""

from __future__ import annotations

import os
import signal
import time

from synfundus.photographs.photograph_task import PhotographTask, PreparedPhotograph, prepare_photograph
from synfundus.photographs.preparation import Unusable


def prepare_or_die(task: PhotographTask) -> PreparedPhotograph | Unusable:
    """Prepare a photograph; die over one that is called ``killer``, hang over one that is called ``sleeper``."""
    if "killer" in task.sample.source:
        os.kill(os.getpid(), signal.SIGKILL)
    if "sleeper" in task.sample.source:
        time.sleep(600)
    return prepare_photograph(task)
