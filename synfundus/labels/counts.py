"""Count the labels of a set: known and unknown values of each label, and how often findings occur together.

`prepare` writes the counts into the manifest and `inspect` prints them, so that a label without known values, or a
finding with three positives, is noticed before training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from synfundus.labels.schema import LabelSchema

UNKNOWN = "unknown"
"""Key for the number of samples in which a label is not known."""


@dataclass(frozen=True)
class LabelCounts:
    """Counts of label values, and of findings that occur together.

    Attributes:
        num_samples: Number of samples.
        values: Label -> ``"0"``, ``"1"``, ... and ``"unknown"`` -> number of samples; all values of the
            label are listed, and their counts sum to `num_samples`.
        co_occurrence: Label -> label -> number of samples in which both are greater than 0. Symmetric; the diagonal is
            the number of samples with the finding. An unknown label is not greater than 0.
    """

    num_samples: int
    values: dict[str, dict[str, int]]
    co_occurrence: dict[str, dict[str, int]]

    def num_known(self, label: str) -> int:
        """Return the number of samples in which a label is known."""
        return self.num_samples - self.values[label][UNKNOWN]

    def to_document(self) -> dict[str, Any]:
        """Return the counts as plain dictionaries, as written to manifests and reports."""
        return {
            "num_samples": self.num_samples,
            "values": {label: dict(counts) for label, counts in self.values.items()},
            "together": {label: dict(counts) for label, counts in self.co_occurrence.items()},
        }

    def value_rows(self) -> list[list[str]]:
        """Return a printable table: a header, then a row per label; the cell of a value the label lacks is empty."""
        values = [str(value) for value in range(max(len(counts) - 1 for counts in self.values.values()))]
        header = ["label", *values, UNKNOWN]
        rows = [
            [label, *(str(counts[value]) if value in counts else "" for value in values), str(counts[UNKNOWN])]
            for label, counts in self.values.items()
        ]
        return [header, *rows]


def count_labels(rows: Iterable[Mapping[str, int | None]], schema: LabelSchema) -> LabelCounts:
    """Count the labels of samples in one pass, without storing the rows.

    Args:
        rows: Values by label name for each sample; None or a missing name is unknown.
        schema: Labels to count, in order.

    Raises:
        ConfigError: A row has a label the schema does not have.
        DataError: A row has a value its label does not have.
    """
    values = {spec.name: dict.fromkeys([*map(str, range(spec.num_values)), UNKNOWN], 0) for spec in schema.labels}
    co_occurrence = {name: dict.fromkeys(schema.names, 0) for name in schema.names}
    num_samples = 0
    for row in rows:
        num_samples += 1
        found = []
        for name, state in zip(schema.names, schema.encode(row), strict=True):
            values[name][str(state - 1) if state else UNKNOWN] += 1
            if state > 1:
                found.append(name)
        for name in found:
            for other in found:
                co_occurrence[name][other] += 1
    return LabelCounts(num_samples, values, co_occurrence)
