"""Worker processes that read batches into shared memory.

Worker k of n reads the steps k, k + n, k + 2n ...; the consumer takes them in turn, so the order does not depend on
their speed. Each worker has its own slots; a slot is returned when the consumer requests the next batch, so the number
of slots bounds the batches in memory. Processes are spawned, not forked: each opens its own files and connections.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from mmap import mmap
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import ErrorReport, LaunchError, Stalled
from synfundus.processes.shared_memory import SharedMemory
from synfundus.processes.worker_ends import end_with_parent, ignore_stop_signals, stop_signals_blocked
from synfundus.shards.batches import BatchReader, RankBatch
from synfundus.shards.reader import Arrays
from synfundus.shards.source import Layout

_ALIGNMENT = 64
_JOIN_TIMEOUT_S = 5.0
POLL_S = 0.2
"""How often a wait for a batch checks whether to stop."""


class Steps(Protocol):
    """The positions to read in each step."""

    @property
    def rows(self) -> int:
        """Number of samples per step."""

    def positions(self, step: int) -> NDArray[np.int64]:
        """Return the positions of a step."""


@dataclass(frozen=True)
class _Done:
    """A batch that a worker has written to a slot."""

    slot: int
    weights: NDArray[np.float32]
    quarantined: tuple[Any, ...]
    sets: NDArray[np.int64]
    epochs: NDArray[np.int64]


def slot_arrays(memory: mmap, layout: Layout, rows: int, slot: int) -> Arrays:
    """Return the arrays of a slot as views into shared memory."""
    offset = slot * slot_bytes(layout, rows)
    arrays: Arrays = {}
    for name, (shape, dtype) in layout.items():
        count = rows * int(np.prod(shape))
        arrays[name] = np.frombuffer(memory, dtype=dtype, count=count, offset=offset).reshape(rows, *shape)
        offset += -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    return arrays


def slot_bytes(layout: Layout, rows: int) -> int:
    """Return the size of a slot."""
    sizes = (rows * int(np.prod(shape)) * dtype.itemsize for shape, dtype in layout.values())
    return sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)


def _work(
    connection: Connection,
    reader: BatchReader,
    steps: Steps,
    memory: SharedMemory,
    layout: Mapping[str, Any],
    progress: Any,  # noqa: ANN401 - a ctypes integer
    numbers: tuple[int, int],
) -> None:
    """Read every n-th step into free slots until the consumer ends."""
    failed: ErrorReport | None = None
    end_with_parent()
    ignore_stop_signals()
    try:
        for step in itertools.count(*numbers):
            slot = connection.recv()
            positions = steps.positions(step)
            progress.value = int(positions[0])
            batch = reader.read(positions)
            for name, view in slot_arrays(memory.view, layout, steps.rows, slot).items():
                np.copyto(view, batch.arrays[name], casting="no")
            connection.send(_Done(slot, batch.weights, batch.quarantined, batch.sets, batch.epochs))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except BaseException as error:  # noqa: BLE001 - passed to the consumer, which raises it
        failed = ErrorReport.of(error)
    with contextlib.suppress(OSError):
        if failed is not None:
            connection.send(failed)


class WorkerPool:
    """Batches from worker processes, in order.

    Args:
        reader: Sent to every worker.
        steps: The positions to read.
        workers: Number of processes.
        depth: Batches kept ready, over all workers.
        stall_s: Time after which a worker that returns nothing is reported.

    Raises:
        ConfigError: There is no room for the batches kept ready.
    """

    def __init__(self, reader: BatchReader, steps: Steps, *, workers: int, depth: int, stall_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._reader = reader
        self._steps = steps
        self._stall_s = stall_s
        self._layout = reader.layout()
        slots = max(2, -(-depth // workers))
        self._memory = [SharedMemory(slots * slot_bytes(self._layout, steps.rows)) for _ in range(workers)]
        self._progress = [context.RawValue("q", -1) for _ in range(workers)]
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._taken: tuple[int, int] | None = None
        self._step = 0
        for number in range(workers):
            ours, theirs = context.Pipe()
            memory, progress = self._memory[number], self._progress[number]
            process = context.Process(
                target=_work,
                args=(theirs, reader, steps, memory, self._layout, progress, (number, workers)),
                name=f"loader worker {number}",
                daemon=True,
            )
            with stop_signals_blocked():
                process.start()
            theirs.close()  # so that the pipe closes when the worker ends
            self._connections.append(ours)
            self._processes.append(process)
            for slot in range(slots):
                ours.send(slot)

    def take(self, interrupted: Callable[[], bool] = lambda: False) -> RankBatch | None:
        """Return the next batch; its arrays are valid until the next call.

        Args:
            interrupted: Polled while waiting; True ends the wait with None.

        Raises:
            Stalled: The worker returns nothing.
            LaunchError: The worker died.
            SynfundusError: An error in the worker.
        """
        self._release_slot()
        number = self._step % len(self._processes)
        if not self._ready(number, interrupted):
            return None
        answer = self._answer(number)
        if isinstance(answer, ErrorReport):
            raise answer.to_error(source="a loader worker")
        positions = self._steps.positions(self._step)
        arrays = slot_arrays(self._memory[number].view, self._layout, self._steps.rows, answer.slot)
        self._taken = number, answer.slot
        self._step += 1
        return RankBatch(positions, arrays, answer.weights, answer.quarantined, answer.sets, answer.epochs)

    def _release_slot(self) -> None:
        """Return the slot of the last batch to its worker."""
        if self._taken is not None:
            number, slot = self._taken
            self._taken = None
            with contextlib.suppress(OSError):  # a dead worker is noticed when its next batch is due
                self._connections[number].send(slot)

    def _ready(self, number: int, interrupted: Callable[[], bool]) -> bool:
        """Wait until a worker has answered or ended; return False if interrupted."""
        sources: list[Connection | int] = [self._connections[number], self._processes[number].sentinel]
        deadline = time.monotonic() + self._stall_s
        while not wait(sources, timeout=min(POLL_S, max(0.0, deadline - time.monotonic()))):
            if interrupted():
                return False
            if time.monotonic() >= deadline:
                raise self._fault(number, f"has returned nothing for {self._stall_s:g} s", Stalled)
        return True

    def _answer(self, number: int) -> _Done | ErrorReport:
        connection, process = self._connections[number], self._processes[number]
        try:
            answer: _Done | ErrorReport = connection.recv()
        except (EOFError, OSError):
            process.join(_JOIN_TIMEOUT_S)
            code = process.exitcode
            how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended ({code})"
            raise self._fault(number, how) from None
        return answer

    def _fault(self, number: int, what: str, kind: type[LaunchError] = LaunchError) -> LaunchError:
        position = int(self._progress[number].value)
        sample = self._reader.sample_name(position) if position >= 0 else "before its first sample"
        return kind(
            f"loader worker {number} (process {self._processes[number].pid}) {what}",
            where=f"batch at position {position}, first sample {sample}" if position >= 0 else sample,
            hint="the same command resumes from the last checkpoint; if memory ran out, use fewer workers "
            "or a smaller prefetch_max_bytes",
        )

    def close(self) -> None:
        """End the processes by closing their connections; those that do not exit are killed."""
        for connection in self._connections:
            connection.close()
        deadline = time.monotonic() + _JOIN_TIMEOUT_S
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._connections, self._processes = [], []
