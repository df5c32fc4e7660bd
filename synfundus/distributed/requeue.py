"""What a rank leaves for the batch script, which decides from it whether the job is queued again, and where.

Exit codes alone are not enough: the script sees the highest code of all ranks, and a killed rank's is above 75. A rank
that NCCL's watchdog aborts, or that crashes, runs no more Python: the interpreter's handler of fatal signals writes its
stacks.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
from pathlib import Path
from typing import IO

STALLED = "SYNFUNDUS_STALLED"
"""Holds the path of a file; the scripts in slurm/ set it and requeue the job if the file exists."""
FAULTS = "SYNFUNDUS_FAULTS"
"""Holds the path of a folder of the job. A rank that fails leaves a file NODE.RANK there. The scripts write `history`:
the nodes of the faults since the last checkpoint, one a line."""
EXIT = "SYNFUNDUS_EXIT"
"""Holds the path of a file for the exit code of the first rank that ended with an error of its own. srun reports the
highest code of all ranks, which is that of a rank it has stopped for the sake of the other."""
_OWN_ERRORS = range(2, 7)

_report: IO[str] | None = None


def how_to_resume() -> str:
    """Return how stopped work is resumed; in a job of the scripts in slurm/, SLURM may do it."""
    if os.environ.get(STALLED):
        return (
            "the job starts again by itself after a time limit or a preemption; "
            "if it was cancelled, run the same command again to resume"
        )
    return "run the same command again to resume"


def request_requeue() -> None:
    """Create the file that asks for a requeue; does nothing if the variable is not set."""
    place = os.environ.get(STALLED)
    if place:
        with contextlib.suppress(OSError):
            Path(place).touch(mode=0o600)


def keep_exit_code(code: int) -> None:
    """Write down the code of an error of this rank, unless another was first; does nothing without the variable."""
    place = os.environ.get(EXIT)
    if place and code in _OWN_ERRORS:
        with contextlib.suppress(OSError), Path(place).open("x", encoding="ascii") as stream:
            stream.write(f"{code}\n")


def open_fault_report(rank: int) -> None:
    """Have an abort or a crash of this process reported; does nothing if the variable is not set."""
    global _report  # the file has to stay open: a handler of signals cannot open one
    folder = os.environ.get(FAULTS)
    if folder:
        node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        with contextlib.suppress(OSError):
            _report = (Path(folder) / f"{node}.{rank}").open("w", encoding="utf-8")
            faulthandler.enable(file=_report)


def report_fault(text: str) -> None:
    """Report a failed device of this rank."""
    if _report is not None:
        with contextlib.suppress(OSError):
            _report.write(f"{text}\n")
            _report.flush()


def forget_faults() -> None:
    """Remove the history: a fault after a checkpoint is a new one, not the repetition of the last."""
    folder = os.environ.get(FAULTS)
    if folder:
        with contextlib.suppress(OSError):
            (Path(folder) / "history").unlink(missing_ok=True)
