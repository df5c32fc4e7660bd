"""Global batches for one rank, in order, prefetched.

The plan gives the positions, the reader reads them; a background thread or worker processes keep a bounded number of
batches ready. The whole state of the loader is `images_seen`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synfundus.shards.batches import Augment, BatchReader, RankBatch
from synfundus.shards.shard_plan import rank_positions
from synfundus.shards.worker_pool import POLL_S, WorkerPool

__all__ = ["Augment", "BatchLoader", "BatchReader", "Prefetch", "RankBatch"]

_JOIN_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Prefetch:
    """How batches are prefetched.

    Attributes:
        batches: Batches kept ready; 0 without workers reads on demand.
        max_bytes: Maximum size of the batches kept ready, but at least one batch (with workers, two per worker).
        workers: Number of reader processes; 0 reads in a thread of this process.
        stall_s: Time after which a worker that returns nothing is reported.
    """

    batches: int
    max_bytes: int
    workers: int
    stall_s: float


@dataclass(frozen=True)
class RankSteps:
    """The positions this rank reads in each step.

    Attributes:
        start_images: Images seen so far.
        global_batch_size: Images per step over all ranks.
        rank: This rank.
        world_size: Number of ranks.
    """

    start_images: int
    global_batch_size: int
    rank: int
    world_size: int

    @property
    def rows(self) -> int:
        """Samples of a step for this rank."""
        return len(self.positions(0))

    def positions(self, step: int) -> NDArray[np.int64]:
        """Return the positions of a step, counted from the start."""
        return rank_positions(
            images_seen=self.start_images + step * self.global_batch_size,
            global_batch_size=self.global_batch_size,
            rank=self.rank,
            world_size=self.world_size,
        )


class BatchLoader:
    """Yields the part of each global batch for this rank, from a position on.

    With workers, the arrays of a batch are valid until the next batch is requested: they are views of memory that is
    shared with the worker and reused.

    Args:
        reader: Batches by position.
        steps: The positions to read.
        prefetch: How batches are prefetched.
    """

    def __init__(self, *, reader: BatchReader, steps: RankSteps, prefetch: Prefetch) -> None:
        self._reader = reader
        self._steps = steps
        self._prefetch = prefetch
        self._step = 0
        self._queue: queue.Queue[RankBatch | BaseException] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pool: WorkerPool | None = None
        self._failure: BaseException | None = None
        self.wait_s = 0.0
        """Seconds the consumer has waited for data so far."""

    @property
    def set_sizes(self) -> list[int]:
        """Number of samples of each set."""
        return self._reader.plan.set_sizes

    def _next(self) -> RankBatch:
        batch = self._reader.read(self._steps.positions(self._step))
        self._step += 1
        return batch

    def _fill(self, ready: queue.Queue[RankBatch | BaseException]) -> None:
        self._fill_until_stopped(ready)
        if self._stop.is_set():  # close() may not have waited for this thread
            self._reader.close()

    def _fill_until_stopped(self, ready: queue.Queue[RankBatch | BaseException]) -> None:
        item: RankBatch | BaseException
        while not self._stop.is_set():
            try:
                item = self._next()
            except BaseException as error:  # noqa: BLE001 - passed to the consumer, which raises it
                item = error
            while not self._stop.is_set():
                try:
                    ready.put(item, timeout=POLL_S)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return

    def __iter__(self) -> Iterator[RankBatch]:
        """Yield batches forever.

        Raises:
            RuntimeError: The loader was closed.
            LaunchError: A worker process died or hangs.
        """
        while True:
            batch = self.take()
            if batch is not None:
                yield batch

    def take(self, interrupted: Callable[[], bool] = lambda: False) -> RankBatch | None:
        """Return the next batch.

        Args:
            interrupted: Polled while waiting; True ends the wait with None, without losing a batch.

        Raises:
            RuntimeError: The loader was closed.
            LaunchError: A worker process died or hangs.
            SynfundusError: An error while reading.
        """
        if self._stop.is_set():
            raise RuntimeError("the loader is closed")
        began = time.perf_counter()
        try:
            return self._take(interrupted)
        finally:
            self.wait_s += time.perf_counter() - began

    def first_sample(self, images_seen: int) -> str:
        """Return the name of the first sample of this rank in the step that starts at ``images_seen``."""
        step = (images_seen - self._steps.start_images) // self._steps.global_batch_size
        return self._reader.sample_name(int(self._steps.positions(step)[0]))

    def _take(self, interrupted: Callable[[], bool]) -> RankBatch | None:
        """Return the next batch from workers, thread or reader, or raise the error that ended reading."""
        if self._failure is not None:
            raise self._failure
        item: RankBatch | BaseException | None = None
        try:
            if self._prefetch.workers:
                item = self._workers().take(interrupted)
            elif not self._prefetch.batches:
                item = self._next()
            else:
                item = self._from_thread(self._background(), interrupted)
        except Exception as error:
            self._failure = error
            raise
        if isinstance(item, BaseException):
            self._failure = item
            raise item
        return item

    @staticmethod
    def _from_thread(
        ready: queue.Queue[RankBatch | BaseException], interrupted: Callable[[], bool]
    ) -> RankBatch | BaseException | None:
        while True:
            try:
                return ready.get(timeout=POLL_S)
            except queue.Empty:
                if interrupted():
                    return None

    def _depth(self) -> int:
        """Return the number of batches kept ready."""
        rows = self._steps.rows
        size = sum(rows * int(np.prod(shape)) * dtype.itemsize for shape, dtype in self._reader.layout().values())
        return max(1, min(self._prefetch.batches, self._prefetch.max_bytes // max(size, 1)))

    def _background(self) -> queue.Queue[RankBatch | BaseException]:
        if self._queue is None:
            self._queue = queue.Queue(maxsize=self._depth())
            self._thread = threading.Thread(target=self._fill, args=(self._queue,), name="batch-loader", daemon=True)
            self._thread.start()
        return self._queue

    def _workers(self) -> WorkerPool:
        if self._pool is None:
            self._pool = WorkerPool(
                self._reader,
                self._steps,
                workers=self._prefetch.workers,
                depth=self._depth(),
                stall_s=self._prefetch.stall_s,
            )
        return self._pool

    def close(self) -> None:
        """Stop reading and close the files.

        Does not wait for a read from a store that does not answer: a process that was asked to stop has a grace time.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_JOIN_TIMEOUT_S)
            self._thread = None
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        self._reader.close()
