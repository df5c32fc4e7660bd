"""Plain webdataset opens our locations: the same door, checks and retries as everything else here."""

from __future__ import annotations

import importlib
from typing import IO, Any

from synfundus.errors import StorageError
from synfundus.storage import filesystem

SCHEMES = ("s3", "memory")


def register_webdataset_schemes() -> None:
    """Let ``webdataset.WebDataset("s3://...")`` read through this package, in this process.

    A worker process that was not forked from this one has to call it too. webdataset is imported here and not
    before. Its commands for other schemes (``pipe:``, ``http:`` ...) stay as they are.
    """
    gopen = importlib.import_module("webdataset.gopen")  # the package has a function of this name as well
    gopen.gopen_schemes.update(dict.fromkeys(SCHEMES, open_for_webdataset))


def open_for_webdataset(url: str, mode: str = "rb", bufsize: int = 8192, **options: Any) -> IO[bytes]:  # noqa: ANN401
    """Open a shard for webdataset; all of it is checked against its hash before the first byte is handed out.

    Raises:
        StorageError: The store refused, or writing was asked for.
        CorruptShard: The shard does not match the hash recorded for it.
    """
    if mode not in {"r", "rb"}:
        raise StorageError(f"a shard is not opened with mode {mode!r} here", where=url)
    return filesystem.open_read(url)
