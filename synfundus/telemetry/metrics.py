"""Named sums, accumulated over micro-batches and reduced over ranks once per log interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

from synfundus.distributed.world import World


class SumAccumulator:
    """Accumulates named sums.

    Values may be tensors on a device: they are added there and fetched only by `reduce`.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}

    def add(self, sums: Mapping[str, Any]) -> None:
        """Add a step's sums."""
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def reduce(self, world: World) -> dict[str, float]:
        """Return the sums over all ranks and reset them. Collective; every rank must have added the same names."""
        names = sorted(self._sums)
        values = [_to_float(self._sums[name]) for name in names]
        self._sums = {}
        return dict(zip(names, world.sum(values), strict=True)) if names else {}


def _to_float(value: SupportsFloat) -> float:
    return float(value)


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Turn sums into means.

    ``x`` is divided by ``images``; ``x_tN`` by ``images_tN`` (a timestep bucket), and omitted if the bucket is empty.
    """
    images = sums.get("images", 0.0)
    result = {}
    for name, value in sums.items():
        if name.startswith("images"):
            continue
        stem, _, bucket = name.rpartition("_t")
        count = sums.get(f"images_t{bucket}", 0.0) if stem and bucket.isdigit() else images
        if count > 0:
            result[name] = value / count
    return result
