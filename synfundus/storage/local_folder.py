"""Local paths of folders, for libraries that cannot use URLs.

diffusers and safetensors need paths. A folder in an object store is copied to a temporary folder that only the owner
can read and that is removed when the block ends.
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
from synfundus.storage.locations import resolved
from synfundus.storage.permissions import holds_ours

UNFINISHED_NAME = "UNFINISHED"
"""Name of a file that exists in a remote folder while it is being replaced."""
_PREFIX = "synfundus-"


@contextmanager
def folder_to_read(url: str) -> Iterator[Path]:
    """Provide a local path of a folder: its own, or a copy.

    Errors raised in the block name the URL, not the copy.

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


def require_replaceable(url: str, *, last: Sequence[str], own: str) -> None:
    """Refuse to replace a folder that was not written with `folder_to_replace`, or to which something was added.

    Raises:
        ConfigError: Names what is there.
    """
    holds_ours(url, proof=[*last, UNFINISHED_NAME], own=f"{UNFINISHED_NAME}|{own}")


@contextmanager
def folder_to_replace(url: str, *, last: Sequence[str], own: str) -> Iterator[Path]:
    """Provide an empty folder that replaces ``url`` when the block ends without an error.

    On a disk it is renamed. In an object store the old folder is removed, then the new one is uploaded, the names in
    ``last`` at the end: a folder without them is incomplete.

    Args:
        url: The folder to write; a link is followed.
        last: Names that mark the folder as complete.
        own: Pattern of all paths below it, folders too: anything else is not ours to remove.

    Raises:
        ConfigError: Something else is there.
        StorageError: The disk or the store failed.
    """
    require_replaceable(url, last=last, own=own)
    if filesystem.is_local(url):
        with _renamed(Path(resolved(url))) as work:
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
    """Provide a folder beside ``target`` and rename it to ``target`` at the end."""
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
