"""All errors reported to the user, with the exit code of the process.

::

    SynfundusError            1
    ├── ConfigError           2   an option, a config file, a combination that cannot work
    ├── DataError             3   photographs, tables, shards, latents
    │   ├── CorruptShard          bytes that do not match their recorded hash
    │   └── ManifestMismatch      two artefacts that do not belong together
    ├── CheckpointError       4   nothing to resume from, or not from this
    ├── StorageError          5   disk, object store, permissions
    ├── NumericalError        6   a loss or gradient that is not finite
    ├── LaunchError           7   processes, ranks, SLURM
    │   ├── Stalled          75   a wait exceeded its limit (EX_TEMPFAIL: requeue)
    │   ├── PortTaken        75   another program uses the rendezvous port (EX_TEMPFAIL: requeue)
    │   └── DeviceFault      71   a GPU or its network failed (EX_OSERR: requeue on other nodes)
    └── Preempted            75   stopped by a signal after saving (EX_TEMPFAIL: requeue)
        └── Interrupted           work between steps was postponed because of a signal

A message says what is wrong, with which values, where, and what to do about it.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import ClassVar, NamedTuple


def suggestion(wrong: str, known: Sequence[str], *, cutoff: float = 0.6) -> str:
    """Return a clause for a message with the closest known names, whatever their case, or nothing."""
    import difflib

    names = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(wrong[:80].casefold(), names, n=3, cutoff=cutoff)
    return f" (did you mean {' or '.join(names[name] for name in close)}?)" if close else ""


class SynfundusError(Exception):
    """Base of all errors that are shown as a panel instead of a traceback.

    Attributes:
        message: What is wrong, with the values.
        where: File, option or config key concerned; may be empty.
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
    """A shard whose bytes do not match their recorded hash, or whose content is invalid.

    Attributes:
        reason: One word for the ledger: ``checksum``, ``index``, ``missing``, ``unreadable``, else ``damaged``.
    """

    title = "Damaged data"

    def __init__(self, message: str, *, where: str = "", hint: str = "", reason: str = "damaged") -> None:
        super().__init__(message, where=where, hint=hint)
        self.reason = reason


class ManifestMismatch(DataError):
    """Two artefacts that do not belong together; the message names both."""

    title = "Mismatch"


class CheckpointError(SynfundusError):
    """A checkpoint that is missing, damaged, or of another run."""

    exit_code = 4
    title = "Checkpoint"


class StorageError(SynfundusError):
    """A read or write of the disk or the object store failed."""

    exit_code = 5
    title = "Storage"


class NumericalError(SynfundusError):
    """A loss or a gradient that is not finite, under the policy ``stop``."""

    exit_code = 6
    title = "Not finite"


class LaunchError(SynfundusError):
    """Processes, ranks or cluster jobs that could not be started or died."""

    exit_code = 7
    title = "Launch"


class Stalled(LaunchError):
    """A wait exceeded its limit: for a batch, another rank, or the end of a save. A retry may succeed."""

    exit_code = 75
    title = "Nothing moves"


class PortTaken(LaunchError):
    """Another program uses the rendezvous port. A retry with another port may succeed."""

    exit_code = 75


class DeviceFault(LaunchError):
    """A GPU, or NCCL on it, failed: an Xid, an ECC error, an illegal access. Another node may succeed."""

    exit_code = 71
    title = "Failed GPU"


class RelayedDefect(RuntimeError):
    """A bug met by another process; the message is the traceback from there."""


class Preempted(SynfundusError):
    """Stopped by a signal after everything was saved; the same command resumes."""

    exit_code = 75
    title = "Stopped by a signal"


class Interrupted(Preempted):
    """Work between training steps was postponed because of a signal; the training loop then saves."""


class ErrorReport(NamedTuple):
    """An error as plain values, to be sent to another process.

    Attributes:
        kind: Name of the class; empty for an unexpected error.
        message: What is wrong; the traceback of an unexpected error.
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
        """Return an error of the same class; an unexpected one names the process it comes from.

        Args:
            source: That process, e.g. "rank 3".
        """
        kind = globals().get(self.kind)
        if isinstance(kind, type) and issubclass(kind, SynfundusError):
            return kind(self.message, where=self.where, hint=self.hint)
        return RelayedDefect(f"{source} failed:\n{self.message}")
