"""What is written of every image that was looked at, and which noise a failed one is drawn from again.

Attempt 0 of image ``i`` has the noise it always had; attempt ``a`` has its own, keyed by (seed, ``a``, ``i``), so no
number of ranks, no batch and no other image changes it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import DataError
from synfundus.evaluation.examination.verdict import Examination, Fault
from synfundus.seeding import keyed_normal

LEDGER_NAME = "checks.jsonl"
_FIRST_PURPOSE, _REDRAW_PURPOSE = "sample", "sample-redraw"


def noise_purpose(attempt: int) -> str:
    """Return the purpose by which the noise of an attempt is keyed; attempt 0 is the first drawing."""
    if attempt < 0:
        raise ValueError(f"attempts are counted from 0, this is {attempt}")
    return f"{_REDRAW_PURPOSE}.{attempt}" if attempt else _FIRST_PURPOSE


def redraw_noise(seed: int, image: int, attempt: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the noise ``[*shape]`` from which an attempt draws an image."""
    return np.asarray(keyed_normal(seed, noise_purpose(attempt), [image], shape)[0])


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
            "noise": [self.seed, noise_purpose(self.attempt), self.image],
            "refused": [list(faults) for faults in self.refused],
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
            examination = Examination(tuple(faults), entry["figures"])
            earlier = tuple(tuple(one) for one in refused)
            return cls(int(entry["image"]), int(entry["attempt"]), int(entry["noise"][0]), examination, earlier)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"this is no line of {LEDGER_NAME}: {line[:80]!r}", where=where) from error


def next_attempt(check: Check, most_redraws: int) -> int | None:
    """Return the attempt that an image is drawn from next; None where it passed, or was drawn again often enough."""
    return None if check.examination.passed or check.attempt >= most_redraws else check.attempt + 1


def summarise(checks: Iterable[Check]) -> dict[str, Any]:
    """Return the counts that end a run: of images, redraws, and faults; images that failed are named, by index."""
    looked: Sequence[Check] = sorted(checks, key=lambda check: check.image)
    failed = [check for check in looked if not check.examination.passed]
    first = Counter(fault for check in looked for fault in (check.refused or (check.examination.faults,))[0])
    return {
        "num_images": len(looked),
        "num_passed_at_once": sum(check.attempt == 0 and check.examination.passed for check in looked),
        "num_redraws": sum(check.attempt for check in looked),
        "num_failed": len(failed),
        "faults_at_first": _counts(first),
        "faults_left": _counts(Counter(fault for check in failed for fault in check.examination.faults)),
        "failed": [check.image for check in failed],
    }


def _counts(faults: Mapping[Fault, int]) -> dict[str, int]:
    return {fault.value: faults[fault] for fault in Fault if faults.get(fault)}
