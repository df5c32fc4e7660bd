"""Ordered results from worker processes, with a bounded number of tasks in memory.

Every worker has its own pipe, so the main process always knows which task it is working on. A task whose worker dies or
exceeds the time limit is retried once in a new worker; if it is lost again, the caller decides what to do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from synfundus.errors import LaunchError, SynfundusError
from synfundus.processes.worker_ends import end_with_parent, ignore_stop_signals, stop_signals_blocked

T = TypeVar("T")
R = TypeVar("R")

_AHEAD_PER_WORKER = 4
_QUEUED_PER_WORKER = 2  # one running, one in the pipe: no worker waits for the main process
_MAX_LOSSES = 2
_STOP_S = 5.0
_START_S = 300.0  # an interpreter and its imports on a busy file system


@dataclass(frozen=True)
class Lost(Generic[T]):
    """A task that no worker finished.

    Attributes:
        task: The task.
        hung: Whether it exceeded the time limit; otherwise its workers died.
        detail: What happened, for messages.
    """

    task: T
    hung: bool
    detail: str


@dataclass
class _Worker:
    """A process, its pipe, and the numbers of its tasks: the first one is running."""

    process: BaseProcess
    pipe: Connection
    given: deque[int] = field(default_factory=deque)
    since: float = 0.0
    ready: bool = False
    started: float = field(default_factory=time.monotonic)


def _serve(pipe: Connection) -> None:
    """Run the tasks that arrive; end with the main process."""
    end_with_parent()
    ignore_stop_signals()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send(None)
        while (received := pipe.recv()) is not None:
            number, function, task = received
            try:
                answer: tuple[int, bool, Any] = (number, True, function(task))
            except Exception as error:  # noqa: BLE001 - sent to the main process, which raises it
                answer = (number, False, _portable(error))
            pipe.send(answer)


def _portable(error: Exception) -> Exception:
    """Return an error that can be pickled. Errors of other libraries may not be, and may quote file names."""
    if isinstance(error, SynfundusError):
        return error
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return LaunchError(f"a worker process failed: {type(error).__name__} in {frame.name}, line {frame.lineno}")


class ProcessMap:
    """Maps a function over tasks; results come in the order of the tasks.

    Args:
        workers: Number of processes; 0 runs the tasks in this process.
        limit_s: Maximum time per task in a worker, in seconds; None = no limit.
    """

    def __init__(self, workers: int, *, limit_s: float | None) -> None:
        self._number = workers
        self._limit_s = limit_s
        self._workers: list[_Worker] = []

    def __call__(
        self, function: Callable[[T], R], tasks: Iterable[T], *, lost: Callable[[Lost[T]], R] | None = None
    ) -> Iterator[R]:
        """Yield ``function(task)`` for each task; the function must be importable by name.

        Args:
            function: Function of one task.
            tasks: The tasks.
            lost: Returns the result for a task that was lost twice; None raises instead.

        Raises:
            LaunchError: A task was lost twice and ``lost`` is None, or a worker did not start.
        """
        if self._number == 0:
            yield from map(function, tasks)
            return
        yield from _Run(self, function, iter(tasks), lost).results()

    def workers(self) -> list[_Worker]:
        """Return the worker processes; start those that are missing."""
        context = multiprocessing.get_context("spawn")
        while len(self._workers) < self._number:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            with stop_signals_blocked():
                process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours))
        return list(self._workers)

    def busy(self) -> list[_Worker]:
        """Return the workers that have tasks."""
        return [worker for worker in self._workers if worker.given]

    def drop(self, worker: _Worker) -> str:
        """End a worker, to be replaced by a new one; return how it ended."""
        worker.process.join(timeout=0.1)
        code = worker.process.exitcode
        if code is None:
            worker.process.kill()
            worker.process.join(timeout=_STOP_S)
        worker.pipe.close()
        self._workers.remove(worker)
        if code is None:
            return "it was stopped"
        return f"it was killed by signal {-code}" if code < 0 else f"it ended with exit code {code}"

    @property
    def ahead(self) -> int:
        """Maximum number of tasks sent out whose results were not yielded yet."""
        return _AHEAD_PER_WORKER * self._number

    @property
    def limit_s(self) -> float | None:
        """Maximum time per task in a worker."""
        return self._limit_s

    def close(self) -> None:
        """End the processes; those that do not exit within a few seconds are killed."""
        for worker in self._workers:
            with contextlib.suppress(OSError, ValueError):
                worker.pipe.send(None)
            worker.pipe.close()
        deadline = time.monotonic() + _STOP_S
        for worker in self._workers:
            worker.process.join(timeout=max(0.0, deadline - time.monotonic()))
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join(timeout=_STOP_S)
        self._workers = []


class _Run(Generic[T, R]):
    """One pass of a function over tasks."""

    def __init__(
        self, pool: ProcessMap, function: Callable[[T], R], tasks: Iterator[T], lost: Callable[[Lost[T]], R] | None
    ) -> None:
        self._pool = pool
        self._function = function
        self._tasks = tasks
        self._lost = lost
        self._open: dict[int, T] = {}  # sent out, no result yet
        self._retries: deque[int] = deque()
        self._losses: dict[int, int] = {}
        self._done: dict[int, R] = {}
        self._next_task = 0
        self._exhausted = False

    def results(self) -> Iterator[R]:
        """Yield the results in order."""
        next_result = 0
        try:
            while True:
                self._hand_out()
                while next_result in self._done:
                    yield self._done.pop(next_result)
                    next_result += 1
                    self._hand_out()
                if self._exhausted and not self._open:
                    return
                self._collect()
        finally:
            for worker in self._pool.busy():
                # results of tasks still running are not wanted any more
                worker.process.kill()
                self._pool.drop(worker)

    def _hand_out(self) -> None:
        """Give every worker a task to run and one to run next."""
        for depth in range(_QUEUED_PER_WORKER):
            for worker in self._pool.workers():
                if len(worker.given) == depth and not self._give(worker):
                    return

    def _give(self, worker: _Worker) -> bool:
        """Send a task to a worker; return whether there may be more tasks."""
        if self._retries:
            number = self._retries.popleft()
        else:
            if self._exhausted or len(self._open) + len(self._done) >= self._pool.ahead:
                return False
            try:
                task = next(self._tasks)
            except StopIteration:
                self._exhausted = True
                return False
            number = self._next_task
            self._next_task += 1
            self._open[number] = task
        if not worker.given:
            worker.since = time.monotonic()
        worker.given.append(number)
        # a dead worker is noticed in _collect
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            worker.pipe.send((number, self._function, self._open[number]))
        return True

    def _collect(self) -> None:
        """Wait for a result, the end of a worker or a timeout, and process it."""
        workers, busy = self._pool.workers(), self._pool.busy()
        limit_s = self._pool.limit_s
        deadlines = [worker.started + _START_S for worker in workers if not worker.ready]
        if limit_s is not None:
            deadlines += [worker.since + limit_s for worker in busy if worker.ready]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        ready = set(wait([end for w in workers for end in (w.pipe, w.process.sentinel)], timeout))
        for worker in workers:
            if worker.pipe in ready:
                self._receive(worker)
            elif worker.process.sentinel in ready:
                self._lose(worker, hung=False)
            elif self._is_late(worker, limit_s):
                self._lose(worker, hung=True)

    @staticmethod
    def _is_late(worker: _Worker, limit_s: float | None) -> bool:
        """Whether a worker exceeded the time to start or the time limit of its task."""
        now = time.monotonic()
        if not worker.ready:
            return now - worker.started > _START_S
        return limit_s is not None and bool(worker.given) and now - worker.since > limit_s

    def _receive(self, worker: _Worker) -> None:
        try:
            received = worker.pipe.recv()
        except (EOFError, OSError):
            self._lose(worker, hung=False)
            return
        if received is None:
            worker.ready, worker.since = True, time.monotonic()
            return
        number, succeeded, value = received
        worker.given.popleft()
        worker.since = time.monotonic()
        del self._open[number]
        if not succeeded:
            raise value
        self._done[number] = value

    def _lose(self, worker: _Worker, *, hung: bool) -> None:
        """Replace a lost worker and retry its tasks."""
        how = self._pool.drop(worker)
        if not worker.ready:
            raise LaunchError(f"a worker process did not start: {how}", hint="use fewer --workers, or 0")
        if not worker.given:
            return
        self._retries.extendleft(reversed(worker.given))
        number = worker.given[0]
        self._losses[number] = self._losses.get(number, 0) + 1
        if self._losses[number] < _MAX_LOSSES:
            return
        self._retries.remove(number)
        detail = f"no result within {self._pool.limit_s:g} s" if hung else f"its worker process died: {how}"
        task = Lost(self._open.pop(number), hung, f"{detail}, {_MAX_LOSSES} times")
        if self._lost is None:
            raise LaunchError(
                f"a worker process was lost: {task.detail}",
                hint="most likely it ran out of memory: use fewer --workers, or 0",
            )
        self._done[number] = self._lost(task)


@contextmanager
def process_map(workers: int, *, limit_s: float | None = None) -> Iterator[ProcessMap]:
    """Provide a pool of worker processes for the block.

    Processes are spawned, not forked: a fork is not safe while the caller has threads.

    Args:
        workers: Number of processes; 0 runs the tasks in this process.
        limit_s: Maximum time per task in a worker, in seconds; None = no limit.
    """
    pool = ProcessMap(workers, limit_s=limit_s)
    try:
        yield pool
    finally:
        pool.close()
