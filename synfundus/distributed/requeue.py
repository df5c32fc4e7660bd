"""Asking the batch script to requeue the job.

Exit code 75 alone is not enough: the script sees the highest code of all ranks, and a killed rank's is above 75.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

VARIABLE = "SYNFUNDUS_STALLED"
"""Holds the path of a file; the scripts in slurm/ set it and requeue the job if the file exists."""


def request_requeue() -> None:
    """Create the file that asks for a requeue; does nothing if the variable is not set."""
    place = os.environ.get(VARIABLE)
    if place:
        with contextlib.suppress(OSError):
            Path(place).touch(mode=0o600)
