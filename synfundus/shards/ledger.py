"""The account of an epoch: planned = delivered + quarantined(reason), over all ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from synfundus.errors import DataError

Tally = Mapping[tuple[int, int], tuple[int, int]]
"""(set, epoch) -> (planned, delivered), as one rank counted it."""


@dataclass(frozen=True)
class Quarantined:
    """A sample that could not be used.

    Attributes:
        position: Place in the run.
        place: Shard and number within it.
        reason: What is wrong, with the values.
        kind: The same in one word, for the ledger.
        set: Number of the set.
        epoch: Epoch of that set.
    """

    position: int
    place: str
    reason: str
    kind: str = "damaged"
    set: int = 0
    epoch: int = 0


@dataclass
class _Account:
    planned: int = 0
    delivered: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)


class Ledger:
    """Counts of the epochs that are not finished yet; the rest stands in ledger.jsonl.

    Args:
        set_sizes: Samples of each set's split.
        set_names: What to call each set in the ledger.
    """

    def __init__(self, set_sizes: Sequence[int], set_names: Sequence[str]) -> None:
        self._sizes = list(set_sizes)
        self._names = list(set_names)
        self._open: dict[tuple[int, int], _Account] = {}

    def add(self, tallies: Iterable[Tally], samples: Iterable[Quarantined]) -> None:
        """Add what all ranks have counted since the last time."""
        for tally in tallies:
            for key, (planned, delivered) in tally.items():
                account = self._open.setdefault(key, _Account())
                account.planned += planned
                account.delivered += delivered
        for sample in samples:
            self._open.setdefault((sample.set, sample.epoch), _Account()).quarantined[sample.kind] += 1

    def rows(self, *, images_seen: int, final: bool) -> list[dict[str, Any]]:
        """Return a row for each epoch that is finished, and with ``final`` for those that are not; forget those.

        Raises:
            DataError: An account that does not add up: a defect of this program, not of the data.
        """
        rows = []
        for (number, epoch), account in sorted(self._open.items()):
            complete = account.planned == self._sizes[number]
            missing = account.planned - account.delivered - account.quarantined.total()
            if missing or account.planned > self._sizes[number]:
                raise DataError(
                    f"the ledger of epoch {epoch} does not add up: planned {account.planned} of "
                    f"{self._sizes[number]}, delivered {account.delivered}, "
                    f"quarantined {account.quarantined.total()}",
                    where=self._names[number],
                )
            if complete or final:
                rows.append(
                    {
                        "images_seen": images_seen,
                        "set": self._names[number],
                        "epoch": epoch,
                        "complete": complete,
                        "planned": account.planned,
                        "delivered": account.delivered,
                        "quarantined": dict(sorted(account.quarantined.items())),
                    }
                )
            if complete:
                del self._open[(number, epoch)]
        return rows

    def to_document(self) -> list[list[Any]]:
        """Return the open accounts for a checkpoint."""
        return [
            [number, epoch, account.planned, account.delivered, dict(account.quarantined)]
            for (number, epoch), account in sorted(self._open.items())
        ]

    def restore(self, document: Iterable[Sequence[Any]]) -> None:
        """Take over the open accounts of a checkpoint."""
        self._open = {
            (int(number), int(epoch)): _Account(int(planned), int(delivered), Counter(quarantined))
            for number, epoch, planned, delivered, quarantined in document
        }
