"""Ordered results from a pool of processes, with a bounded number of them in memory."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from synfundus.errors import LaunchError

T = TypeVar("T")
R = TypeVar("R")

_AHEAD_PER_WORKER = 3


class ProcessMap:
    """Maps a function over tasks; results come in the order of the tasks.

    Args:
        pool: The pool, or None to work in this process.
        ahead: Most tasks handed out whose results were not taken yet.
    """

    def __init__(self, pool: ProcessPoolExecutor | None, *, ahead: int) -> None:
        self._pool = pool
        self._ahead = ahead

    def __call__(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Yield ``function(task)`` for each task; the function must be importable by name.

        Raises:
            LaunchError: A process died.
        """
        if self._pool is None:
            yield from map(function, tasks)
            return
        pending: deque[Future[R]] = deque()
        try:
            for task in tasks:
                pending.append(self._pool.submit(function, task))
                if len(pending) >= self._ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise LaunchError(
                "a worker process died, most likely for want of memory", hint="use fewer --workers, or 0"
            ) from error
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def process_map(workers: int) -> Iterator[ProcessMap]:
    """Start a pool of ``workers`` processes for the block; 0 works in this process.

    Processes are spawned, not forked: the caller may have threads, which a fork would freeze.
    """
    if workers == 0:
        yield ProcessMap(None, ahead=1)
        return
    with ProcessPoolExecutor(max_workers=workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield ProcessMap(pool, ahead=_AHEAD_PER_WORKER * workers)
