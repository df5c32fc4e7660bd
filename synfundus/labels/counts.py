"""Count what is known about the samples of a set: values and unknowns of each label, findings seen together.

What `prepare` writes into the manifest and `inspect` prints. A label with no known value, or a finding with three
positives, is seen here before it is trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from synfundus.labels.schema import LabelSchema

UNKNOWN = "unknown"
"""Name of the count of samples in which a label is not known."""


@dataclass(frozen=True)
class LabelCounts:
    """How often each label has each value, and which findings occur together.

    Attributes:
        num_samples: Number of samples.
        values: Label -> ``"0"``, ``"1"``, ... and ``"unknown"`` -> number of samples; every value of the label is
            there, and the numbers of a label sum to `num_samples`.
        together: Label -> label -> number of samples in which both are greater than 0. Symmetric; the diagonal is
            the number of samples with the finding. An unknown label is not greater than 0.
    """

    num_samples: int
    values: dict[str, dict[str, int]]
    together: dict[str, dict[str, int]]

    def num_known(self, label: str) -> int:
        """Return in how many samples a label has a value."""
        return self.num_samples - self.values[label][UNKNOWN]

    def to_document(self) -> dict[str, Any]:
        """Return the counts as they stand in manifests and reports: plain dictionaries of integers."""
        return {
            "num_samples": self.num_samples,
            "values": {label: dict(counts) for label, counts in self.values.items()},
            "together": {label: dict(counts) for label, counts in self.together.items()},
        }

    def value_rows(self) -> list[list[str]]:
        """Return a table for people: a header, then one row a label with its counts; no cell for a value it lacks."""
        values = [str(value) for value in range(max(len(counts) - 1 for counts in self.values.values()))]
        header = ["label", *values, UNKNOWN]
        rows = [
            [label, *(str(counts[value]) if value in counts else "" for value in values), str(counts[UNKNOWN])]
            for label, counts in self.values.items()
        ]
        return [header, *rows]


def count_labels(rows: Iterable[Mapping[str, int | None]], schema: LabelSchema) -> LabelCounts:
    """Count the labels of samples; reads the rows once and keeps none.

    Args:
        rows: Value by label name for each sample; None, or no entry, is unknown.
        schema: Labels to count, in order.

    Raises:
        ConfigError: A row has a label the schema does not have.
        DataError: A row has a value its label does not have.
    """
    values = {spec.name: dict.fromkeys([*map(str, range(spec.num_values)), UNKNOWN], 0) for spec in schema.labels}
    together = {name: dict.fromkeys(schema.names, 0) for name in schema.names}
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
                together[name][other] += 1
    return LabelCounts(num_samples, values, together)
