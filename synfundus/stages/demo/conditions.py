"""The rows of the demo's picture: what photographs each shows, and what is asked of its generated images.

No photograph of a table has all labels. A row asks for the labels that photographs of its kind have, and leaves open
those they lack: a combination that nobody has would be answered with the look of whatever photographs come nearest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from synfundus.labels.schema import DISEASES, READABLE, UNKNOWN_STATE, LabelSchema, LabelSpec, label_caption

_HEALTHY = {**dict.fromkeys(DISEASES, 0), **dict.fromkeys(READABLE, 1)}
_READABLE_WHOLE = "is_fundus"
UNCONDITIONAL = "no label is known, so images are generated without labels"


@dataclass(frozen=True)
class Condition:
    """A row of the demo's picture.

    Attributes:
        title: Row title.
        defining: Labels of the photographs in the row.
        requested: Labels of the generated images.
        sides: Whether right and left eyes alternate in the generated images.
    """

    title: str
    defining: Mapping[str, int]
    requested: Mapping[str, int]
    sides: bool = False


def _finding(title: str, **labels: int) -> Condition:
    return Condition(title, {**labels, _READABLE_WHOLE: 1}, {**_HEALTHY, **labels})


_CONDITIONS = (
    Condition("healthy, right eye", {**_HEALTHY, "eye_side": 0}, {**_HEALTHY, "eye_side": 0}),
    Condition("healthy, left eye", {**_HEALTHY, "eye_side": 1}, {**_HEALTHY, "eye_side": 1}),
    _finding("diabetic retinopathy, mild (1)", dr_grade=1),
    _finding("diabetic retinopathy, moderate (2)", dr_grade=2),
    _finding("diabetic retinopathy, severe (3)", dr_grade=3),
    _finding("diabetic retinopathy, proliferative (4)", dr_grade=4),
    _finding("diabetic macular edema", dr_grade=2, is_dme=1),
    _finding("glaucoma", is_gc=1),
    _finding("age-related macular degeneration", is_amd=1),
    _finding("pathologic myopia", is_pm=1),
    _finding("degenerative myopia", is_dm=1),
    _finding("retinal vein occlusion", is_rvo=1),
    _finding("hypertensive retinopathy", is_htr=1),
    _finding("epiretinal membrane", is_em=1),
    _finding("choroidal retinal pathology", is_crp=1),
    _finding("anomaly of the optic nerve", is_aon=1),
    Condition("unreadable photograph", {_READABLE_WHOLE: 0}, dict.fromkeys(READABLE, 0)),
)


def conditions_of(schema: LabelSchema) -> list[Condition]:
    """Return the rows of the picture for a label schema: the named ones it has labels for, or one per value."""
    names = set(schema.names)
    named = [
        replace(one, requested={name: value for name, value in one.requested.items() if name in names})
        for one in _CONDITIONS
        if set(one.defining) <= names
    ]
    return named or [one for spec in schema.labels for one in _by_value(spec, range(spec.num_values))]


def _by_value(spec: LabelSpec, values: Sequence[int]) -> Iterator[Condition]:
    """Yield a row for each value; of a 0/1 label only for the 1, where there is one."""
    sided = spec.name == "eye_side"
    for value in [1] if spec.num_values == 2 and 1 in values and not sided else values:
        title = label_caption({spec.name: value}) if sided else f"{spec.meaning or spec.name} = {value}"
        yield Condition(title, {spec.name: value}, {spec.name: value})


def known_conditions(schema: LabelSchema, states: NDArray[np.int64]) -> list[Condition]:
    """Return the rows of the picture for photographs with these label states ``[n, k]``.

    They are the named rows of which there are photographs; before the findings, a row for each set of findings that
    photographs are known to be free of; and for known labels that none of these asks for, a row per value. Where no
    label is known at all there is one row, generated without labels.
    """
    healthy = [row for one in _CONDITIONS[:2] if (row := _settled(one, states, schema)) is not None]
    findings = [row for one in _CONDITIONS[2:] if (row := _settled(one, states, schema)) is not None]
    rows = [*healthy, *_free_of_findings(states, schema, known={_kind(row) for row in healthy}), *findings]
    covered = {name for row in rows for name in (*row.requested, *(["eye_side"] if row.sides else []))}
    for spec, column in zip(schema.labels, states.T, strict=True):
        values = (np.unique(column[column != UNKNOWN_STATE]) - 1).tolist()
        if spec.name not in covered:
            rows += [row for one in _by_value(spec, values) if (row := _settled(one, states, schema)) is not None]
    return rows or [Condition(UNCONDITIONAL, {}, {})]


def _settled(draft: Condition, states: NDArray[np.int64], schema: LabelSchema) -> Condition | None:
    """Return a row that asks for what its photographs have; None if there are no photographs of its kind.

    The photographs are known to be readable, or, where that is not known of most of them, not known to be unreadable;
    they have all findings of the draft or, where nobody has them all, the last.
    """
    labels = {name: value for name, value in draft.defining.items() if name in schema.names}
    finding = [name for name in draft.defining if name != _READABLE_WHOLE or len(draft.defining) == 1][-1]
    strict = draft.defining.keys() >= _HEALTHY.keys()
    if finding not in labels or (strict and labels != draft.defining):
        return None
    found = matching_rows(labels, states, schema)
    if not strict and finding != _READABLE_WHOLE:
        wider = {name: value for name, value in labels.items() if name != _READABLE_WHOLE}
        if 2 * found.size < (more := matching_rows(wider, states, schema)).size:
            labels, found = wider, more
        if not found.size:
            labels = {finding: labels[finding]}
            found = matching_rows(labels, states, schema)
    if not found.size:
        return None
    typical = _typical(states[found], schema)
    own = {n: v for n, v in typical.items() if n in draft.defining or (n not in _HEALTHY and n != "eye_side")}
    settled = {n: v for n, v in draft.requested.items() if n in typical and (n in labels or n not in draft.defining)}
    requested = {**own, **settled}
    return Condition(draft.title, labels, requested, sides="eye_side" in typical and "eye_side" not in requested)


def _free_of_findings(states: NDArray[np.int64], schema: LabelSchema, *, known: set[_Kind]) -> list[Condition]:
    """Return a row for each set of findings that photographs without a known finding are known to be free of.

    Args:
        states: Label states ``[n, k]``.
        schema: The labels.
        known: What need not be asked for again; added to.
    """
    diseases = [column for column, name in enumerate(schema.names) if name in DISEASES]
    readable = [column for column, name in enumerate(schema.names) if name in READABLE]
    free = (states[:, diseases] <= 1).all(axis=1) & (states[:, readable] != 1).all(axis=1)
    rows = []
    for column in diseases:
        group = states[free & (states[:, column] == 1)]
        if not len(group):
            continue
        typical = _typical(group, schema)
        requested = {name: value for name, value in typical.items() if name != "eye_side"}
        absent = {name: 0 for name in typical if name in DISEASES}
        title = "healthy" if len(absent) == len(DISEASES) else label_caption(absent)
        row = Condition(title, absent, requested, sides="eye_side" in typical)
        if _kind(row) not in known:
            known.add(_kind(row))
            rows.append(row)
    return rows


_Kind = frozenset[tuple[str, int]]


def _kind(row: Condition) -> _Kind:
    return frozenset((name, value) for name, value in row.requested.items() if name in _HEALTHY)


def _typical(states: NDArray[np.int64], schema: LabelSchema) -> dict[str, int]:
    """Return the known labels of the photograph whose known labels are most like those of all ``[n, k]``."""
    known = states != UNKNOWN_STATE
    nearest = int(np.abs(known - known.mean(axis=0)).sum(axis=1).argmin())
    return {name: value for name, value in schema.decode(states[nearest].tolist()).items() if value is not None}


def matching_rows(defining: Mapping[str, int], states: NDArray[np.int64], schema: LabelSchema) -> NDArray[np.int64]:
    """Return the numbers of the rows that have these labels, those with the fewest other findings first.

    A photograph known to be unreadable as a whole only matches where that is asked for.
    """
    columns = {name: column for column, name in enumerate(schema.names)}
    fits = np.ones(len(states), dtype=bool)
    if _READABLE_WHOLE in columns and _READABLE_WHOLE not in defining:
        fits &= states[:, columns[_READABLE_WHOLE]] != 1
    for name, value in defining.items():
        fits &= states[:, columns[name]] == value + 1
    others = [columns[name] for name in DISEASES if name in columns and name not in defining]
    unread = [columns[name] for name in READABLE if name in columns and name not in defining]
    excess = (states[:, others] > 1).sum(axis=1) + (states[:, unread] == 1).sum(axis=1)
    found = np.flatnonzero(fits)
    return np.asarray(found[np.argsort(excess[found], kind="stable")], dtype=np.int64)
