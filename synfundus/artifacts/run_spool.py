"""The files that a run appends to: metrics, ledger, TensorBoard.

On a disk they are in the folder of the run. An object store cannot append: there they grow in a temporary folder and
are uploaded as a whole at intervals, before every checkpoint and at the end. So a killed run loses no row up to its
newest checkpoint, and later rows are written again after a resume.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from synfundus.errors import StorageError
from synfundus.storage import filesystem
from synfundus.telemetry.sinks import METRICS_NAME, Figure, MetricSink, MetricSinks

LEDGER_NAME = "ledger.jsonl"
UPLOAD_INTERVAL_S = 30.0
"""Rows are uploaded at most this often between checkpoints."""


class RunSpool:
    """The growing files of one run; only one process may open it.

    Args:
        url: Folder of the run. Its metrics and ledger are downloaded, to be appended to.

    Attributes:
        folder: Where to append.
        closed: Whether the temporary folder is removed.

    Raises:
        StorageError: The store cannot be read.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._uploaded_at = time.monotonic()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()  # a checkpoint is written in the background, and its rows before it
        self.closed = False
        if filesystem.is_local(url):
            self.folder = filesystem.local_path(url)
            return
        self._scratch = tempfile.TemporaryDirectory(prefix="synfundus-run-")
        self.folder = Path(self._scratch.name)
        for name in (METRICS_NAME, LEDGER_NAME):
            there = filesystem.join(url, name)
            if filesystem.exists(there):
                (self.folder / name).write_bytes(filesystem.read_bytes(there))

    def upload(self) -> None:
        """Upload changed files.

        Raises:
            StorageError: The upload failed; the next call tries again.
        """
        with self._lock:
            self._upload()

    def _upload(self) -> None:
        if self._scratch is None or self.closed:
            return
        self._uploaded_at = time.monotonic()
        for path in sorted(self.folder.rglob("*")):
            if not path.is_file():
                continue
            name, status = path.relative_to(self.folder).as_posix(), path.stat()
            mark = (status.st_size, status.st_mtime_ns)
            if self._uploaded.get(name) != mark:
                filesystem.write_bytes(filesystem.join(self._url, name), path.read_bytes())
                self._uploaded[name] = mark

    def upload_if_due(self) -> None:
        """Upload if the interval has passed; after an error, the next checkpoint tries again."""
        if time.monotonic() - self._uploaded_at < UPLOAD_INTERVAL_S or not self._lock.acquire(blocking=False):
            return
        try:
            with contextlib.suppress(StorageError):
                self._upload()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Upload and remove the temporary folder."""
        with self._lock:
            try:
                self._upload()
            finally:
                self.closed = True
                if self._scratch is not None:
                    self._scratch.cleanup()


class SpooledSinks(MetricSinks):
    """Sinks that write into a spool and close it."""

    def __init__(self, sinks: Sequence[MetricSink], spool: RunSpool) -> None:
        super().__init__(sinks)
        self._spool = spool

    def write(self, row: Mapping[str, Figure]) -> None:
        """Hand the row to every sink."""
        super().write(row)
        self._spool.upload_if_due()

    def close(self) -> None:
        """Close every sink, then the spool."""
        try:
            super().close()
        finally:
            self._spool.close()
