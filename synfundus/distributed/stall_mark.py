"""A word to the batch script: of all exit codes it gets the highest, and a rank that had to be killed has above 75."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

VARIABLE = "SYNFUNDUS_STALLED"
"""Names a file; the scripts in slurm/ set it, and queue the job again when the file is there."""


def leave_mark() -> None:
    """Note that this rank ends for a reason that passes; where nobody asked for a note, nothing happens."""
    place = os.environ.get(VARIABLE)
    if place:
        with contextlib.suppress(OSError):
            Path(place).touch(mode=0o600)
