"""Who in a training set has which labels, and whether a row asks for what nobody has.

A model can only draw what it has been shown, and a combination that a few patients have may bring one of them back. So
each row of a label plan is compared with the photographs it is drawn from. An unknown label of a row matches anything;
an unknown label of a photograph proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.labels.schema import UNKNOWN_STATE, LabelSchema

LABEL_ROWS = "label_rows"
"""Property of a set with the patients of its train split by row of label states, see `SeenRows.to_document`."""
SEEN = "seen"
"""Column in which `plan-labels` says who in the training set has the labels of a row."""
YES, FEW, NEVER_TOGETHER, NEVER = MARKS = ("yes", "few", "never_together", "never")
"""Enough patients; fewer patients than `FEW_PATIENTS`; each value, but not together; a value
that nobody has."""
NONE_KNOWN = "none known"
"""What a model tells of a label that is known of none of its photographs."""
FEW_PATIENTS = 20
"""A combination that fewer patients have is marked."""
MOST_PAIRS = 5_000
"""A summary names at most so many pairs of values that nobody has."""

States = NDArray[np.int16]
_BLOCK_ROWS = 50_000
_ROUNDING = 1e-6


def distinct_rows(states: States) -> tuple[States, NDArray[np.int64]]:
    """Return the distinct rows ``[d, k]`` in lexicographic order, and which of them each row ``[n]`` is."""
    codes = np.zeros(len(states), dtype=np.int64)
    most = 1
    for column in states.T:
        base = int(column.max(initial=0)) + 1
        if most * base >= 2**62:
            codes = np.unique(codes, return_inverse=True)[1].astype(np.int64)
            most = len(states) + 1
        codes, most = codes * base + column, most * base
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return states[first], inverse.astype(np.int64)


@dataclass(frozen=True)
class SeenRows:
    """The label rows of a training set, and how many patients have each.

    Attributes:
        states: Distinct label states ``[d, k]``, in lexicographic order.
        patients: Number of patients with a photograph of each row ``[d]``.
        shares: The same, where a patient with m of the rows counts 1/m in each ``[d]``: over any rows they sum to no
            more than the number of patients who have one of them.
        unit: What was counted: patients, or photographs where patients are not known.
    """

    states: States
    patients: NDArray[np.int64]
    shares: NDArray[np.float64]
    unit: str = "patients"

    @classmethod
    def of(cls, states: States, patients: Sequence[str] = ()) -> SeenRows:
        """Count the patients of photographs with label states ``[n, k]``; without patients, the photographs."""
        rows, row_of = distinct_rows(states)
        if not len(patients):
            counts = np.bincount(row_of, minlength=len(rows))
            return cls(rows, counts, counts.astype(np.float64), "photographs")
        names, patient_of = np.unique(np.asarray(patients), return_inverse=True)
        pairs = np.unique(row_of * len(names) + patient_of)
        row, patient = pairs // max(len(names), 1), pairs % max(len(names), 1)
        rows_of_patient = np.bincount(patient, minlength=len(names))
        shares = np.bincount(row, weights=1 / rows_of_patient[patient], minlength=len(rows)).astype(np.float64)
        return cls(rows, np.bincount(row, minlength=len(rows)), shares)

    @classmethod
    def of_document(cls, document: Mapping[str, Any], num_labels: int) -> SeenRows:
        """Read what `to_document` wrote."""
        counts: Mapping[str, int] = document["patients"]
        states = np.array([row.split() for row in counts], dtype=np.int16).reshape(len(counts), num_labels)
        order = np.argsort(distinct_rows(states)[1])
        patients = np.array(list(counts.values()), dtype=np.int64)
        shares = [float(document["shares"].get(row, number)) for row, number in counts.items()]
        return cls(states[order], patients[order], np.array(shares, dtype=np.float64)[order])

    def to_document(self) -> dict[str, Any]:
        """Return patients by row of states (``"1 0 2"``), and shares where they are others, for a manifest."""
        names = [" ".join(map(str, row)) for row in self.states.tolist()]
        whole = self.shares == self.patients
        shares = {
            name: round(float(share), 9)
            for name, share, same in zip(names, self.shares, whole, strict=True)
            if not same
        }
        return {"patients": dict(zip(names, self.patients.tolist(), strict=True)), "shares": shares}

    def without(self, states: States) -> SeenRows:
        """Return the rows without one patient, who has photographs with these label states ``[n, k]``."""
        gone = {tuple(row) for row in states.tolist()}
        has = np.array([tuple(row) in gone for row in self.states.tolist()], dtype=bool)
        patients, shares = self.patients - has, self.shares - has / max(len(gone), 1)
        left = patients > 0
        return SeenRows(self.states[left], patients[left], np.maximum(shares[left], 0), self.unit)

    def values(self, num_values: Sequence[int]) -> list[NDArray[np.bool_]]:
        """Return for each label which of its states ``[v + 1]`` any photograph has; unknown counts as one."""
        found = [np.zeros(number + 1, dtype=bool) for number in num_values]
        for column, seen in zip(self.states.T, found, strict=True):
            seen[column] = True
            seen[UNKNOWN_STATE] = True
        return found


def mark_rows(rows: States, seen: SeenRows, num_values: Sequence[int]) -> NDArray[np.str_]:
    """Return one of `MARKS` for each distinct row ``[m, k]``, whose patients are counted from below.

    Args:
        rows: Label states.
        seen: The training set.
        num_values: Number of values of each label.
    """
    known = seen.values(num_values)
    unseen = np.zeros(len(rows), dtype=bool)
    for column, states in zip(rows.T, known, strict=True):
        unseen |= ~states[column]
    order = np.lexsort(rows.T[::-1]) if len(rows) else np.zeros(0, dtype=np.int64)
    number = np.zeros(len(rows))
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = order[start : start + _BLOCK_ROWS]
        number[block] = _fewest_patients(rows[block], seen)
    marks = np.full(len(rows), YES, dtype=f"<U{max(map(len, MARKS))}")
    marks[number + _ROUNDING < FEW_PATIENTS] = FEW
    marks[number == 0] = NEVER_TOGETHER
    marks[unseen] = NEVER
    return marks


def _fewest_patients(rows: States, seen: SeenRows) -> NDArray[np.float64]:
    """Return how many patients at least have a photograph that matches each row; both are in lexicographic order.

    Rows and photographs are joined label by label, as two trees of prefixes: most pairs part early.
    """
    row_nodes, row_leaves = _tree(rows)
    seen_nodes, seen_leaves = _tree(seen.states)
    at, of = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for (parents, states), (seen_parents, seen_states) in zip(row_nodes, seen_nodes, strict=True):
        pair, child = _children(parents, at)
        of, wanted = of[pair], states[child]
        unknown = wanted == UNKNOWN_STATE
        base = int(max(states.max(initial=0), seen_states.max(initial=0))) + 1
        codes = seen_parents * base + seen_states
        sought = of[~unknown] * base + wanted[~unknown]
        place = np.minimum(np.searchsorted(codes, sought), len(codes) - 1)
        hit = codes[place] == sought
        any_pair, any_child = _children(seen_parents, of[unknown])
        at = np.concatenate([child[~unknown][hit], child[unknown][any_pair]])
        of = np.concatenate([place[hit], any_child])
    row, photograph = row_leaves[at], seen_leaves[of]
    number = np.bincount(row, weights=seen.shares[photograph], minlength=len(rows)).astype(np.float64)
    np.maximum.at(number, row, seen.patients[photograph].astype(np.float64))
    return number


def _tree(rows: States) -> tuple[list[tuple[NDArray[np.int64], NDArray[np.int64]]], NDArray[np.int64]]:
    """Return, for each label, parent and state of each distinct prefix, and the row of each leaf; rows are sorted."""
    levels = []
    new = np.zeros(len(rows), dtype=bool)
    new[:1] = True
    node = np.zeros(len(rows), dtype=np.int64)
    for column in rows.T:
        new = new | np.concatenate([[True], column[1:] != column[:-1]])[: len(rows)]
        levels.append((node[new], column[new].astype(np.int64)))
        node = np.cumsum(new) - 1
    return levels, np.flatnonzero(new)


def _children(parents: NDArray[np.int64], nodes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each pair of (position in ``nodes``, child): ``parents`` has the parent of each child, in order."""
    first, last = np.searchsorted(parents, nodes, "left"), np.searchsorted(parents, nodes, "right")
    counts = last - first
    position = np.repeat(np.arange(len(nodes)), counts)
    offset = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
    return position, first[position] + offset


def never_seen(seen: SeenRows, schema: LabelSchema) -> dict[str, Any]:
    """Return what a model that learns from these photographs cannot know.

    Returns:
        ``values``: label -> values that no photograph has; ``pairs``: ``label=value`` -> others that no photograph has
        with it, though each occurs; None if there are more than `MOST_PAIRS`.
    """
    known = seen.values(schema.num_values)
    values = {
        name: [int(state) - 1 for state in np.flatnonzero(~states)]
        for name, states in zip(schema.names, known, strict=True)
        if not states.all()
    }
    hot = np.concatenate(
        [seen.states[:, [at]] == np.flatnonzero(states)[1:] for at, states in enumerate(known)], axis=1
    )
    label = np.repeat(np.arange(len(known)), [int(states.sum()) - 1 for states in known])
    names = [
        f"{schema.names[at]}={state - 1}" for at, states in enumerate(known) for state in np.flatnonzero(states)[1:]
    ]
    together = hot.T.astype(np.float32) @ hot.astype(np.float32)
    first, second = np.nonzero((together == 0) & (label[:, None] < label[None, :]))
    pairs: dict[str, list[str]] = {}
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        pairs.setdefault(names[one], []).append(names[other])
    return {"values": values, "pairs": pairs if len(first) <= MOST_PAIRS else None}
