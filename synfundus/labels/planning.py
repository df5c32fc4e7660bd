"""Which label rows to generate: as they occur together in a set, each label by itself, balanced, or filled up.

Rows are taken from the rows of real photographs as often as their weight says. The whole parts of ``N * weight`` are
exact. What is left goes to rows by a keyed draw in proportion to the fractions, as largest remainders would never take
a rare row of a set that is larger than the plan; then rows are exchanged until each value of each label is as frequent
as it was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import ConfigError
from synfundus.labels.schema import READABLE, UNKNOWN_STATE, LabelSchema
from synfundus.labels.seen import States, distinct_rows
from synfundus.seeding import keyed_generator

Counts = NDArray[np.int64]
Weights = NDArray[np.float64]
Groups = NDArray[np.int64]
UNREADABLE_STATE = 1
"""State of ``is_fundus = 0``."""

_PAIRS, _MOST_EXCHANGES, _PATIENCE = 2048, 20_000, 8
_ROUNDS, _CLOSE, _NOTABLE = 1000, 1e-6, 0.005


@dataclass(frozen=True)
class Margin:
    """How frequent groups of rows shall be.

    Attributes:
        groups: Group of each row ``[d]``; -1 for a row that is in none, which is left out.
        shares: Wanted share of each group; they sum to 1.
    """

    groups: Groups
    shares: Weights


def equal_margin(states: NDArray[np.int16]) -> Margin:
    """Return the margin in which the values that occur in a column of label states ``[d]`` are equally frequent."""
    found = np.unique(states[states != UNKNOWN_STATE])
    groups = np.where(states == UNKNOWN_STATE, -1, np.searchsorted(found, states))
    return Margin(groups.astype(np.int64), np.full(len(found), 1 / max(len(found), 1)))


def fit_weights(weights: Weights, margins: Sequence[Margin]) -> tuple[Weights, float]:
    """Return weights with these margins, near the given ones, and the largest deviation of a share.

    Source: iterative proportional fitting, Deming and Stephan 1940.
    """
    fitted = np.where(np.all([one.groups >= 0 for one in margins], axis=0), weights, 0.0) if margins else weights
    fitted = fitted / max(fitted.sum(), 1e-300)
    deviation = 0.0
    for _ in range(_ROUNDS if margins else 0):
        deviation = 0.0
        for one in margins:
            has = np.bincount(np.maximum(one.groups, 0), weights=fitted, minlength=len(one.shares))
            deviation = max(deviation, float(np.abs(has - one.shares).max(initial=0.0)))
            fitted = fitted * np.divide(one.shares, has, out=np.zeros_like(has), where=has > 0)[one.groups]
        if deviation < _CLOSE:
            break
    return fitted / max(fitted.sum(), 1e-300), deviation


def apportion_rows(total: int, weights: Weights) -> Counts:
    """Divide a number of rows in proportion to weights ``[d]``, in whole numbers, by largest remainders."""
    exact = total * weights / weights.sum()
    counts: Counts = np.floor(exact + 1e-9).astype(np.int64)
    rest = np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]
    counts[rest] += 1
    return counts


def draw_counts(rows: States, weights: Weights, total: int, draws: np.random.Generator) -> Counts:
    """Return how often each row is taken ``[d]``, ``total`` in all, see the module.

    Args:
        rows: Label states ``[d, k]``.
        weights: Weights ``[d]``, not all 0.
        total: Number of rows to take, may be 0.
        draws: For what is not decided by the weights.
    """
    if not total:
        return np.zeros(len(rows), dtype=np.int64)
    exact = total * weights / weights.sum()
    counts: Counts = np.floor(exact + 1e-9).astype(np.int64)
    left = total - int(counts.sum())
    fraction = np.clip(exact - counts, 0.0, 1.0)
    open_rows = np.flatnonzero(fraction > 1e-9)
    if left <= 0 or not len(open_rows):
        return counts
    order = draws.permutation(open_rows)
    reached = np.cumsum(fraction[order])
    reached *= left / reached[-1]
    taken = np.diff(np.floor(reached + draws.random()), prepend=0.0).astype(np.int64)
    taken[-1] += left - int(taken.sum())
    counts[order] += taken
    once = order[taken <= 1]
    return _exchange(rows, counts, exact, once, draws)


def _exchange(rows: States, counts: Counts, exact: Weights, once: Counts, draws: np.random.Generator) -> Counts:
    """Exchange rows that were taken for others, as long as the values of the labels come nearer to their shares.

    Args:
        rows: Label states ``[d, k]``.
        counts: How often each is taken; changed.
        exact: How often each should be, a fraction.
        once: Rows of which one more or one less may be taken.
        draws: For the pairs that are looked at.
    """
    columns = [column == state for column in rows.T for state in np.unique(column)]
    values = np.stack(columns, axis=1).astype(np.int8)
    error = np.array([float((counts - exact)[column].sum()) for column in columns])
    taken = counts[once] > np.floor(exact[once] + 1e-9)
    inside, outside = once[taken], once[~taken]
    tries = 0
    for _ in range(_MOST_EXCHANGES if len(inside) and len(outside) else 0):
        if np.abs(error).max() < 1 or tries == _PATIENCE:
            break
        out, new = draws.integers(len(inside), size=_PAIRS), draws.integers(len(outside), size=_PAIRS)
        change = values[outside[new]].astype(np.float32) - values[inside[out]]
        gain = change @ (2 * error) + (change**2).sum(axis=1)
        best = int(gain.argmin())
        if gain[best] >= -1e-6:
            tries += 1
            continue
        tries = 0
        at, to = out[best], new[best]
        counts[inside[at]] -= 1
        counts[outside[to]] += 1
        inside[at], outside[to] = outside[to], inside[at]
        error += change[best]
    return counts


def draw_independently(weights: Sequence[Weights], total: int, draws: np.random.Generator) -> States:
    """Return label states ``[total, k]``, each label by itself, from the weight of each of its states."""
    return np.stack(
        [draws.permutation(np.repeat(np.arange(len(one)), apportion_rows(total, one))) for one in weights], axis=1
    ).astype(np.int16)


def fill_counts(
    rows: States, counts: Counts, least: Mapping[int, int], draws: np.random.Generator, *, matched: bool = False
) -> Counts:
    """Return how often to take each row so that every value that occurs has a least number with the real ones.

    The rarest value comes first: its rows have values of other labels too, which then need fewer.

    Args:
        rows: Label states ``[d, k]`` of the photographs.
        counts: Photographs with each ``[d]``.
        least: Rows that each value of a label to fill shall have, real and synthetic together, by column.
        draws: See `draw_counts`.
        matched: Then add to every value of these labels what it has fewer than the value that was filled most, so that
            being synthetic tells nothing of the value.
    """
    added = np.zeros(len(rows), dtype=np.int64)
    found = [(at, int(state)) for at in least for state in np.unique(rows[:, at]) if state != UNKNOWN_STATE]
    for at, state in sorted(found, key=lambda one: int(counts[rows[:, one[0]] == one[1]].sum())):
        has = rows[:, at] == state
        need = least[at] - int((counts + added)[has].sum())
        if need > 0:
            added[has] += draw_counts(rows[has], counts[has].astype(np.float64), need, draws)
    for at in least if matched else ():
        wanted = {state: int(added[rows[:, at] == state].sum()) for column, state in found if column == at}
        for state, number in wanted.items():
            has = rows[:, at] == state
            need = max(wanted.values()) - number
            added[has] += draw_counts(rows[has], counts[has].astype(np.float64), need, draws)
    return added


@dataclass(frozen=True)
class PlanRequest:
    """What is asked for.

    Attributes:
        num_images: Rows of the plan, if ``fill`` does not decide it.
        balance: Labels whose values shall be equally frequent.
        fill: Least number of rows of each value of a label, real and planned together.
        matched: Plan as many rows of every value of a label to fill.
        independent: Each label by itself.
        unreadable: Fraction with ``is_fundus`` 0, from real rows if there are any, whatever is balanced in the others;
            None: as it is.
    """

    num_images: int
    balance: tuple[str, ...] = ()
    fill: Mapping[str, int] = field(default_factory=dict)
    matched: bool = False
    independent: bool = False
    unreadable: float | None = None


def plan_rows(
    rows: States, counts: Counts, request: PlanRequest, schema: LabelSchema, *, seed: int
) -> tuple[States, NDArray[np.int64], list[str]]:
    """Return the distinct rows of a plan ``[d, k]``, which of them each image has ``[n]``, and warnings.

    Args:
        rows: Distinct label states of the photographs ``[d, k]``.
        counts: Photographs with each ``[d]``.
        request: What is asked for.
        schema: The labels.
        seed: Seed of the draws.

    Raises:
        ConfigError: A label that is not there, or that no row knows.
    """
    draws = keyed_generator(seed, "label plan")
    columns = [schema.names.index(schema[name].name) for name in request.balance]
    fundus = _readability(request, schema)
    lacking = fundus is not None and not (rows[:, fundus] == UNREADABLE_STATE).any()
    least = {schema.names.index(schema[name].name): number for name, number in request.fill.items()}
    notes = _missing_values(rows, [*columns, *least], schema)
    if least:
        taken = fill_counts(rows, counts, least, draws, matched=request.matched)
    elif request.independent:
        states = draw_independently(
            _state_weights(rows, counts, columns, fundus, request.unreadable), request.num_images, draws
        )
        return (*distinct_rows(states), notes)
    else:
        unreadable = np.zeros(len(rows), dtype=bool)
        if fundus is not None and not lacking:
            unreadable = rows[:, fundus] == UNREADABLE_STATE
        share = request.unreadable or 0.0 if unreadable.any() else 0.0
        part = round(share * request.num_images)
        taken = draw_counts(rows, np.where(unreadable, counts, 0).astype(np.float64), part, draws)
        if part < request.num_images:
            weights = np.where(unreadable, 0, counts).astype(np.float64)
            weights, deviation = _balanced(rows, weights, columns, schema)
            taken += draw_counts(rows, weights, request.num_images - part, draws)
            if deviation > _NOTABLE:
                notes.append(
                    f"no mixture of the real rows is what was asked for: a share is off by {100 * deviation:.1f} "
                    "points; --independent makes new combinations"
                )
    rows, taken = rows[taken > 0], taken[taken > 0]
    index = draws.permutation(np.repeat(np.arange(len(rows)), taken))
    if not lacking or fundus is None:
        return rows, index, notes
    states = rows[index]
    states[: round((request.unreadable or 0.0) * len(states)), fundus] = UNREADABLE_STATE
    return (*distinct_rows(draws.permutation(states)), notes)


def _balanced(rows: States, weights: Weights, columns: Sequence[int], schema: LabelSchema) -> tuple[Weights, float]:
    """Return the weights with which the values of some labels are equally frequent, and the largest deviation.

    Raises:
        ConfigError: No row knows all of these labels.
    """
    fitted, deviation = fit_weights(weights, [equal_margin(rows[:, at]) for at in columns])
    if fitted.sum():
        return fitted, deviation
    names = ", ".join(schema.names[at] for at in columns)
    raise ConfigError(
        f"no readable photograph knows {names}" if names else "no photograph is readable",
        where="plan_labels.balance",
        hint="name fewer labels, or add --independent",
    )


def _readability(request: PlanRequest, schema: LabelSchema) -> int | None:
    """Return the column of ``is_fundus``, if a fraction of unreadable images is asked for."""
    if request.unreadable is None:
        return None
    if READABLE[0] not in schema.names:
        said = f"there is no label {READABLE[0]}, which says that a photograph is unreadable"
        raise ConfigError(said, where="plan_labels.unreadable", hint="leave --unreadable out")
    return schema.names.index(READABLE[0])


def _missing_values(rows: States, columns: Sequence[int], schema: LabelSchema) -> list[str]:
    """Return a warning that names the values nobody has, of which no real row can be drawn."""
    missing = [
        f"{schema.names[at]}={value}"
        for at in columns
        for value in range(schema.num_values[at])
        if not (rows[:, at] == value + 1).any()
    ]
    return [f"nobody has {', '.join(missing)}: left out"] if missing else []


def _state_weights(
    rows: States, counts: Counts, columns: Sequence[int], fundus: int | None, unreadable: float | None
) -> list[Weights]:
    """Return the weight of each state of each label by itself."""
    weights = [np.bincount(column, weights=counts).astype(np.float64) for column in rows.T]
    for at in columns:
        weights[at] = (weights[at] > 0) & (np.arange(len(weights[at])) != UNKNOWN_STATE)
        weights[at] = weights[at].astype(np.float64)
    if fundus is not None:
        own = np.zeros(max(len(weights[fundus]), UNREADABLE_STATE + 1))
        own[: len(weights[fundus])] = weights[fundus]
        own[UNREADABLE_STATE] = 0.0
        own *= (1 - (unreadable or 0.0)) / max(own.sum(), 1e-300)
        own[UNREADABLE_STATE] = unreadable or 0.0
        weights[fundus] = own
    return weights
