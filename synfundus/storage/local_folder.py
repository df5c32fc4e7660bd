"""Folders that libraries read and write by path, wherever they lie.

diffusers and safetensors know paths, not URLs. What lies in an object store is copied to a temporary folder that only
the owner can read and that is gone when the block ends.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from synfundus.errors import SynfundusError
from synfundus.storage import filesystem

UNFINISHED_NAME = "UNFINISHED"
"""Lies in a remote folder while it is replaced."""
_PREFIX = "synfundus-"


@contextmanager
def folder_to_read(url: str) -> Iterator[Path]:
    """Give the path of a folder: its own, or that of a copy.

    An error raised in the block names the URL, not the copy.

    Raises:
        StorageError: The store cannot be read.
    """
    if filesystem.is_local(url):
        yield filesystem.local_path(url)
        return
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as scratch:
        copy = Path(scratch) / "copy"
        try:
            filesystem.download_folder(url, copy)
            yield copy
        except SynfundusError as error:
            error.message = error.message.replace(str(copy), url)
            error.where = error.where.replace(str(copy), url)
            raise


@contextmanager
def folder_to_replace(url: str, *, last: Sequence[str]) -> Iterator[Path]:
    """Give an empty folder that takes the place of ``url`` when the block ends well.

    On a disk by a rename. In an object store the old folder is removed first and the new one uploaded, the names in
    ``last`` at the end: a folder without them is unfinished.

    Args:
        url: The folder to write.
        last: Names below it that make it complete.

    Raises:
        StorageError: The disk or the store refused.
    """
    if filesystem.is_local(url):
        with _renamed(filesystem.local_path(url).absolute()) as work:
            yield work
        return
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as scratch:
        work = Path(scratch) / "new"
        work.mkdir()
        yield work
        mark = filesystem.join(url, UNFINISHED_NAME)
        filesystem.write_bytes(mark, b"A folder is being replaced here.\n")
        for name in [*last, *filesystem.list_names(url)]:
            if name != UNFINISHED_NAME:
                filesystem.remove(filesystem.join(url, name), recursive=True)
        filesystem.upload_folder(work, url, last=last)
        filesystem.remove(mark)


@contextmanager
def _renamed(target: Path) -> Iterator[Path]:
    """Give a folder beside ``target`` that is renamed to it."""
    filesystem.make_dir(str(target.parent))
    work = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    try:
        work.mkdir()
        yield work
        if target.exists():
            target.rename(old)
        work.rename(target)
        filesystem.fsync_dir(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
