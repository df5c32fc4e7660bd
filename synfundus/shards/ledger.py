"""Sample counts of each epoch over all ranks: planned = delivered + quarantined, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from synfundus.errors import DataError

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
