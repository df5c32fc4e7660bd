"""Every fault a user can meet, with the exit code the process ends with.

::

    SynfundusError            1
    ├── ConfigError           2   an option, a config file, a combination that cannot work
    ├── DataError             3   photographs, tables, shards, latents
    │   ├── CorruptShard          bytes that do not match their recorded hash
    │   └── ManifestMismatch      two things that were not made for each other
    ├── CheckpointError       4   nothing to resume from, or not from this
    ├── StorageError          5   disk, object store, permissions
    ├── NumericalError        6   a loss or gradient that is not finite
    ├── LaunchError           7   processes, ranks, SLURM
    │   ├── Stalled          75   something that was waited for did not come (EX_TEMPFAIL: requeue)
    │   └── PortTaken        75   somebody else has the port at which the ranks were to meet
    └── Preempted            75   stopped by a signal after saving (EX_TEMPFAIL: requeue)
        └── Interrupted           work beside the steps was left for later, because a signal came

A message says what is wrong, with which values, where, and what to do about it.
"""

from __future__ import annotations

import traceback
from typing import ClassVar, NamedTuple


class SynfundusError(Exception):
    """Base of all faults that are reported as one panel instead of a traceback.

    Attributes:
        message: What is wrong, with the values.
        where: File, option or config key it was found in; may be empty.
        hint: What the user can do about it; may be empty.
    """

    exit_code: ClassVar[int] = 1
    title: ClassVar[str] = "Error"

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.where:
            parts.append(f"where: {self.where}")
        if self.hint:
            parts.append(f"what to do: {self.hint}")
        return "\n".join(parts)


class ConfigError(SynfundusError):
    """An option, a config file or a combination of values that cannot work."""

    exit_code = 2
    title = "Configuration"


class DataError(SynfundusError):
    """Photographs, label tables, shards or latents that cannot be used."""

    exit_code = 3
    title = "Data"


class CorruptShard(DataError):
    """Bytes of a shard that do not match the hash recorded for them, or do not hold what they should.

    Attributes:
        reason: One word for the ledger: ``checksum``, ``index``, ``missing``, ``unreadable``, or ``damaged`` for the
            rest.
    """

    title = "Damaged data"

    def __init__(self, message: str, *, where: str = "", hint: str = "", reason: str = "damaged") -> None:
        super().__init__(message, where=where, hint=hint)
        self.reason = reason


class ManifestMismatch(DataError):
    """Two artefacts that were not made for each other; the message names both sides."""

    title = "Mismatch"


class CheckpointError(SynfundusError):
    """A checkpoint that is missing, damaged, or of another run."""

    exit_code = 4
    title = "Checkpoint"


class StorageError(SynfundusError):
    """The disk or the object store refused."""

    exit_code = 5
    title = "Storage"


class NumericalError(SynfundusError):
    """A loss or a gradient that is not finite, under the policy ``stop``."""

    exit_code = 6
    title = "Not finite"


class LaunchError(SynfundusError):
    """Processes, ranks or the cluster could not be started or died."""

    exit_code = 7
    title = "Launch"


class Stalled(LaunchError):
    """Something that was waited for did not come: a batch, another rank, the end of a save. Worth another try."""

    exit_code = 75
    title = "Nothing moves"


class PortTaken(LaunchError):
    """Somebody else has the port at which the ranks were to meet. Worth another try, at another one."""

    exit_code = 75


class RelayedDefect(RuntimeError):
    """A fault of the program itself, met by another process; its text is that one's traceback."""


class Preempted(SynfundusError):
    """Stopped by a signal after everything was saved; the same command goes on."""

    exit_code = 75
    title = "Stopped by a signal"


class Interrupted(Preempted):
    """Work beside the training steps was left for later, because a signal came; the training loop saves then."""


class ErrorReport(NamedTuple):
    """An error as plain values: what one process tells another of it.

    Attributes:
        kind: Name of the class; empty for an error nobody expected.
        message: What is wrong; the traceback of an error nobody expected.
        where: As in the error.
        hint: As in the error.
    """

    kind: str
    message: str
    where: str
    hint: str

    @classmethod
    def of(cls, error: BaseException) -> ErrorReport:
        """Describe an error."""
        if isinstance(error, SynfundusError):
            return cls(type(error).__name__, error.message, error.where, error.hint)
        return cls("", "".join(traceback.format_exception(error)), "", "")

    def to_error(self, *, source: str) -> Exception:
        """Return an error of the same class; one nobody expected names the process it comes from.

        Args:
            source: That process, e.g. "rank 3".
        """
        kind = globals().get(self.kind)
        if isinstance(kind, type) and issubclass(kind, SynfundusError):
            return kind(self.message, where=self.where, hint=self.hint)
        return RelayedDefect(f"{source} failed:\n{self.message}")
