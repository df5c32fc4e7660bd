"""Let plain webdataset open our locations, with the same checks and retries."""

from __future__ import annotations

import importlib
from typing import IO, Any

from synfundus.errors import StorageError
from synfundus.storage import filesystem

SCHEMES = ("s3", "memory")


def register_webdataset_schemes() -> None:
    """Let ``webdataset.WebDataset("s3://...")`` read through this package, in this process.

    A worker process that was not forked from this one must call it too. webdataset is imported only here. Its commands
    for other schemes (``pipe:``, ``http:`` ...) are unchanged.
    """
    gopen = importlib.import_module("webdataset.gopen")  # the package also has a function of this name
    gopen.gopen_schemes.update(dict.fromkeys(SCHEMES, open_for_webdataset))


def open_for_webdataset(url: str, mode: str = "rb", bufsize: int = 8192, **options: Any) -> IO[bytes]:  # noqa: ANN401
    """Open a shard for webdataset; it is checked against its hash before the first byte is returned.

    Raises:
        StorageError: The store refused, or the mode is not reading.
        CorruptShard: The shard does not match the hash recorded for it.
    """
    if mode not in {"r", "rb"}:
        raise StorageError(f"cannot open a shard with mode {mode!r}", where=url)
    return filesystem.open_read(url)
