"""Threads for requests to a store, for which nobody waits at the end.

The interpreter waits for the threads of a `concurrent.futures` pool before it exits. A read from a store that is silent
can take as long as its deadline, which is longer than a cluster's grace time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
U = TypeVar("U")
_Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class DaemonThreads:
    """Runs functions in up to so many threads, started when they are needed. For one process.

    Args:
        most: Number of threads.
        name: What they are called.
    """

    def __init__(self, most: int, *, name: str) -> None:
        self._most = most
        self._name = name
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0
        self._is_closed = False
        self._lock = threading.Lock()

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:  # noqa: ANN401 - the function's own
        """Run a function in one of the threads.

        Raises:
            RuntimeError: The pool is closed.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"the threads {self._name} are closed")
            self._tasks.put((future, function, arguments))
            if not self._idle.acquire(blocking=False) and self._started < self._most:
                threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()
                self._started += 1
        return future

    def map(self, function: Callable[[U], T], items: Iterable[U]) -> list[T]:
        """Run a function on each item side by side; returns the results in order, or raises the first failure."""
        return [future.result() for future in [self.submit(function, item) for item in items]]

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function, arguments = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*arguments))
                except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
                    future.set_exception(error)
            del task, future, function, arguments  # or the last result lives until the next task
            self._idle.release()

    def close(self) -> None:
        """Cancel what has not begun; what has ends on its own."""
        with self._lock:
            self._is_closed = True
            with suppress(queue.Empty):
                while True:
                    task = self._tasks.get_nowait()
                    if task is not None:
                        task[0].cancel()
            for _ in range(self._started):
                self._tasks.put(None)
