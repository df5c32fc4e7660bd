"""Rows that ask a model for what no photograph of its training has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from synfundus.errors import ConfigError
from synfundus.labels.plan import LabelRow, Requests
from synfundus.labels.seen import FEW, FEW_PATIENTS, NEVER, NEVER_TOGETHER, NONE_KNOWN

_SAID = {NEVER: "nobody has one of these values", NEVER_TOGETHER: "each of these values occurs, but never together"}


def unseen_in(training: Mapping[str, Any], row: LabelRow) -> str:
    """Return what of a label row no photograph of the training has; empty if none, or if its summary does not tell.

    Args:
        training: The summary of the training in a model: ``photographs`` has ``never`` (see
            `synfundus.labels.seen.never_seen`), or of an earlier version ``positives`` alone.
        row: Labels asked for.
    """
    told = training.get("photographs") or {}
    asked = [(name, value) for name, value in row.items() if value is not None]
    if "never" not in told:
        positives = told.get("positives") or {}
        return next(
            (f"{name}={value}" for name, value in asked if value and positives.get(name) in ("0", NONE_KNOWN)), ""
        )
    values, pairs = told["never"]["values"], told["never"]["pairs"] or {}
    for name, value in asked:
        if value in values.get(name, ()):
            return f"{name}={value}"
    texts = [f"{name}={value}" for name, value in asked]
    for text in texts:
        if others := set(pairs.get(text, ())).intersection(texts):
            return f"{text} together with {min(others)}"
    return ""


def check_unseen(requests: Requests, training: Mapping[str, Any], *, allowed: bool, where: str) -> list[str]:
    """Refuse label rows that no patient of the training set has, by the plan's marks or by the model's summary.

    Args:
        requests: The rows.
        training: The model's summary of its training.
        allowed: Return a warning instead.
        where: The plan, or the option that gave the labels.

    Returns:
        Warnings: rows that few patients have, and what could not be compared.

    Raises:
        ConfigError: There are such rows; names how many, the first, and its values.
    """
    counts = np.bincount(requests.index, minlength=len(requests.distinct))
    unseen = few = 0
    first = ""
    for row, mark, place, count in zip(
        requests.distinct, requests.marks, requests.places, counts.tolist(), strict=True
    ):
        found = unseen_in(training, row) if count else ""
        if count and (found or mark in _SAID):
            unseen += count
            values = ", ".join(f"{name}={value}" for name, value in row.items() if value is not None)
            first = first or f"{place}: " + (f"no photograph has {found}" if found else f"{values} ({_SAID[mark]})")
        few += count if mark == FEW else 0
    total = len(requests.index)
    warnings = []
    if unseen:
        said = f"{unseen:,} of {total:,} images ask for what no photograph of the training is known to have; {first}"
        if not allowed:
            hint = "take such rows out, or give --allow-unseen: what is drawn for them is a guess"
            raise ConfigError(said, where=where, hint=hint)
        warnings.append(f"{said}. What is drawn for them is a guess")
    if few:
        warnings.append(
            f"{few:,} of {total:,} images ask for labels that fewer than {FEW_PATIENTS} patients of the training set "
            "are known to have: they may resemble one of these"
        )
    marked = any(requests.marks)
    if (
        not marked
        and not training.get("photographs")
        and any(value is not None for row in requests.distinct for value in row.values())
    ):
        warnings.append(
            "this model does not say which labels its photographs have: nothing tells whether these were seen"
        )
    return warnings
