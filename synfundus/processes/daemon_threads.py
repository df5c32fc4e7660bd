"""A thread pool that does not delay the exit of the process.

The interpreter waits for the threads of a `concurrent.futures` pool before it exits. A read from a store that does not
answer can take as long as its deadline, which is longer than a cluster's grace time.
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
    """Runs functions in threads that are started on demand. Not shared between processes.

    Args:
        max_threads: Maximum number of threads.
        name: Prefix of their names.
    """

    def __init__(self, max_threads: int, *, name: str) -> None:
        self._max_threads = max_threads
        self._name = name
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0
        self._is_closed = False
        self._lock = threading.Lock()

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:  # noqa: ANN401 - passed to the function
        """Run a function in one of the threads.

        Raises:
            RuntimeError: The pool is closed.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"the thread pool {self._name} is closed")
            self._tasks.put((future, function, arguments))
            if not self._idle.acquire(blocking=False) and self._started < self._max_threads:
                threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()
                self._started += 1
        return future

    def map(self, function: Callable[[U], T], items: Iterable[U]) -> list[T]:
        """Run a function on all items concurrently; return the results in order, or raise the first error."""
        return [future.result() for future in [self.submit(function, item) for item in items]]

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function, arguments = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*arguments))
                except BaseException as error:  # noqa: BLE001 - raised by result()
                    future.set_exception(error)
            del task, future, function, arguments  # or the last result stays in memory until the next task
            self._idle.release()

    def close(self) -> None:
        """Cancel tasks that have not started; running ones finish in the background."""
        with self._lock:
            self._is_closed = True
            with suppress(queue.Empty):
                while True:
                    task = self._tasks.get_nowait()
                    if task is not None:
                        task[0].cancel()
            for _ in range(self._started):
                self._tasks.put(None)
