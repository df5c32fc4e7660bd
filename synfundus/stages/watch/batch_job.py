"""The batch job of a run: what SLURM says of it, and the end of its log."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from synfundus.errors import SynfundusError
from synfundus.launch.submission import ARGV_FORMAT, FORMAT_VERSION, SUBMISSIONS, Submission
from synfundus.storage import documents
from synfundus.storage.locations import is_local, local_path

UNDER_WAY = frozenset({"PENDING", "REQUEUED", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "RESIZING"})
_DONE = "COMPLETED"
_PATIENCE_S = 5.0
_ASK_EVERY_S = 20.0
"""A controller is shared by everybody: a live dashboard does not ask it at every look."""
_LOG_LINES, _LOG_BYTES = 8, 16_384
_WAITS, _MOST_BEFORE = "PENDING", 4


@dataclass(frozen=True)
class BatchJob:
    """The newest submission of a run.

    Attributes:
        number: SLURM's id; empty if sbatch gave none.
        state: SLURM's word for its state, such as ``PENDING``; empty if SLURM does not say.
        detail: Why it waits or failed, or what sbatch answered.
        log: Last lines of its log, newest last.
        waiting: A later submission that waits for this one; empty if there is none.
    """

    number: str
    state: str
    detail: str
    log: tuple[str, ...]
    waiting: str = ""

    @property
    def failed(self) -> bool:
        """Whether SLURM, or sbatch, says that it has come to a bad end."""
        return (self.state not in UNDER_WAY and self.state not in ("", _DONE)) or not self.number

    def describe(self) -> str:
        """Return number, state and reason in a line."""
        if not self.number:
            return self.detail or "not known to have been submitted"
        reason = f" ({self.detail})" if self.detail and self.detail not in ("None", "0:0") else ""
        after = f"; {self.waiting} waits for it" if self.waiting else ""
        return f"{self.number} {self.state or 'is no longer known to SLURM here'}{reason}{after}"


def _ask(*command: str) -> tuple[str, str]:
    """Return the two fields that squeue or sacct prints of a job; empty if it is not here, or does not answer."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return "", ""
    line = done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""
    state, _, detail = line.partition("|")
    # sacct says who cancelled it: "CANCELLED by 1000"
    return state.split(" ")[0].rstrip("+"), detail


def ask_slurm(number: str) -> tuple[str, str]:
    """Return a job's state, and why it waits or with which code it ended; empty texts if SLURM does not say."""
    state = _ask("squeue", "-h", "-t", "all", "-j", number, "-o", "%T|%r")
    return state if state[0] else _ask("sacct", "-X", "-n", "-P", "-j", number, "-o", "State,ExitCode")


def _tail(log: Path) -> tuple[str, ...]:
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _LOG_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ()
    return tuple([line.rstrip() for line in lines if line.strip()][-_LOG_LINES:])


class JobReader:
    """Reads the newest submission of runs; asks SLURM of each at most every twenty seconds.

    Args:
        ask: Asks SLURM for state and reason of a job; an argument for tests.
        clock: Seconds; an argument for tests.
    """

    def __init__(
        self,
        *,
        ask: Callable[[str], tuple[str, str]] = ask_slurm,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._clock = ask, clock
        self._answers: dict[str, tuple[float, tuple[str, str]]] = {}

    def read(self, run: str) -> BatchJob | None:
        """Return the newest submission of a run, or the one at work that it waits for; None if there is none."""
        folder = local_path(run) / SUBMISSIONS if is_local(run) else None
        places = [path for path in folder.iterdir() if path.is_dir()] if folder and folder.is_dir() else []
        places.sort(key=_age, reverse=True)
        if not places:
            return None
        newest = self._job(places[0])
        if newest.state == _WAITS:
            for place in places[1 : 1 + _MOST_BEFORE]:
                before = self._job(place)
                if before.state in UNDER_WAY and before.state != _WAITS:
                    return replace(before, waiting=newest.number)
        return newest

    def _job(self, place: Path) -> BatchJob:
        submission = Submission(place)
        try:
            document = documents.read_document(str(submission.argv), format_name=ARGV_FORMAT, version=FORMAT_VERSION)
        except SynfundusError:
            document = {}
        answer = str(document.get("answer") or "")
        number = re.search(r"\bjob (\d+)", answer)
        if number is None:
            return BatchJob("", "", answer, _tail(submission.log))
        return BatchJob(number[1], *self._state(number[1]), _tail(submission.log))

    def _state(self, number: str) -> tuple[str, str]:
        asked, answer = self._answers.get(number, (float("-inf"), ("", "")))
        if self._clock() - asked > _ASK_EVERY_S:
            answer = self._ask(number)
            self._answers[number] = self._clock(), answer
        return answer


def _age(folder: Path) -> tuple[str, int]:
    """Order submissions: by time, those of one second by their number."""
    stem, _, number = folder.name.partition("-")
    return stem, int(number) if number.isdigit() else 1
