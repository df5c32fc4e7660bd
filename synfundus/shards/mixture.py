"""Several sets read as one: position -> (set, sample), still a pure function.

Positions are dealt out in blocks. In each block every set gets its share of the positions, exact to one in
`BLOCK_POSITIONS`; a keyed permutation says which. A set counts its own positions and so its own epochs, each sample
exactly once in each, and the place in the run stays one integer (ADR-0004).
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
"""Weights are kept exactly in every block of so many positions."""

_KEPT_BLOCKS = 4


@dataclass(frozen=True)
class MixedPlace:
    """Where samples lie, each ``[n]``.

    Attributes:
        set: Number of the set.
        epoch: Epoch of that set.
        shard: Shard within the set's split.
        sample: Sample within the shard.
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
    """The order of a run over one set or several.

    Args:
        plans: Order of each set.
        weights: Share of each set; any positive numbers.
        seed: The run's seed.
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
        """Return for each position of a block its set, and how many positions of the block that set had before."""
        block = self._blocks.get(number)
        if block is None:
            owner = np.repeat(np.arange(len(self.plans), dtype=np.int64), self._shares)
            keyed_generator(self._seed, "mixture", index=number).shuffle(owner)
            rank = np.empty_like(owner)
            for own in range(len(self.plans)):
                rank[owner == own] = np.arange(self._shares[own])
            block = self._blocks[number] = (owner, rank)
            while len(self._blocks) > _KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        return block

    def _divide(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return for each position its set and its number among the positions of that set."""
        if len(self.plans) == 1:
            return np.zeros_like(positions), positions
        blocks, within = np.divmod(positions, BLOCK_POSITIONS)
        owner, own_position = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(blocks).tolist():
            rows = np.flatnonzero(blocks == number)
            owners, ranks = self._block(number)
            owner[rows] = owners[within[rows]]
            own_position[rows] = number * self._shares[owner[rows]] + ranks[within[rows]]
        return owner, own_position

    def locate(self, positions: Sequence[int] | NDArray[np.int64]) -> MixedPlace:
        """Say where the samples at these positions of the run lie.

        Args:
            positions: Positions since the start of the run (images seen), ``[n]``.
        """
        wanted = np.asarray(positions, dtype=np.int64)
        owner, own_position = self._divide(wanted)
        shard, sample, epoch = (np.empty_like(wanted) for _ in range(3))
        for number, plan in enumerate(self.plans):
            rows = np.flatnonzero(owner == number)
            if len(rows):
                place = plan.locate(own_position[rows])
                shard[rows], sample[rows] = place.shard, place.sample
                epoch[rows] = own_position[rows] // plan.num_samples
        return MixedPlace(owner, epoch, shard, sample)
