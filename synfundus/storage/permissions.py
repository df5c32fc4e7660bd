"""Who else may write to a folder, and whether we may: nothing is replaced that we did not make."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from itertools import islice

from synfundus.errors import ConfigError
from synfundus.storage import filesystem

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
        if filesystem.exists(url) or (filesystem.is_local(url) and os.path.lexists(filesystem.local_path(url))):
            raise ConfigError(f"{flag} is a file, not a folder", where=url, hint=hint)
        return False
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
        if not allowed.fullmatch(path):
            yield path
        elif filesystem.is_dir(filesystem.join(url, path)):
            yield from _foreign(url, allowed, path)
