"""What a batch job is submitted with: its settings, the code, the command, kept in a folder the job reads from.

A job may start days after it was submitted and again after each requeue. It runs from the settings of the moment it
was submitted; later changes of a run.yaml do not reach it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from synfundus.errors import LaunchError, SynfundusError
from synfundus.launch.code_version import code_differences, code_version
from synfundus.redaction import redact
from synfundus.storage import documents

CODE_FORMAT = "synfundus-submission-code"
ARGV_FORMAT = "synfundus-submission-argv"
FORMAT_VERSION = 1

_FOLDER = "submissions"


@dataclass(frozen=True)
class Submission:
    """Where a submission is kept.

    Attributes:
        folder: Absolute path of a folder of its own.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """The settings the job runs from."""
        return self.folder / "config.yaml"

    @property
    def code(self) -> Path:
        """The code it was submitted with."""
        return self.folder / "code.json"

    @property
    def argv(self) -> Path:
        """What sbatch was called with, and what it answered."""
        return self.folder / "argv.json"

    @property
    def log(self) -> Path:
        """What the job says, over all its restarts."""
        return self.folder / "job.log"

    def describe(self) -> str:
        """Say in one line what is kept where."""
        return f"config.yaml, code.json, argv.json and job.log of this submission: {self.folder}"


def place_submission(
    output: Path, *, beside: bool, now: datetime, taken: Callable[[Path], bool] = Path.exists
) -> Submission:
    """Choose the folder of a submission: named after the time, below a run, beside a set. Writes nothing.

    Args:
        output: What the job writes: the folder of a run or of a set.
        beside: The folder is handed on to others, who need not know paths of this cluster: stay out of it.
        now: The time.
        taken: Whether a folder is there already.
    """
    output = output.absolute()
    root = output.with_name(f"{output.name}.{_FOLDER}") if beside and output.name else output / _FOLDER
    stem = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 1000))
    return Submission(next((root / name for name in names if not taken(root / name)), root / stem))


def freeze(submission: Submission, *, config: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Write what a job is about to be submitted with.

    Args:
        submission: Where.
        config: The resolved settings, as YAML.
        argv: What will be called.
        environment: Variables set for it, on top of this process's own.

    Raises:
        LaunchError: The folder cannot be made, or somebody else made it this very second.
    """
    try:
        submission.folder.parent.mkdir(parents=True, exist_ok=True)
        submission.folder.mkdir()
        submission.config.write_text(config, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LaunchError(
            f"the submission cannot be kept: {getattr(error, 'strerror', None) or error}",
            where=str(submission.folder),
            hint="the run must lie on a file system that this machine and all nodes see",
        ) from error
    documents.write_document(str(submission.code), code_version(), format_name=CODE_FORMAT, version=FORMAT_VERSION)
    _write_argv(submission, {"argv": list(argv), "environment": dict(environment), "answer": None})


def _write_argv(submission: Submission, document: documents.Document) -> None:
    documents.write_document(str(submission.argv), document, format_name=ARGV_FORMAT, version=FORMAT_VERSION)


def keep_answer(submission: Submission, answer: str) -> None:
    """Add what sbatch answered: it has the job's number."""
    found = documents.read_document(str(submission.argv), format_name=ARGV_FORMAT, version=FORMAT_VERSION)
    _write_argv(submission, {**found, "answer": redact(answer)})


def discard(submission: Submission) -> None:
    """Remove a submission that sbatch has not heard of, with the folders that only it needed."""
    with contextlib.suppress(OSError):
        for path in (submission.config, submission.code, submission.argv):
            path.unlink(missing_ok=True)
        for folder in (submission.folder, submission.folder.parent):
            folder.rmdir()


def changed_code(config: str) -> list[str]:
    """Say how the running code differs from the code a job was submitted with.

    Args:
        config: The configuration file the job runs from; if it is not one of a submission, there is nothing to say.
    """
    path = Path(config).with_name(Submission(Path()).code.name)
    try:
        then = documents.read_document(str(path), format_name=CODE_FORMAT, version=FORMAT_VERSION)
    except SynfundusError:
        return []
    return code_differences(then, code_version())
