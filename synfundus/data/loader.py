"""Global batches, in order, for one rank, prepared ahead of the step.

The loader asks the plan for positions, the reader for bytes, the decoder for arrays; a background thread keeps a
bounded number of batches ready. Its whole state is `images_seen`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synfundus.data.reader import Arrays, SampleDecoder, ShardSetReader
from synfundus.data.shard_plan import ReadingPlan, rank_positions
from synfundus.errors import CorruptShard, DataError

Augment = Callable[[NDArray[np.int64], Arrays], Arrays]
"""(positions, arrays) -> arrays; adds what is drawn per sample. Runs in the background thread."""

_POLL_S = 0.2
_SEARCH_SAMPLES = 256


@dataclass(frozen=True)
class Quarantined:
    """A sample that could not be used: its place and why."""

    position: int
    place: str
    reason: str


@dataclass(frozen=True)
class RankBatch:
    """One rank's part of a global batch.

    Attributes:
        positions: Positions in the run, ``[n]``.
        arrays: Named arrays, each ``[n, ...]``.
        weights: 1 for a good sample, 0 for a slot whose sample was quarantined, ``[n]``.
        quarantined: The samples behind the zero weights.
    """

    positions: NDArray[np.int64]
    arrays: Arrays
    weights: NDArray[np.float32]
    quarantined: tuple[Quarantined, ...]

    def split(self, num_micro_batches: int) -> list[RankBatch]:
        """Cut into equal micro-batches, in order; quarantined samples are reported with the first."""
        if num_micro_batches == 1:
            return [self]
        pieces = []
        for number, rows in enumerate(np.split(np.arange(len(self.positions)), num_micro_batches)):
            arrays = {name: array[rows] for name, array in self.arrays.items()}
            pieces.append(
                RankBatch(self.positions[rows], arrays, self.weights[rows], self.quarantined if number == 0 else ())
            )
        return pieces


class BatchLoader:
    """Yields this rank's part of each global batch from a position on.

    Args:
        reader: The split's samples.
        plan: The order.
        decode: Members of a sample -> arrays.
        augment: What is drawn per sample; None adds nothing.
        global_batch_size: Images per step over all ranks.
        rank: This rank.
        world_size: Number of ranks.
        start_images: Images seen so far.
        prefetch_batches: Batches kept ready; 0 reads when asked.
    """

    def __init__(
        self,
        *,
        reader: ShardSetReader,
        plan: ReadingPlan,
        decode: SampleDecoder,
        augment: Augment | None,
        global_batch_size: int,
        rank: int,
        world_size: int,
        start_images: int,
        prefetch_batches: int,
    ) -> None:
        self._reader = reader
        self._plan = plan
        self._decode = decode
        self._augment = augment
        self._global_batch_size = global_batch_size
        self._rank = rank
        self._world_size = world_size
        self._position = start_images
        self._prefetch = prefetch_batches
        self._queue: queue.Queue[RankBatch | BaseException] = queue.Queue(maxsize=max(1, prefetch_batches))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._last_good: Arrays | None = None
        self.wait_s = 0.0
        """Seconds the consumer has waited for data so far."""

    def _read_sample(self, shard: int, sample: int) -> Arrays:
        """Read and decode once more before giving a sample up: the first bytes may have been damaged on the way."""
        place = self._reader.place_name(shard, sample)
        try:
            return self._decode(*self._reader.read(shard, sample), place)
        except CorruptShard:
            return self._decode(*self._reader.read(shard, sample), place)

    def read_positions(self, positions: NDArray[np.int64]) -> RankBatch:
        """Read the samples at these positions; what cannot be read becomes a zero-weight slot.

        Raises:
            DataError: Neither a sample of the batch nor one of the next could be read.
        """
        places = self._plan.locate(positions)
        rows: list[Arrays | None] = []
        quarantined = []
        for position, shard, sample in zip(
            positions.tolist(), places.shard.tolist(), places.sample.tolist(), strict=True
        ):
            try:
                rows.append(self._read_sample(shard, sample))
            except CorruptShard as error:
                rows.append(None)
                quarantined.append(Quarantined(position, self._reader.place_name(shard, sample), error.message))
        good = next((row for row in rows if row is not None), None) or self._last_good
        good = good or self._search(int(positions[-1]) + 1)
        if good is None:
            raise DataError(
                f"none of the {len(rows)} samples of a batch and of the next {_SEARCH_SAMPLES} could be read, "
                f"first: {quarantined[0].reason}",
                where=quarantined[0].place,
            )
        self._last_good = good
        filled = [good if row is None else row for row in rows]
        arrays = {name: np.stack([row[name] for row in filled]) for name in good}
        if self._augment is not None:
            arrays = self._augment(positions, arrays)
        weights = np.array([0.0 if row is None else 1.0 for row in rows], dtype=np.float32)
        return RankBatch(positions, arrays, weights, tuple(quarantined))

    def _search(self, first: int) -> Arrays | None:
        """Return the first readable sample from a position on.

        Its arrays stand in where not one sample of a batch can be read (a rank may read a single one); as the weight
        of such a slot is 0, only their shapes count.
        """
        places = self._plan.locate(np.arange(first, first + _SEARCH_SAMPLES, dtype=np.int64))
        for shard, sample in zip(places.shard.tolist(), places.sample.tolist(), strict=True):
            with contextlib.suppress(CorruptShard):
                return self._read_sample(shard, sample)
        return None

    def _next(self) -> RankBatch:
        positions = rank_positions(
            images_seen=self._position,
            global_batch_size=self._global_batch_size,
            rank=self._rank,
            world_size=self._world_size,
        )
        batch = self.read_positions(positions)
        self._position += self._global_batch_size
        return batch

    def _fill(self) -> None:
        item: RankBatch | BaseException
        while not self._stop.is_set():
            try:
                item = self._next()
            except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
                item = error
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=_POLL_S)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return

    def __iter__(self) -> Iterator[RankBatch]:
        """Yield batches without end.

        Raises:
            RuntimeError: The loader was closed.
        """
        while True:
            if self._stop.is_set():
                raise RuntimeError("the loader is closed")
            began = time.perf_counter()
            batch = self._next() if self._prefetch == 0 else self._take()
            self.wait_s += time.perf_counter() - began
            yield batch

    def _take(self) -> RankBatch:
        """Return the next batch of the background thread, or raise what ended it."""
        if self._failure is not None:
            raise self._failure
        if self._thread is None:
            self._thread = threading.Thread(target=self._fill, name="batch-loader", daemon=True)
            self._thread.start()
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._failure = item
            raise item
        return item

    def close(self) -> None:
        """Stop the background thread and close the files."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._reader.close()
