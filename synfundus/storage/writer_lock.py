"""One writer for a folder: who writes to it is noted in it, with a sign of life; a second writer is refused.

On a disk the note is created exclusively, which NFS can do too. An object store without conditional writes keeps the
last of several notes: each writer looks again whose it is. A writer that is gone is replaced: at once where that is
certain (its process has ended on this machine, or SLURM has restarted its job), else when its note has not been renewed
for so long that its watchdog would have ended it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from synfundus.errors import ConfigError, StorageError
from synfundus.processes.stop_signals import before_leaving, leave_at_once, say
from synfundus.storage import filesystem
from synfundus.storage.local_folder import WRITER_NAME
from synfundus.storage.locations import is_local, local_path, resolved
from synfundus.storage.writer_note import (
    Writer,
    is_gone,
    modified_s,
    note_document,
    note_of,
    process_start_of,
    read_note,
)

STALE_AFTER_S = 900.0
"""For work without a watchdog."""
LOST = 7
"""Exit code of a writer whose folder was taken over: `LaunchError`'s."""
_RENEWALS, _LONGEST_PAUSE_S = 15, 20.0
_SETTLE_S = 1.0
"""After a note is put into a store: longer than others take from their last look to their own note."""
_GUARD_S = 60.0
"""Age of a note that nobody finishes; more than the pause between two signs of life."""
_LAST_RENEWAL_S = 2.0
_TRIES = 5
_TRY_S = 0.2


@dataclass
class _Held:
    """The folders this process writes to, renewed by a thread."""

    stale_after_s: float
    writers: dict[str, Writer] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    ended: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def add(self, folder: str, writer: Writer) -> None:
        """Hold a folder from now on."""
        if self.thread is None:
            self.thread = threading.Thread(target=self.renew, name="writer-lock", daemon=True)
            self.thread.start()
        self.writers[resolved(folder)] = writer

    def release(self) -> None:
        """Let other writers in; a folder that was made for nothing is removed."""
        self.ended.set()
        if self.thread not in (None, threading.current_thread()):
            self.thread.join(_LAST_RENEWAL_S)  # or a note in a store would be written again after it is removed
        for folder, writer in self.writers.items():
            with contextlib.suppress(StorageError, OSError):
                found = read_note(folder)
                if found is not None and found.token == writer.token:
                    filesystem.remove(note_of(folder))
                if folder in self.made and is_local(folder):
                    local_path(folder).rmdir()  # fails where anything is in it

    def renew(self) -> None:
        """Give signs of life until the end."""
        while not self.ended.wait(min(self.stale_after_s / _RENEWALS, _LONGEST_PAUSE_S)):
            for folder, writer in list(self.writers.items()):
                with contextlib.suppress(StorageError, OSError):
                    found = read_note(folder)
                    if found is None or self.ended.is_set():
                        continue
                    if found.token != writer.token:
                        say(f"{folder} was taken over by {found.describe()}, because this process had not moved")
                        leave_at_once(LOST)
                    _renew(folder, writer)


_held: _Held | None = None


@contextmanager
def one_writer(stale_after_s: float = 0.0) -> Iterator[None]:
    """Let `write_alone` keep other writers away until the block ends.

    Args:
        stale_after_s: A writer that gives no sign of life for so long is gone; 0: `STALE_AFTER_S`.
    """
    global _held
    held = _held = _Held(stale_after_s or STALE_AFTER_S)
    before_leaving.append(held.release)
    try:
        yield
    finally:
        _held = None
        before_leaving.remove(held.release)
        held.release()


def write_alone(folder: str, *, flag: str = "--out") -> None:
    """Become the only writer of a folder, within `one_writer`; does nothing outside, and for a folder already held.

    Args:
        folder: The folder; made if it is missing.
        flag: The option that names it.

    Raises:
        ConfigError: There is another writer; the message names it.
        StorageError: The disk or the store failed.
    """
    if _held is None or resolved(folder) in _held.writers:
        return
    if not filesystem.is_dir(folder):
        filesystem.make_dir(folder)
        _held.made.add(resolved(folder))
    here = Writer.here(folder, _held.stale_after_s)
    for _ in range(_TRIES):
        found = read_note(folder)
        if found is None:
            taken = _put(folder, here)
        else:
            silent_s = _silent_s(folder)
            if not is_gone(found, here, silent_s=silent_s, process_start=process_start_of(found.pid)):
                _wait_or_refuse(folder, found, here, silent_s, flag)
            taken = _replace(folder, found, here)
        if taken:
            _held.add(folder, here)
            return
        time.sleep(_TRY_S)  # somebody else was faster, or is writing the note just now
    raise ConfigError(
        "other processes are starting to write to this folder",
        where=folder,
        hint=f"start one at a time; if there is none, remove {note_of(folder)}",
    )


def _wait_or_refuse(folder: str, found: Writer, here: Writer, silent_s: float, flag: str) -> None:
    """Refuse a folder; a job of which the one before it may have been killed first waits for a sign of life."""
    if here.job and found.job and found.job != here.job:
        say(f"{folder}: waiting for a sign of life of {found.describe()}")
        while silent_s <= found.stale_after_s:
            time.sleep(_LONGEST_PAUSE_S / 2)
            if (now := read_note(folder)) is None:
                return
            before, silent_s = silent_s, _silent_s(folder)
            if silent_s < before or now != found:
                break
        else:
            return
    _refuse(folder, found, silent_s, flag)


def _refuse(folder: str, found: Writer, silent_s: float, flag: str) -> NoReturn:
    left = max(1, round((found.stale_after_s - silent_s) / 60))
    raise ConfigError(
        f"{found.describe()} writes to this folder",
        where=folder,
        hint=f"wait until it has ended, or give another {flag}. If its machine has failed, the folder is free "
        f"in {left} min, or when you remove {note_of(folder)}",
    )


def live_writer(folder: str) -> Writer | None:
    """Return who writes to a folder, None if nobody does. Nothing is written, so it goes by this machine's clock.

    Raises:
        ConfigError: There is a note of another version.
        StorageError: The note cannot be read.
    """
    if not filesystem.is_dir(folder) or (found := read_note(folder)) is None:
        return None
    silent_s, here = time.time() - modified_s(note_of(folder)), Writer.here(folder, STALE_AFTER_S)
    return None if is_gone(found, here, silent_s=silent_s, process_start=process_start_of(found.pid)) else found


def require_free(folder: str, *, flag: str = "--out") -> None:
    """Refuse a folder that has a writer, for a dry run.

    Raises:
        ConfigError: As `write_alone`.
    """
    if found := live_writer(folder):
        _refuse(folder, found, time.time() - modified_s(note_of(folder)), flag)


def _silent_s(folder: str) -> float:
    """Return the seconds since the last sign of life, by the clock of the disk or the store, not by this machine's."""
    note, probe = note_of(folder), f"{note_of(folder)}.{secrets.token_hex(4)}.now"
    filesystem.write_bytes(probe, b"")
    try:
        return modified_s(probe) - modified_s(note)
    except (StorageError, FileNotFoundError):
        return 0.0
    finally:
        filesystem.remove(probe)


def _renew(folder: str, writer: Writer) -> None:
    if is_local(folder):
        os.utime(local_path(note_of(folder)))
    else:
        filesystem.write_bytes(note_of(folder), note_document(writer))


def _create(path: Path, data: bytes) -> bool:
    """Create a file unless it is there; returns whether it was not."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(descriptor)
    return True


def _put(folder: str, here: Writer) -> bool:
    """Write the first note; returns whether it is this process's."""
    if is_local(folder):
        with filesystem.storage_errors("write", folder):
            note = local_path(note_of(folder))
            if _create(note, note_document(here)):
                return True
            # half a note, of a process that was killed while it wrote
            if time.time() - note.stat().st_mtime > _GUARD_S and read_note(folder) is None:
                note.unlink(missing_ok=True)
            return False
    return _put_and_look(folder, here)


def _put_and_look(folder: str, here: Writer) -> bool:
    with contextlib.suppress(StorageError):  # another note came between: the look says whose is there
        filesystem.write_bytes(note_of(folder), note_document(here))
    time.sleep(_SETTLE_S)
    found = read_note(folder)
    return found is not None and found.token == here.token


def _replace(folder: str, gone: Writer, here: Writer) -> bool:
    """Replace the note of a writer that is gone; returns whether this process did."""
    if not is_local(folder):
        return _put_and_look(folder, here)
    with filesystem.storage_errors("write", folder):
        note = local_path(note_of(folder))
        guard = note.with_name(f"{WRITER_NAME}.{gone.token}.guard")
        if not _create(guard, b""):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - guard.stat().st_mtime > _GUARD_S:  # of a process that was killed here
                    guard.unlink()
            return False
        try:
            found = read_note(folder)
            if found is None or found.token != gone.token:
                return False  # replaced before the guard was ours
            filesystem.write_bytes(str(note), note_document(here))
            return True
        finally:
            guard.unlink(missing_ok=True)
