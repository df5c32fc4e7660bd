"""The reading order: position -> sample, a pure function of (set identity, split, seed, epoch).

Nothing here reads a file. The same order holds for every world size and any number of workers, each sample comes
exactly once an epoch, and the place in the run is one integer (ADR-0004).

Construction. The epoch's permuted list of shards, laid end to end, is cut by sample counts into C canonical
stretches of N/C samples, give or take one. Within a stretch, samples are permuted in windows. Position p of the
epoch is sample ``p div C`` of the stream ``p mod C``, and a keyed permutation says which stretch a stream is. A
rank r of W takes the positions ``p = r (mod W)``; when W divides C these are always the same streams.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import DataError
from synfundus.seeding import keyed_generator

NUM_STREAMS = 256
"""Canonical streams: world sizes that divide it keep a node on its own share of the bytes."""

_WINDOW_INDEX = 2**32

WINDOW_SAMPLES = 32_768
"""Samples of a stretch that are permuted together: a few shards."""


@dataclass(frozen=True)
class SamplePlace:
    """Where samples lie: number of the shard within the split, number of the sample within the shard, both ``[n]``."""

    shard: NDArray[np.int64]
    sample: NDArray[np.int64]


@dataclass(frozen=True)
class _EpochOrder:
    """The permuted shard list of one epoch and the stretch each stream reads."""

    shards: NDArray[np.int64]
    starts: NDArray[np.int64]
    stretch_of_stream: NDArray[np.int64]


class ReadingPlan:
    """Order of one split of one set.

    Args:
        shard_sizes: Samples of each shard of the split, in manifest order.
        identity: The set's identity (hash of its manifest).
        split: Name of the split.
        seed: The run's seed.
        num_streams: Canonical streams C.
        window_samples: Size of a permutation window.
    """

    def __init__(
        self,
        *,
        shard_sizes: Sequence[int],
        identity: str,
        split: str,
        seed: int,
        num_streams: int = NUM_STREAMS,
        window_samples: int = WINDOW_SAMPLES,
    ) -> None:
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.num_samples = int(self._sizes.sum())
        if self.num_samples == 0:
            raise DataError(f"split {split!r} holds no samples", hint="check the splits the set was prepared with")
        self._purpose = ("order", identity, split)
        self._seed = seed
        self._num_streams = num_streams
        self._window = window_samples
        self._epochs: OrderedDict[int, _EpochOrder] = OrderedDict()
        self._offset_type = np.uint16 if window_samples <= 2**16 else np.int64
        self._windows: OrderedDict[tuple[int, int, int], NDArray[Any]] = OrderedDict()

    def _epoch(self, epoch: int) -> _EpochOrder:
        order = self._epochs.get(epoch)
        if order is None:
            generator = keyed_generator(self._seed, *self._purpose, "epoch", index=epoch)
            shards = generator.permutation(len(self._sizes)).astype(np.int64)
            starts = np.concatenate([[0], np.cumsum(self._sizes[shards])]).astype(np.int64)
            streams = self._assign_streams(generator)
            order = _EpochOrder(shards, starts, streams)
            self._epochs[epoch] = order
            while len(self._epochs) > 4:
                self._epochs.popitem(last=False)
        return order

    def _assign_streams(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Permute which stretch a stream reads; the longer stretches stay with the first streams."""
        longer = self.num_samples % self._num_streams
        streams = np.empty(self._num_streams, dtype=np.int64)
        streams[:longer] = generator.permutation(longer)
        streams[longer:] = longer + generator.permutation(self._num_streams - longer)
        return streams

    def _stretch_bounds(self, stretch: int) -> tuple[int, int]:
        """Return (first, end) of a stretch in the epoch's end-to-end numbering."""
        short, longer = divmod(self.num_samples, self._num_streams)
        start = stretch * short + min(stretch, longer)
        return start, start + short + (1 if stretch < longer else 0)

    def _window_order(self, epoch: int, stretch: int, window: int) -> NDArray[Any]:
        """Return the permutation of one window of a stretch, as offsets from the window's first sample."""
        order = self._windows.get((epoch, stretch, window))
        if order is None:
            start, end = self._stretch_bounds(stretch)
            size = min(self._window, end - start - window * self._window)
            generator = keyed_generator(
                self._seed, *self._purpose, "window", epoch, index=stretch + window * _WINDOW_INDEX
            )
            order = generator.permutation(size).astype(self._offset_type)
            self._windows[(epoch, stretch, window)] = order
            while len(self._windows) > 2 * self._num_streams:
                self._windows.popitem(last=False)
        return order

    def locate(self, positions: Sequence[int] | NDArray[np.int64]) -> SamplePlace:
        """Say where the samples at these positions of the run lie.

        Args:
            positions: Positions since the start of the run (images seen), ``[n]``; they may span epochs.
        """
        wanted = np.asarray(positions, dtype=np.int64)
        epochs, within = np.divmod(wanted, self.num_samples)
        shard = np.empty(len(wanted), dtype=np.int64)
        sample = np.empty(len(wanted), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            rows = np.flatnonzero(epochs == epoch)
            order = self._epoch(epoch)
            flat = self._flat(epoch, order, within[rows])
            slot = np.searchsorted(order.starts, flat, side="right") - 1
            shard[rows] = order.shards[slot]
            sample[rows] = flat - order.starts[slot]
        return SamplePlace(shard, sample)

    def _flat(self, epoch: int, order: _EpochOrder, within: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the end-to-end numbers of positions within an epoch.

        Neighbouring positions are of different streams, and so of different windows; a long range is taken a window
        at a time.
        """
        depth, stream = np.divmod(within, self._num_streams)
        stretch = order.stretch_of_stream[stream]
        window, offset = np.divmod(depth, self._window)
        short, longer = divmod(self.num_samples, self._num_streams)
        flat: NDArray[np.int64] = stretch * short + np.minimum(stretch, longer) + window * self._window
        if len(within) <= self._num_streams:
            for row, places in enumerate(zip(stretch.tolist(), window.tolist(), offset.tolist(), strict=True)):
                flat[row] += self._window_order(epoch, places[0], places[1])[places[2]]
            return flat
        groups = stretch * (short // self._window + 1) + window
        by_group = np.argsort(groups, kind="stable")
        bounds = [0, *(np.flatnonzero(np.diff(groups[by_group])) + 1).tolist(), len(within)]
        for first, end in pairwise(bounds):
            rows = by_group[first:end]
            at = int(rows[0])
            flat[rows] += self._window_order(epoch, int(stretch[at]), int(window[at]))[offset[rows]]
        return flat


def rank_positions(*, images_seen: int, global_batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """Return the positions of the next global batch that belong to a rank.

    Raises:
        DataError: The global batch does not split evenly.
    """
    if global_batch_size % world_size:
        raise DataError(f"global batch {global_batch_size} does not split over {world_size} ranks")
    return np.arange(images_seen + rank, images_seen + global_batch_size, world_size, dtype=np.int64)
