"""Loss curves kept in a file: a change of one has to be meant."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

BATCH, STEPS = 8, 12
TOLERANCE = 1e-3
"""Relative: another processor, or another number of threads, adds up in another order."""
DIGITS = 7


class CurveFile:
    """Curves by case.

    Args:
        name: File beside this one.
        cases: All there are, in order.
    """

    def __init__(self, name: str, cases: Collection[str]) -> None:
        self._path = Path(__file__).with_name(name)
        self._cases = tuple(cases)

    def stored(self) -> dict[str, Any]:
        return dict(json.loads(self._path.read_text(encoding="utf-8"))) if self._path.exists() else {}

    def assert_agreed(self, case: str, found: dict[str, list[float]]) -> None:
        """Compare the curves of a case with those in the file; `make golden` puts them there."""
        if os.environ.get("SYNFUNDUS_REGENERATE_GOLDEN"):
            self._store(case, found)
        agreed = self.stored()[case]
        assert found.keys() == agreed.keys()
        for name, values in found.items():
            assert values == pytest.approx(agreed[name], rel=TOLERANCE), name

    def _store(self, case: str, found: dict[str, list[float]]) -> None:
        rounded = {name: [float(f"{value:.{DIGITS}g}") for value in values] for name, values in found.items()}
        known = self.stored() | {case: rounded}
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(known[name])}" for name in self._cases if name in known)
        self._path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")

    def assert_whole(self) -> None:
        """Assert that the file has every case and no two alike: an option without an effect would show."""
        agreed = self.stored()
        assert set(agreed) == set(self._cases)
        for one, other in itertools.combinations(agreed, 2):
            if len(agreed[one]["loss"]) != len(agreed[other]["loss"]):
                continue
            pairs = zip(agreed[one]["loss"], agreed[other]["loss"], strict=True)
            assert max(abs(a - b) / abs(a) for a, b in pairs) > 10 * TOLERANCE, (one, other)
