"""The reading order: position -> sample, a pure function of (set identity, split, seed, epoch).

Nothing here reads a file. The order is the same for every world size and number of workers, each sample occurs exactly
once per epoch, and the state of a run is one integer (ADR-0004).

Construction. The permuted shard list of the epoch is concatenated and divided by sample counts into C canonical
segments of N/C samples, give or take one. Within a segment, samples are permuted in windows. Position p of the epoch
is sample ``p div C`` of the stream ``p mod C``; a keyed permutation maps streams to segments. Rank r of W reads the
positions ``p = r (mod W)``; if W divides C these are always the same streams.

Several sets are mixed by weight. Positions are assigned in blocks; in each, every set gets its share, exact to one in
`BLOCK_POSITIONS`, and a keyed permutation determines which. Each set has its own positions and epochs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import ConfigError, DataError
from synfundus.seeding import keyed_generator
from synfundus.storage.manifest import apportion

NUM_STREAMS = 256
"""Canonical streams: with world sizes that divide it, a node reads only its share of the bytes."""

_WINDOW_INDEX = 2**32

WINDOW_SAMPLES = 32_768
"""Samples of a segment that are permuted together: a few shards."""


@dataclass(frozen=True)
class SampleLocation:
    """Locations of samples: shard in the split, sample in the shard, both ``[n]``."""

    shard: NDArray[np.int64]
    sample: NDArray[np.int64]


@dataclass(frozen=True)
class _EpochOrder:
    """The permuted shard list of one epoch, and the segment of each stream."""

    shards: NDArray[np.int64]
    starts: NDArray[np.int64]
    segment_of_stream: NDArray[np.int64]


class ReadingPlan:
    """Reading order of one split of one set.

    Args:
        shard_sizes: Samples of each shard of the split, in manifest order.
        identity: Identity of the set (hash of its manifest).
        split: Name of the split.
        seed: Seed of the run.
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
            raise DataError(f"split {split!r} has no samples", hint="check the splits the set was prepared with")
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
        """Permute the segments of the streams; the first streams keep the longer segments."""
        longer = self.num_samples % self._num_streams
        streams = np.empty(self._num_streams, dtype=np.int64)
        streams[:longer] = generator.permutation(longer)
        streams[longer:] = longer + generator.permutation(self._num_streams - longer)
        return streams

    def _segment_bounds(self, segment: int) -> tuple[int, int]:
        """Return (first, end) of a segment, in concatenated numbering."""
        short, longer = divmod(self.num_samples, self._num_streams)
        start = segment * short + min(segment, longer)
        return start, start + short + (1 if segment < longer else 0)

    def _window_order(self, epoch: int, segment: int, window: int) -> NDArray[Any]:
        """Return the permutation of a window of a segment, as offsets from its first sample."""
        order = self._windows.get((epoch, segment, window))
        if order is None:
            start, end = self._segment_bounds(segment)
            size = min(self._window, end - start - window * self._window)
            generator = keyed_generator(
                self._seed, *self._purpose, "window", epoch, index=segment + window * _WINDOW_INDEX
            )
            order = generator.permutation(size).astype(self._offset_type)
            self._windows[(epoch, segment, window)] = order
            while len(self._windows) > 2 * self._num_streams:
                self._windows.popitem(last=False)
        return order

    def locate(self, positions: Sequence[int] | NDArray[np.int64]) -> SampleLocation:
        """Return the locations of the samples at positions of the run.

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
        return SampleLocation(shard, sample)

    def _flat(self, epoch: int, order: _EpochOrder, within: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the concatenated numbers of positions within an epoch.

        Neighbouring positions are in different streams, and so in different windows; a long range is read by window.
        """
        depth, stream = np.divmod(within, self._num_streams)
        segment = order.segment_of_stream[stream]
        window, offset = np.divmod(depth, self._window)
        short, longer = divmod(self.num_samples, self._num_streams)
        flat: NDArray[np.int64] = segment * short + np.minimum(segment, longer) + window * self._window
        if len(within) <= self._num_streams:
            for row, key in enumerate(zip(segment.tolist(), window.tolist(), offset.tolist(), strict=True)):
                flat[row] += self._window_order(epoch, key[0], key[1])[key[2]]
            return flat
        groups = segment * (short // self._window + 1) + window
        by_group = np.argsort(groups, kind="stable")
        bounds = [0, *(np.flatnonzero(np.diff(groups[by_group])) + 1).tolist(), len(within)]
        for first, end in pairwise(bounds):
            rows = by_group[first:end]
            at = int(rows[0])
            flat[rows] += self._window_order(epoch, int(segment[at]), int(window[at]))[offset[rows]]
        return flat


def rank_positions(*, images_seen: int, global_batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """Return the positions of the next global batch that belong to a rank.

    Raises:
        DataError: The global batch does not divide evenly.
    """
    if global_batch_size % world_size:
        raise DataError(f"global batch {global_batch_size} does not split over {world_size} ranks")
    return np.arange(images_seen + rank, images_seen + global_batch_size, world_size, dtype=np.int64)


BLOCK_POSITIONS = 10_000
"""Weights are exact in every block of this many positions."""

_CACHED_BLOCKS = 4


@dataclass(frozen=True)
class MixedLocation:
    """Locations of samples, each ``[n]``.

    Attributes:
        set: Number of the set.
        epoch: Epoch in that set.
        shard: Shard in the split of the set.
        sample: Sample in the shard.
    """

    set: NDArray[np.int64]
    epoch: NDArray[np.int64]
    shard: NDArray[np.int64]
    sample: NDArray[np.int64]


def shares(weights: Sequence[float], total: int) -> list[int]:
    """Divide ``total`` in proportion to weights, by largest remainders.

    Raises:
        ConfigError: A weight that is not positive, or so small that its set would never be read.
    """
    if not all(0 < weight < float("inf") for weight in weights):
        raise ConfigError(f"weights of sets must be positive numbers, given: {', '.join(map(str, weights))}")
    counts = apportion(total, [weight / sum(weights) for weight in weights])
    if 0 in counts:
        raise ConfigError(
            f"the weight {weights[counts.index(0)]} is less than one in {total} of all",
            hint="give it a larger weight, or leave the set out",
        )
    return counts


class MixedPlan:
    """The reading order of a run over one or several sets.

    Args:
        plans: Reading order of each set.
        weights: Relative weight of each set; positive.
        seed: Seed of the run.
    """

    def __init__(self, plans: Sequence[ReadingPlan], *, weights: Sequence[float], seed: int) -> None:
        self.plans = tuple(plans)
        self._seed = seed
        self._shares = np.asarray(shares(weights, BLOCK_POSITIONS), dtype=np.int64)
        self._blocks: OrderedDict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()

    @property
    def set_sizes(self) -> list[int]:
        """Samples of each set."""
        return [plan.num_samples for plan in self.plans]

    def _block(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return for each position of a block its set, and its rank among the positions of that set in the block."""
        block = self._blocks.get(number)
        if block is None:
            owner = np.repeat(np.arange(len(self.plans), dtype=np.int64), self._shares)
            keyed_generator(self._seed, "mixture", index=number).shuffle(owner)
            rank = np.empty_like(owner)
            for plan in range(len(self.plans)):
                rank[owner == plan] = np.arange(self._shares[plan])
            block = self._blocks[number] = (owner, rank)
            while len(self._blocks) > _CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        return block

    def _divide(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return for each position its set and its position in that set."""
        if len(self.plans) == 1:
            return np.zeros_like(positions), positions
        blocks, within = np.divmod(positions, BLOCK_POSITIONS)
        owner, set_position = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(blocks).tolist():
            rows = np.flatnonzero(blocks == number)
            owners, ranks = self._block(number)
            owner[rows] = owners[within[rows]]
            set_position[rows] = number * self._shares[owner[rows]] + ranks[within[rows]]
        return owner, set_position

    def locate(self, positions: Sequence[int] | NDArray[np.int64]) -> MixedLocation:
        """Return the locations of the samples at positions of the run.

        Args:
            positions: Positions since the start of the run (images seen), ``[n]``.
        """
        wanted = np.asarray(positions, dtype=np.int64)
        owner, set_position = self._divide(wanted)
        shard, sample, epoch = (np.empty_like(wanted) for _ in range(3))
        for number, plan in enumerate(self.plans):
            rows = np.flatnonzero(owner == number)
            if len(rows):
                at = plan.locate(set_position[rows])
                shard[rows], sample[rows] = at.shard, at.sample
                epoch[rows] = set_position[rows] // plan.num_samples
        return MixedLocation(owner, epoch, shard, sample)
