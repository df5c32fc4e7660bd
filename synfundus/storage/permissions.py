"""Who else may write to a folder."""

from __future__ import annotations

import contextlib
import stat

from synfundus.storage import filesystem


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
