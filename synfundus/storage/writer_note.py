"""The note in a folder of who writes to it: process, machine, job, time, and whether that writer is gone."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from synfundus.errors import ConfigError, DataError, StorageError
from synfundus.storage import documents, filesystem
from synfundus.storage.local_folder import WRITER_NAME
from synfundus.storage.locations import is_local, local_path, resolved
from synfundus.storage.s3 import object_store

FORMAT_NAME = "synfundus-writer"
FORMAT_VERSION = 1
_TRIES = 5
_TRY_S = 0.2


def process_start_of(pid: int) -> str:
    """Return when a process of this machine started, in the kernel's ticks; empty if there is none."""
    with contextlib.suppress(OSError):
        state, *later = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else later[18]
    return ""


def _read_line(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _pid_namespace() -> str:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


@dataclass(frozen=True)
class Writer:
    """A process that writes to a folder.

    Attributes:
        token: Its name for this folder.
        host: Its machine.
        machine: Boot and process namespace: process ids mean something among equal ones only.
        pid: Its process id there.
        started: When that process started, in the kernel's ticks.
        job: SLURM's job id; may be empty.
        restarts: How often that job was restarted.
        since: When it began to write, ISO 8601 in UTC.
        stale_after_s: Without a sign of life for so long, it is gone.
        folder: Number of the folder in its file system, and its path: of a copy both differ. Empty in a store.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str
    job: str
    restarts: int
    since: str
    stale_after_s: float
    folder: tuple[str, ...]

    @classmethod
    def here(cls, folder: str, stale_after_s: float) -> Writer:
        """Describe this process."""
        pid, restarts = os.getpid(), os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            machine=f"{_read_line('/proc/sys/kernel/random/boot_id')} {_pid_namespace()}",
            pid=pid,
            started=process_start_of(pid),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restarts=int(restarts) if restarts.isdigit() else 0,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            stale_after_s=stale_after_s,
            folder=_place(folder),
        )

    def describe(self) -> str:
        """Name it for people."""
        job = f" of job {self.job}" if self.job else ""
        return f"process {self.pid}{job} on {self.host}, since {self.since}"


def _place(folder: str) -> tuple[str, ...]:
    return (str(local_path(folder).stat().st_ino), resolved(folder)) if is_local(folder) else ()


def is_gone(writer: Writer, here: Writer, *, silent_s: float, process_start: str) -> bool:
    """Whether a writer writes no more. Pure.

    Args:
        writer: As noted in the folder.
        here: This process.
        silent_s: Time since its last sign of life.
        process_start: When the process with its id started on this machine; empty if there is none.
    """
    if here.folder and not {*writer.folder} & {*here.folder}:  # the folder is a copy
        return True
    if (writer.host, writer.machine) == (here.host, here.machine):
        return writer.started != process_start
    if writer.job and writer.job == here.job and writer.restarts < here.restarts:
        return True
    return silent_s > writer.stale_after_s


def note_of(folder: str) -> str:
    """Return where the note of a folder is."""
    return filesystem.join(folder, WRITER_NAME)


def _parse(data: bytes, where: str) -> Writer | None:
    """Read a note; None for half a note.

    Raises:
        ConfigError: It is of another version.
    """
    try:
        json.loads(data)
    except ValueError:
        return None
    try:
        document = documents.parse_document(data, format_name=FORMAT_NAME, version=FORMAT_VERSION, where=where)
        values = {name: document[name] for name in Writer.__dataclass_fields__}
        return Writer(**{**values, "folder": tuple(values["folder"])})
    except (DataError, KeyError, TypeError) as error:
        hint = "another version may be writing here; if none is, remove this file"
        raise ConfigError("a note of a writer that this version cannot read", where=where, hint=hint) from error


def read_note(folder: str) -> Writer | None:
    """Return the writer of a folder; None if there is none, or half a note.

    Raises:
        StorageError: There is a note that cannot be read.
    """
    note = note_of(folder)
    for _ in range(_TRIES):
        if not filesystem.exists(note):
            return None
        try:
            data = filesystem.read_bytes(note)
        except StorageError:
            if filesystem.exists(note):
                raise
            return None
        if (found := _parse(data, note)) is not None:
            return found
        time.sleep(_TRY_S)  # it is being written just now
    return None


def note_document(writer: Writer) -> bytes:
    """Return the note of a writer."""
    return documents.dump_json({"format": FORMAT_NAME, "schema_version": FORMAT_VERSION, **vars(writer)})


def modified_s(url: str) -> float:
    """Return when a file was last written, by the clock of its disk or store, seconds of Unix time; 0 if unknown."""
    if is_local(url):
        return local_path(url).stat().st_mtime
    modified = object_store.stat(url).modified
    return modified.timestamp() if modified else 0.0
