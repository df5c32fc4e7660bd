"""The record of a submitted batch job: its settings, code version and command, in a folder the job reads from.

A job may start days after it was submitted, and again after each requeue. It uses the settings as they were when it was
submitted; later changes of a run.yaml do not affect it. The version of the code is compared when the job starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from synfundus import __version__
from synfundus.errors import LaunchError, SynfundusError
from synfundus.redaction import redact
from synfundus.storage import documents

CODE_FORMAT = "synfundus-submission-code"
ARGV_FORMAT = "synfundus-submission-argv"
FORMAT_VERSION = 1

SUBMISSIONS = "submissions"
"""Name of the folder of submissions in a run; beside a set its name ends like this."""


@dataclass(frozen=True)
class Submission:
    """Where a submission is kept.

    Attributes:
        folder: Absolute path of its folder.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """The job's settings."""
        return self.folder / "config.yaml"

    @property
    def code(self) -> Path:
        """The code version it was submitted with."""
        return self.folder / "code.json"

    @property
    def argv(self) -> Path:
        """The arguments and the output of sbatch."""
        return self.folder / "argv.json"

    @property
    def log(self) -> Path:
        """The job's log, over all restarts."""
        return self.folder / "job.log"

    def describe(self) -> str:
        """Say in one line which files are kept where."""
        return f"config.yaml, code.json, argv.json and job.log of this submission: {self.folder}"


def place_submission(
    output: Path, *, beside: bool, now: datetime, taken: Callable[[Path], bool] = Path.exists
) -> Submission:
    """Choose the folder of a submission, named after the time: inside a run, beside a set. Writes nothing.

    Args:
        output: Folder the job writes: of a run or of a set.
        beside: Put it beside the output: a set is passed on to others, who need not see paths of this cluster.
        now: The time.
        taken: Whether a folder already exists.
    """
    output = output.absolute()
    root = output.with_name(f"{output.name}.{SUBMISSIONS}") if beside and output.name else output / SUBMISSIONS
    stem = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, 1000))
    return Submission(next((root / name for name in names if not taken(root / name)), root / stem))


def freeze(submission: Submission, *, config: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Write the record of a job before it is submitted.

    Args:
        submission: Where to write it.
        config: The resolved settings, as YAML.
        argv: The command that will be called.
        environment: Variables added to this process's own.

    Raises:
        LaunchError: The folder cannot be created, or another process has just created it.
    """
    try:
        submission.folder.parent.mkdir(parents=True, exist_ok=True)
        submission.folder.mkdir()
        submission.config.write_text(config, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LaunchError(
            f"the submission cannot be written: {getattr(error, 'strerror', None) or error}",
            where=str(submission.folder),
            hint="the run must be on a file system that this machine and all nodes share",
        ) from error
    documents.write_document(str(submission.code), code_version(), format_name=CODE_FORMAT, version=FORMAT_VERSION)
    _write_argv(submission, {"argv": list(argv), "environment": dict(environment), "answer": None})


def _write_argv(submission: Submission, document: documents.Document) -> None:
    documents.write_document(str(submission.argv), document, format_name=ARGV_FORMAT, version=FORMAT_VERSION)


def record_answer(submission: Submission, answer: str) -> None:
    """Add the output of sbatch, which holds the job id."""
    found = documents.read_document(str(submission.argv), format_name=ARGV_FORMAT, version=FORMAT_VERSION)
    _write_argv(submission, {**found, "answer": redact(answer)})


def discard(submission: Submission) -> None:
    """Remove a submission that never reached sbatch, and the folders created for it."""
    with contextlib.suppress(OSError):
        for path in (submission.config, submission.code, submission.argv):
            path.unlink(missing_ok=True)
        for folder in (submission.folder, submission.folder.parent):
            folder.rmdir()


def _code_beside(config: str) -> Path:
    return Path(config).with_name(Submission(Path()).code.name)


def belongs_to_a_job(config: str) -> bool:
    """Whether a configuration file is the frozen one of a submission."""
    return _code_beside(config).is_file()


def changed_code(config: str) -> list[str]:
    """Describe how the running code differs from the code a job was submitted with.

    Args:
        config: Configuration file of the job; empty result if it does not belong to a submission.
    """
    try:
        then = documents.read_document(str(_code_beside(config)), format_name=CODE_FORMAT, version=FORMAT_VERSION)
    except SynfundusError:
        return []
    return code_differences(then, code_version())


PACKAGES = ("torch", "deepspeed", "diffusers")
PACKAGE = Path(__file__).resolve().parent.parent
"""The folder of the code that this process runs."""
_GIT_PATIENCE_S = 20.0

_NAMES = {
    "synfundus": "synfundus",
    "source_sha256": "the source",
    "commit": "the commit",
    "dirty": "uncommitted changes",
    "python": "Python",
}


def installed() -> dict[str, str | None]:
    """Return the versions of `PACKAGES`, None where one is not installed, without importing them."""
    versions: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def source_hash(package: Path) -> str:
    """Return the SHA-256 of all Python and YAML files of a package, of its DeepSpeed files, and of their names."""
    digest = hashlib.sha256()
    files = [path for path in package.rglob("*") if path.suffix in (".py", ".yaml") and path.is_file()]
    named = {path.relative_to(package).as_posix(): path for path in files}
    for folder in (package.parent, package / "_assets"):  # of a checkout, of a wheel
        named |= {f"ds_configs/{path.name}": path for path in folder.glob("ds_configs/*.json")}
    for name, path in sorted(named.items()):
        data = path.read_bytes()
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def _git(checkout: Path, *arguments: str) -> str | None:
    """Return the output of git; None without git, or if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_GIT_PATIENCE_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code_version(package: Path = PACKAGE) -> dict[str, Any]:
    """Return the versions of the code this process runs, without importing the packages.

    Args:
        package: Folder of the package.

    Returns:
        ``synfundus`` (version), ``source_sha256``, ``python``, ``packages`` (versions, None if not installed), and
        ``commit`` and ``dirty`` (None outside a git checkout).
    """
    commit = changes = None
    if (package.parent / ".git").exists():
        commit = _git(package.parent, "rev-parse", "HEAD")
        changes = _git(package.parent, "status", "--porcelain", "--untracked-files=no")
    return {
        "synfundus": __version__,
        "source_sha256": source_hash(package),
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
        "python": platform.python_version(),
        "packages": installed(),
    }


def code_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the differences, one clause each; a value that one side does not have is no difference."""
    pairs = [(text, then.get(key), now.get(key)) for key, text in _NAMES.items()]
    packages = then.get("packages")
    if isinstance(packages, Mapping):
        pairs += [(name, version, now["packages"].get(name)) for name, version in packages.items()]
    return [
        f"{text} was {str(before)[:12]}, is {str(after)[:12]}"
        for text, before, after in pairs
        if before is not None and after is not None and before != after
    ]
