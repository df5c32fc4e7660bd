"""Several sets mixed by weight: position -> (set, sample), as a pure function.

Positions are assigned in blocks. In each block every set gets its share of the positions, exact to one in
`BLOCK_POSITIONS`; a keyed permutation determines which. Each set has its own positions and epochs, with each sample
exactly once per epoch, and the state of the run is still one integer (ADR-0004).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import ConfigError
from synfundus.seeding import keyed_generator
from synfundus.shards.shard_plan import ReadingPlan
from synfundus.storage.manifest import apportion

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
