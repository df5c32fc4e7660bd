"""`synfundus plan-labels`: which labels to generate images for, each row marked by who in the training set has it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from synfundus.artifacts.latent_set import photographs_of
from synfundus.config.sample_sets import PlanLabelsConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World
from synfundus.errors import ConfigError, DataError
from synfundus.labels.plan import plan_table, read_plan
from synfundus.labels.planning import PlanRequest, plan_rows
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, LabelSchema, difference
from synfundus.labels.seen import (
    FEW,
    FEW_PATIENTS,
    LABEL_ROWS,
    NEVER,
    NEVER_TOGETHER,
    SEEN,
    YES,
    SeenRows,
    States,
    distinct_rows,
    mark_rows,
)
from synfundus.shards.label_reading import read_label_states
from synfundus.stages import Summary
from synfundus.stages.verb import require
from synfundus.storage import filesystem
from synfundus.storage.manifest import ShardSet, open_set
from synfundus.telemetry.console import Console, PlainConsole


@dataclass(frozen=True)
class RowSource:
    """The rows that are drawn from.

    Attributes:
        schema: Labels.
        states: Distinct label states ``[d, k]``.
        index: Which of them each row is ``[n]``.
        seen: What they are compared with; None if there is nothing.
        is_set: Whether they are photographs of a set, not rows that somebody wrote.
    """

    schema: LabelSchema
    states: States
    index: NDArray[np.int64]
    seen: SeenRows | None
    is_set: bool


@dataclass(frozen=True)
class PlannedRows:
    """A plan, each distinct row once.

    Attributes:
        source: What it was drawn from.
        states: Distinct label states ``[d, k]``.
        index: Which of them is the row of each image ``[n]``.
        marks: Mark of each distinct row ``[d]``; None if there was nothing to compare with.
        filled: Whether it is added to the rows of the source.
    """

    source: RowSource
    states: States
    index: NDArray[np.int64]
    marks: NDArray[np.str_] | None
    filled: bool

    def rows_by_mark(self) -> dict[str, int]:
        """Return the number of images by mark."""
        if self.marks is None:
            return {}
        counts = np.bincount(self.index, minlength=len(self.states))
        return {mark: int(counts[self.marks == mark].sum()) for mark in (YES, FEW, NEVER_TOGETHER, NEVER)}


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Write a label plan. One process.

    Returns:
        ``out``, ``num_images``, ``seen`` (images by mark).

    Raises:
        ConfigError: Labels that are not there, a request that cannot be met, or another file in the place of the plan.
        DataError: No set and no table of labels.
    """
    del world
    section = config.plan_labels
    planned = _plan(section, config.seed, console)
    show_plan(planned, console)
    out = str(section.out)
    filesystem.write_bytes(out, plan_table(planned.states, planned.index, planned.marks, planned.source.schema))
    console.message(f"{len(planned.index):,} label rows: {out}")
    return {"out": out, "num_images": len(planned.index), "seen": planned.rows_by_mark()}


def describe(section: PlanLabelsConfig, seed: int) -> str:
    """Describe the plan, for a dry run."""
    stream = io.StringIO()
    console = PlainConsole(stream)
    show_plan(_plan(section, seed, console), console)
    return f"# label plan\n{stream.getvalue()}\n"


def _plan(section: PlanLabelsConfig, seed: int, console: Console) -> PlannedRows:
    out = require(section.out, flag="--out", key="plan_labels.out")
    if filesystem.exists(out) and not _is_plan(out):
        raise ConfigError("`plan-labels` did not write what is there", where=out, hint="give another --out")
    source = open_source(section, console)
    chosen = _where(source, section)
    index = source.index[chosen[source.index]]
    if not len(index):
        asked = ", ".join(f"{name}={value}" for name, value in section.where.items())
        raise ConfigError(f"no row has {asked}", where="plan_labels.where", hint="give another --where")
    if section.num_images is None and section.fill_to is None:
        if source.is_set:
            hint = "give --num-images, or --fill-to"
            raise ConfigError("no number of rows", where="plan_labels.num_images", hint=hint)
        states = source.states
    else:
        filled = section.fill_to is not None
        request = PlanRequest(
            num_images=section.num_images or 0,
            balance=() if filled else section.balance,
            fill=dict.fromkeys(section.balance or source.schema.names, section.fill_to) if section.fill_to else {},
            independent=section.independent,
            unreadable=section.unreadable,
        )
        counts = np.bincount(index, minlength=len(chosen))[chosen]
        states, index, notes = plan_rows(source.states[chosen], counts, request, source.schema, seed=seed)
        if filled and not len(index):
            said = f"nothing to plan: every value that occurs has {section.fill_to:,} rows or more"
            raise ConfigError(said, where="plan_labels.fill_to", hint="give a larger --fill-to, or --num-images")
        for note in notes:
            console.warning(note)
    seen = source.seen
    marks = None if seen is None else mark_rows(states, seen, source.schema.num_values)
    return PlannedRows(source, states, index, marks, section.fill_to is not None)


def _is_plan(url: str) -> bool:
    header = b"" if filesystem.is_dir(url) else filesystem.read_range(url, 0, 65_536).partition(b"\n")[0]
    return header.rstrip().endswith(f",{SEEN}".encode())


def _where(source: RowSource, section: PlanLabelsConfig) -> NDArray[np.bool_]:
    """Return which of the distinct rows have the labels of ``--where`` ``[d]``."""
    chosen = np.ones(len(source.states), dtype=bool)
    for name, wanted in section.where.items():
        try:
            value = source.schema.check_value(name, wanted)
        except DataError as error:
            raise ConfigError(error.message, where="plan_labels.where", hint="give another --where") from error
        chosen &= source.states[:, source.schema.names.index(name)] == (0 if value is None else value + 1)
    return chosen


def open_source(section: PlanLabelsConfig, console: Console) -> RowSource:
    """Read the rows, and what they are compared with."""
    url = require(section.source, flag="--from", key="plan_labels.source")
    training = None if section.seen_in is None else _open_set(section.seen_in)
    seen: SeenRows | None = None if training is None else _seen(training, None, console)
    is_set = filesystem.is_dir(url)
    if is_set:
        shard_set = _open_set(url)
        schema, states = shard_set.label_schema, _read_states(shard_set, console)
        rows, index = distinct_rows(states)
        seen = seen or _seen(shard_set, states, console)
    else:
        schema = DEFAULT_LABEL_SCHEMA if training is None else training.label_schema
        plan = read_plan(filesystem.read_bytes(url), schema, where=url, strict=False)
        rows, row_of = distinct_rows(plan.states)
        index = row_of[plan.index]
        if plan.unread:
            console.message(f"columns that are no labels are not read: {', '.join(plan.unread)}")
        seen = seen or _seen_in_table(rows[index], plan.patients)
    if training is not None and (text := difference(schema, training.label_schema)):
        said = f"{url} and {training.url} have other labels: {text}"
        raise ConfigError(
            said, where="plan_labels.seen_in", hint="leave --seen-in out, or give the set of the training"
        )
    if seen is None:
        console.warning(
            "nothing to compare with: the rows are not marked. Give --seen-in SET, the image or latent set of the "
            "training"
        )
    return RowSource(schema, rows, index, seen, is_set)


def _open_set(url: str) -> ShardSet:
    shard_set = open_set(url)
    if shard_set.kind in ("samples", "augmented"):
        hint = "give the image or latent set that the model was trained on"
        raise ConfigError("there are generated images in it, and no patient has their labels", where=url, hint=hint)
    if not shard_set.num_samples("train"):
        raise DataError("the train split of this set is empty", where=url)
    return shard_set


def _read_states(shard_set: ShardSet, console: Console) -> States:
    with console.progress("reading labels", total=shard_set.num_samples("train"), unit="samples") as bar:
        return read_label_states(shard_set, splits=("train",), advance=bar.advance)


def _seen(shard_set: ShardSet, states: States | None, console: Console) -> SeenRows:
    """Return the patients of a set by label row; photographs where it does not know patients."""
    told = photographs_of(shard_set) if shard_set.kind == "images" else shard_set.properties
    photographs = told.get("photographs", {})
    if LABEL_ROWS in photographs:
        seen = SeenRows.of_document(photographs[LABEL_ROWS], len(shard_set.label_schema.labels))
        return seen if photographs.get("patients") else replace(seen, unit="photographs")
    console.warning(
        f"{shard_set.url} does not say how many patients have which labels: photographs are counted instead"
    )
    return SeenRows.of(_read_states(shard_set, console) if states is None else states)


def _seen_in_table(states: States, patients: Sequence[str]) -> SeenRows | None:
    """Return the patients of a table by label row; None if it does not name them."""
    if not any(patients):
        return None
    return SeenRows.of(states, [name or f"\0{number}" for number, name in enumerate(patients)])


def show_plan(planned: PlannedRows, console: Console) -> None:
    """Show each label's values before and after, and how many rows are marked how."""
    source = planned.source
    before = np.bincount(source.index, minlength=len(source.states))
    after = np.bincount(planned.index, minlength=len(planned.states))
    rows = []
    for at, spec in enumerate(source.schema.labels):
        for state in (*range(1, spec.num_values + 1), 0):
            had = int(before[source.states[:, at] == state].sum())
            has = int(after[planned.states[:, at] == state].sum())
            name = "unknown" if state == 0 else " ".join([str(state - 1), *spec.names[state - 1 : state]])
            cells = [_share(had, len(source.index)), _share(has, len(planned.index))]
            rows.append([spec.name, name, *cells, *([f"{had + has:,}"] if planned.filled else [])])
    columns = ["label", "value", "in the set" if source.is_set else "in the table", "in the plan"]
    console.table("labels", [*columns, *(["together"] if planned.filled else [])], rows)
    if planned.marks is None or source.seen is None:
        return
    unit = source.seen.unit
    meanings = {
        YES: f"at least {FEW_PATIENTS} {unit} have these labels",
        FEW: f"fewer {unit} are known to: an image may resemble one of them",
        NEVER_TOGETHER: "each value occurs, but never together",
        NEVER: "a value that nobody has",
    }
    marked = planned.rows_by_mark()
    console.table(
        "rows by who has their labels",
        (SEEN, "rows", "meaning"),
        [(mark, f"{marked[mark]:,}", meaning) for mark, meaning in meanings.items()],
    )
    if unseen := marked[NEVER_TOGETHER] + marked[NEVER]:
        console.warning(
            f"`synfundus sample` refuses the {unseen:,} rows that nobody has, unless --allow-unseen is given"
        )


def _share(count: int, total: int) -> str:
    return f"{count:,} ({100 * count / max(total, 1):.1f} %)"
