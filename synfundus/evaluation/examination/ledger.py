"""What is written of every image that was looked at, and which noise a failed one is drawn from again.

Attempt 0 of image ``i`` has the noise it always had; attempt ``a`` has its own, keyed by (seed, ``a``, ``i``), so no
number of ranks, no batch and no other image changes it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from synfundus.errors import DataError
from synfundus.evaluation.examination.verdict import Examination, Fault

LEDGER_NAME = "checks.jsonl"


@dataclass(frozen=True)
class Check:
    """A line of the ledger: the last look at an image.

    Attributes:
        image: Its index.
        attempt: From which noise it was drawn: 0, or the number of the redraw.
        seed: The request's seed.
        examination: What was seen.
        refused: Faults of the attempts before, each in its order.
    """

    image: int
    attempt: int
    seed: int
    examination: Examination
    refused: tuple[tuple[Fault, ...], ...] = ()

    def to_line(self) -> bytes:
        """Return the line, with its line break; the same check gives the same bytes."""
        document = {
            "image": self.image,
            "verdict": "passed" if self.examination.passed else "failed",
            "faults": list(self.examination.faults),
            "attempt": self.attempt,
            "seed": self.seed,
            "refused": [list(faults) for faults in self.refused],
            **({"contradicted": list(self.examination.contradicted)} if self.examination.contradicted else {}),
            "figures": dict(self.examination.figures),
        }
        return json.dumps(document, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes, *, where: str) -> Check:
        """Read a line.

        Raises:
            DataError: It is none; ``where`` is named.
        """
        try:
            entry: dict[str, Any] = json.loads(line)
            faults, refused = map(Fault, entry["faults"]), (map(Fault, one) for one in entry["refused"])
            examination = Examination(tuple(faults), entry["figures"], tuple(entry.get("contradicted", ())))
            earlier = tuple(tuple(one) for one in refused)
            return cls(int(entry["image"]), int(entry["attempt"]), int(entry["seed"]), examination, earlier)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"this is no line of {LEDGER_NAME}: {line[:80]!r}", where=where) from error


def next_attempt(check: Check, most_redraws: int) -> int | None:
    """Return the attempt that an image is drawn from next; None where it passed, or was drawn again often enough."""
    return None if check.examination.passed or check.attempt >= most_redraws else check.attempt + 1


def summarise(checks: Iterable[Check]) -> dict[str, Any]:
    """Return the counts that end a run: of images, of redraws, of faults at first and of those that are left."""
    found = Counter[str]()
    first, left = Counter[Fault](), Counter[Fault]()
    for check in checks:
        passed = check.examination.passed
        found["num_images"] += 1
        found["num_passed_at_once"] += passed and check.attempt == 0
        found["num_redraws"] += check.attempt
        found["num_failed"] += not passed
        first.update((check.refused or (check.examination.faults,))[0])
        left.update(check.examination.faults)
    names = ("num_images", "num_passed_at_once", "num_redraws", "num_failed")
    return {**{name: found[name] for name in names}, "faults_at_first": _counts(first), "faults_left": _counts(left)}


def _counts(faults: Mapping[Fault, int]) -> dict[str, int]:
    return {fault.value: faults[fault] for fault in Fault if faults.get(fault)}
