"""Memory that processes share, reserved before it is touched: a page that is not there kills a process by SIGBUS."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any

from synfundus.errors import ConfigError

FOLDERS = ("/dev/shm", "")  # noqa: S108 - a file there has no name
"""Where it may be: in memory, else in TMPDIR."""


def reserve(descriptor: int, size: int) -> None:
    """Give a file its size and its space.

    Raises:
        OSError: There is no room.
    """
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        with contextlib.suppress(OSError):  # what it has taken until then
            os.ftruncate(descriptor, 0)
        raise


class SharedMemory:
    """Zeros that this process shares with those it starts; it is gone with the last of them.

    Args:
        size: Bytes.

    Attributes:
        view: The memory.

    Raises:
        ConfigError: There is no room for it; names how much there is where.
    """

    def __init__(self, size: int) -> None:
        tried = []
        for folder in FOLDERS:
            folder = folder or tempfile.gettempdir()
            try:
                self._descriptor = _unnamed(folder, size)
            except OSError as error:
                tried.append(_room(folder, error))
                continue
            self.view = mmap.mmap(self._descriptor, size)
            return
        raise ConfigError(
            f"no room for {size:,} bytes of shared memory: {'; '.join(tried)}",
            where="workers",
            hint="fewer workers or a smaller prefetch_max_bytes need less; containers have 64 MB of /dev/shm unless "
            "started with more (docker run --shm-size)",
        )

    def __reduce__(self) -> tuple[Callable[..., SharedMemory], tuple[Any, int]]:
        return _attach, (DupFd(self._descriptor), len(self.view))

    def __del__(self) -> None:
        if hasattr(self, "view"):
            os.close(self._descriptor)


def _unnamed(folder: str, size: int) -> int:
    descriptor, name = tempfile.mkstemp(prefix="synfundus-", dir=folder)
    try:
        os.unlink(name)  # noqa: PTH108 - no object is needed for it
        reserve(descriptor, size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _room(folder: str, error: OSError) -> str:
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(folder)
        return f"{folder} has {usage.free:,} of {usage.total:,} ({error.strerror})"
    return f"{folder}: {error.strerror}"


def _attach(handle: Any, size: int) -> SharedMemory:  # noqa: ANN401 - of multiprocessing
    """Open the memory of the process that started this one."""
    shared = SharedMemory.__new__(SharedMemory)
    shared._descriptor = handle.detach()
    shared.view = mmap.mmap(shared._descriptor, size)
    return shared
