"""When a file was written."""

from __future__ import annotations

from synfundus.storage import filesystem
from synfundus.storage.s3 import object_store


def modified_at(url: str) -> float | None:
    """Return when a file was last written, in seconds since 1970; None if it is missing or the time is unknown.

    Raises:
        StorageError: The store refused, or gave no valid answer within the deadline.
    """
    try:
        if filesystem.is_local(url):
            return filesystem.local_path(url).stat().st_mtime
        if filesystem.protocol_of(url) == "s3":
            written = object_store.stat(url).modified
            return None if written is None else written.timestamp()
    except (FileNotFoundError, NotADirectoryError):
        pass
    return None
