"""Codings that several sets share, and the labels that a normal fundus settles."""

from __future__ import annotations

from collections.abc import Mapping

GRADE: Mapping[str, int | None] = {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4}
"""The international scale of diabetic retinopathy: none, mild, moderate, severe, proliferative."""

FINDING: Mapping[str, int | None] = {"0": 0, "1": 1}
"""Looked for in every photograph: absent or present."""

ONLY_ABSENCE: Mapping[str, int | None] = {"0": 0, "1": None}
"""A wider finding: without it the label is 0, with it the label stays open."""

SIDE: Mapping[str, int | None] = {
    **dict.fromkeys(("right", "Right", "RIGHT", "R", "r", "OD"), 0),
    **dict.fromkeys(("left", "Left", "LEFT", "L", "l", "OS"), 1),
}
"""Eye side in words."""

DISEASES = (
    "dr_grade",
    "is_amd",
    "is_aon",
    "is_crp",
    "is_dm",
    "is_dme",
    "is_em",
    "is_gc",
    "is_htr",
    "is_pm",
    "is_rvo",
)
"""Labels that are 0 where readers called the whole fundus normal."""


def words(values: Mapping[str, int | None]) -> Mapping[str, int | None]:
    """Return a coding by words with its spellings: lower case, upper case, capitalised."""
    return {form: value for word, value in values.items() for form in (word.lower(), word.upper(), word.capitalize())}
