"""Folders: local paths for libraries that cannot use URLs, who else may write, and whether we made what is there.

diffusers and safetensors need paths. A folder in an object store is copied to a temporary folder that only the owner
can read and that is removed when the block ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from synfundus.errors import ConfigError, SynfundusError
from synfundus.storage import filesystem
from synfundus.storage.locations import local_path, resolved
from synfundus.storage.safe_files import fsync_dir, fsync_tree

WRITER_NAME = ".writer.json"
"""The note of who writes to a folder (`storage.writer_lock`)."""
_WRITER = re.compile(rf"\.?{re.escape(WRITER_NAME)}(\..*)?")
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


def require_writable(url: str) -> None:
    """Refuse a folder on this machine in which, or in the nearest folder above it that is there, nothing can be made.

    Nothing is written; whether an object store lets us write is not asked.

    Raises:
        StorageError: It is on a read-only disk, or its permissions forbid it.
    """
    if not filesystem.is_local(url):
        return
    path = local_path(url).absolute()
    with filesystem.storage_errors("write", url):
        above = next(one for one in (path, *path.parents) if one.is_dir())
        if os.statvfs(above).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


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
        with _disk_errors(work):
            yield work
        mark = filesystem.join(url, UNFINISHED_NAME)
        filesystem.write_bytes(mark, b"A folder is being replaced here.\n")
        for name in [*last, *filesystem.list_names(url)]:
            if name != UNFINISHED_NAME and not _WRITER.fullmatch(name):
                filesystem.remove(filesystem.join(url, name), recursive=True)
        filesystem.upload_folder(work, url, last=last)
        filesystem.remove(mark)


_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """Name what a disk refuses to other libraries that write here; safetensors says it in an error of its own."""
    try:
        yield
    except Exception as error:
        said = _OS_ERROR.search(str(error))
        number = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
        if number not in _OF_THE_DISK or isinstance(error, SynfundusError):
            raise
        with filesystem.storage_errors("write", str(target)):
            raise OSError(number, os.strerror(number)) from error


@contextmanager
def _renamed(target: Path) -> Iterator[Path]:
    """Provide a folder beside ``target`` and rename it to ``target`` at the end."""
    filesystem.make_dir(str(target.parent))
    work = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    try:
        work.mkdir()
        with _disk_errors(target):
            yield work
        with filesystem.storage_errors("write", str(target)):
            fsync_tree(work)
        if target.exists():
            target.rename(old)
        work.rename(target)
        fsync_dir(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


_NAMES_SHOWN = 5


def writers(url: str) -> str:
    """Return who besides the owner may write to a local folder: ``everybody``, ``its group``, or an empty string.

    The permissions of an object store are not checked.
    """
    if not filesystem.is_local(url):
        return ""
    with contextlib.suppress(OSError):
        mode = filesystem.local_path(url).stat().st_mode
        if mode & stat.S_IWOTH:
            return "everybody"
        if mode & stat.S_IWGRP:
            return "its group"
    return ""


def holds_ours(url: str, *, proof: Sequence[str], own: str = "", beside: str = "", flag: str = "--out") -> bool:
    """Whether a folder holds what we made there; one that holds anything else is refused.

    Args:
        url: The folder; it need not be there.
        proof: Names of files below it: with one of them it is ours.
        own: Pattern of everything below a folder of ours; empty where others may have added to it.
        beside: Pattern of what may lie in a folder that is not ours yet.
        flag: The option that names the folder.

    Returns:
        False where nothing is there yet.

    Raises:
        ConfigError: It is a file, or holds something else; the message names it.
    """
    hint = f"give another {flag}, or move away what is there"
    if not filesystem.is_dir(url):
        there = filesystem.exists(url) or (filesystem.is_local(url) and os.path.lexists(filesystem.local_path(url)))
        if not there:
            return False
        if not filesystem.is_dir(url):  # else another process has just made it
            raise ConfigError(f"{flag} is a file, not a folder", where=url, hint=hint)
    ours = any(filesystem.exists(filesystem.join(url, name)) for name in proof)
    if ours and not own:
        return True
    allowed = re.compile(own if ours else "|".join(filter(None, [beside, *map(_unfinished, proof)])))
    foreign = [name if name.isprintable() else repr(name) for name in islice(_foreign(url, allowed), _NAMES_SHOWN + 1)]
    if foreign:
        foreign[_NAMES_SHOWN:] = ["..."] if len(foreign) > _NAMES_SHOWN else []
        raise ConfigError(f"the folder holds something else: {', '.join(foreign)}", where=url, hint=hint)
    return ours


def _unfinished(name: str) -> str:
    """Return a pattern of what a kill leaves of a file that was being written: its folder, its temporary name."""
    folder, slash, last = name.rpartition("/")
    temporary = rf"{re.escape(folder + slash)}\.{re.escape(last)}\.[0-9a-f]+\.tmp"
    return f"{re.escape(folder)}|{temporary}" if folder else temporary


def _foreign(url: str, allowed: re.Pattern[str], below: str = "") -> Iterator[str]:
    """Yield what does not match; folders that do not are named, not looked into."""
    for name in filesystem.list_names(filesystem.join(url, below) if below else url):
        path = f"{below}/{name}" if below else name
        if _WRITER.fullmatch(path):
            continue
        if not allowed.fullmatch(path):
            yield path
        elif filesystem.is_dir(filesystem.join(url, path)):
            yield from _foreign(url, allowed, path)
