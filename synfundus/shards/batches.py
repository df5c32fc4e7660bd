"""Positions of the run -> arrays of a batch; samples that cannot be used get weight 0 and are reported.

The ledger counts the samples of each epoch over all ranks: planned = delivered + quarantined, by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import CorruptShard, DataError
from synfundus.processes.daemon_threads import DaemonThreads
from synfundus.shards.reader import Arrays
from synfundus.shards.shard_plan import MixedLocation, MixedPlan
from synfundus.shards.source import Layout, SampleSource, allocate

Augment = Callable[[NDArray[np.int64], Arrays], Arrays]
"""(positions, arrays) -> arrays; adds random draws per sample."""

_SEARCH_SAMPLES = 256
_REQUESTS = 8


@dataclass(frozen=True)
class RankBatch:
    """The part of a global batch of one rank.

    Attributes:
        positions: Positions in the run, ``[n]``.
        arrays: Named arrays, each ``[n, ...]``.
        weights: 1 for a valid sample, 0 for a quarantined one, ``[n]``.
        quarantined: The samples with weight 0.
        sets: Number of the set of each sample, ``[n]``.
        epochs: Epoch in that set, ``[n]``.
    """

    positions: NDArray[np.int64]
    arrays: Arrays
    weights: NDArray[np.float32]
    quarantined: tuple[Quarantined, ...]
    sets: NDArray[np.int64]
    epochs: NDArray[np.int64]

    def split(self, num_micro_batches: int) -> list[RankBatch]:
        """Split into equal micro-batches, in order; quarantined samples are reported with the first."""
        if num_micro_batches == 1:
            return [self]
        pieces = []
        for number, rows in enumerate(np.split(np.arange(len(self.positions)), num_micro_batches)):
            arrays = {name: array[rows] for name, array in self.arrays.items()}
            named = self.quarantined if number == 0 else ()
            pieces.append(
                RankBatch(self.positions[rows], arrays, self.weights[rows], named, self.sets[rows], self.epochs[rows])
            )
        return pieces

    def tally(self) -> Tally:
        """Count planned and delivered samples by set and epoch."""
        counts: dict[tuple[int, int], tuple[int, int]] = {}
        good = self.weights > 0
        for number, epoch in {*zip(self.sets.tolist(), self.epochs.tolist(), strict=True)}:
            rows = (self.sets == number) & (self.epochs == epoch)
            counts[(number, epoch)] = int(rows.sum()), int((rows & good).sum())
        return counts


class BatchReader:
    """Reads batches by position. Pickling sends only a description to another process.

    Args:
        plan: The reading order.
        sources: Samples of each set of the plan.
        augment: Adds random draws per sample; None adds nothing.
    """

    def __init__(self, plan: MixedPlan, sources: Sequence[SampleSource], *, augment: Augment | None) -> None:
        self.plan = plan
        self._sources = tuple(sources)
        self._augment = augment
        self._any_valid = False
        self._requests: DaemonThreads | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a description."""
        return partial(BatchReader, self.plan, self._sources, augment=self._augment), ()

    def layout(self) -> Layout:
        """Return shape and type of each array per sample, with augmentation; reads no data."""
        arrays = {name: np.zeros_like(array) for name, array in allocate(self._sources[0].layout, 1).items()}
        if self._augment is not None:
            arrays = self._augment(np.zeros(1, dtype=np.int64), arrays)
        return {name: (array.shape[1:], array.dtype) for name, array in arrays.items()}

    def sample_name(self, position: int) -> str:
        """Return the name of the sample at a position."""
        at = self.plan.locate([position])
        return self._sources[int(at.set[0])].sample_name(int(at.shard[0]), int(at.sample[0]))

    def read(self, positions: NDArray[np.int64]) -> RankBatch:
        """Read the samples at these positions; samples that cannot be used get weight 0.

        Raises:
            DataError: No sample of this batch and of the following ones could be read.
            StorageError: The disk or the store failed.
        """
        at = self.plan.locate(positions)
        arrays = allocate(self._sources[0].layout, len(positions))
        weights = np.ones(len(positions), dtype=np.float32)
        quarantined = []
        for row, error in self._fill_rows(arrays, at):
            source = int(at.set[row])
            weights[row] = 0.0
            for array in arrays.values():
                array[row] = 0
            quarantined.append(
                Quarantined(
                    position=int(positions[row]),
                    place=self._sources[source].sample_name(int(at.shard[row]), int(at.sample[row])),
                    reason=error.message,
                    kind=error.reason,
                    set=source,
                    epoch=int(at.epoch[row]),
                )
            )
        if len(quarantined) == len(positions) and not self._any_valid:
            self._require_valid_sample(int(positions[-1]) + 1, quarantined)
        self._any_valid = self._any_valid or len(quarantined) < len(positions)
        if self._augment is not None:
            arrays = self._augment(positions, arrays)
        return RankBatch(positions, arrays, weights, tuple(quarantined), at.set, at.epoch)

    def _fill_rows(self, arrays: Arrays, at: MixedLocation) -> list[tuple[int, CorruptShard]]:
        """Read the samples of a batch; return the rows that cannot be used, in order.

        Local samples are read one by one, samples in a store concurrently.
        """
        for number, samples in enumerate(self._sources):
            samples.open_ahead(np.unique(at.shard[at.set == number]).tolist())
        failed, remote = [], []
        for row, source, shard, sample in _rows(at):
            if not self._sources[source].is_local(shard):
                remote.append((arrays, row, source, shard, sample))
            elif (error := self._fill(arrays, row, source, shard, sample)) is not None:
                failed.append((row, error))
        if remote:
            pool = self._requests or DaemonThreads(_REQUESTS, name="samples")
            self._requests = pool
            errors = pool.map(lambda item: self._fill(*item), remote)
            failed += [(item[1], error) for item, error in zip(remote, errors, strict=True) if error is not None]
        return sorted(failed, key=lambda item: item[0])

    def _fill(self, arrays: Arrays, row: int, source: int, shard: int, sample: int) -> CorruptShard | None:
        """Read a sample, with one retry: the data may have been damaged in transfer."""
        try:
            self._sources[source].fill(arrays, row, shard, sample)
        except CorruptShard:
            try:
                self._sources[source].fill(arrays, row, shard, sample)
            except CorruptShard as error:
                return error
        return None

    def _require_valid_sample(self, first: int, quarantined: Sequence[Quarantined]) -> None:
        """Raise if none of the next samples can be read either: a broken set must not give many empty steps."""
        arrays = allocate(self._sources[0].layout, 1)
        for _, source, shard, sample in _rows(self.plan.locate(range(first, first + _SEARCH_SAMPLES))):
            try:
                self._sources[source].fill(arrays, 0, shard, sample)
            except CorruptShard:
                continue
            return
        raise DataError(
            f"none of the {len(quarantined)} samples of a batch and of the next {_SEARCH_SAMPLES} could be read, "
            f"first: {quarantined[0].reason}",
            where=quarantined[0].place,
        )

    def close(self) -> None:
        """Close all files."""
        requests, self._requests = self._requests, None
        if requests is not None:
            requests.close()
        for source in self._sources:
            source.close()


def _rows(at: MixedLocation) -> Iterator[tuple[int, int, int, int]]:
    """Yield (row, set, shard, sample)."""
    rows = range(len(at.set))
    return zip(rows, at.set.tolist(), at.shard.tolist(), at.sample.tolist(), strict=True)


Tally = Mapping[tuple[int, int], tuple[int, int]]
"""(set, epoch) -> (planned, delivered), counted by one rank."""


@dataclass(frozen=True)
class Quarantined:
    """A sample that could not be used.

    Attributes:
        position: Position in the run.
        place: Name of the sample: shard and number in it.
        reason: What is wrong, with the values.
        kind: The reason in one word, for the ledger.
        set: Number of the set.
        epoch: Epoch in that set.
    """

    position: int
    place: str
    reason: str
    kind: str = "damaged"
    set: int = 0
    epoch: int = 0


@dataclass
class _Counts:
    planned: int = 0
    delivered: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)


class Ledger:
    """Counts of the unfinished epochs; finished ones are in ledger.jsonl.

    Args:
        set_sizes: Samples in the split of each set.
        set_names: Names of the sets in the ledger.
    """

    def __init__(self, set_sizes: Sequence[int], set_names: Sequence[str]) -> None:
        self._sizes = list(set_sizes)
        self._names = list(set_names)
        self._open: dict[tuple[int, int], _Counts] = {}

    def add(self, tallies: Iterable[Tally], samples: Iterable[Quarantined]) -> None:
        """Add the counts of all ranks since the last call."""
        for tally in tallies:
            for key, (planned, delivered) in tally.items():
                counts = self._open.setdefault(key, _Counts())
                counts.planned += planned
                counts.delivered += delivered
        for sample in samples:
            self._open.setdefault((sample.set, sample.epoch), _Counts()).quarantined[sample.kind] += 1

    def rows(self, *, images_seen: int, final: bool) -> list[dict[str, Any]]:
        """Return a row per finished epoch, and with ``final`` also per unfinished one; finished ones are removed.

        Raises:
            DataError: The counts do not add up: a bug of this program, not of the data.
        """
        rows = []
        for (number, epoch), counts in sorted(self._open.items()):
            complete = counts.planned == self._sizes[number]
            missing = counts.planned - counts.delivered - counts.quarantined.total()
            if missing or counts.planned > self._sizes[number]:
                raise DataError(
                    f"the ledger of epoch {epoch} does not add up: planned {counts.planned} of "
                    f"{self._sizes[number]}, delivered {counts.delivered}, "
                    f"quarantined {counts.quarantined.total()}",
                    where=self._names[number],
                )
            if complete or final:
                rows.append(
                    {
                        "images_seen": images_seen,
                        "set": self._names[number],
                        "epoch": epoch,
                        "complete": complete,
                        "planned": counts.planned,
                        "delivered": counts.delivered,
                        "quarantined": dict(sorted(counts.quarantined.items())),
                    }
                )
            if complete:
                del self._open[(number, epoch)]
        return rows

    def to_document(self) -> list[list[Any]]:
        """Return the counts of unfinished epochs, for a checkpoint."""
        return [
            [number, epoch, counts.planned, counts.delivered, dict(counts.quarantined)]
            for (number, epoch), counts in sorted(self._open.items())
        ]

    def restore(self, document: Iterable[Sequence[Any]]) -> None:
        """Restore the counts from a checkpoint."""
        self._open = {
            (int(number), int(epoch)): _Counts(int(planned), int(delivered), Counter(quarantined))
            for number, epoch, planned, delivered, quarantined in document
        }
