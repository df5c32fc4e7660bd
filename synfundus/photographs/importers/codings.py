"""Codings shared by several sets, and the labels that are 0 in a normal fundus."""

from __future__ import annotations

from collections.abc import Mapping

GRADE: Mapping[str, int | None] = {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4}
"""The international scale of diabetic retinopathy: none, mild, moderate, severe, proliferative."""

FINDING: Mapping[str, int | None] = {"0": 0, "1": 1}
"""Searched for in every photograph: absent or present."""

ONLY_ABSENCE: Mapping[str, int | None] = {"0": 0, "1": None}
"""A broader finding: if it is absent, the label is 0; if it is present, the label is unknown."""

SIDE: Mapping[str, int | None] = {
    **dict.fromkeys(("right", "Right", "RIGHT", "R", "r", "OD"), 0),
    **dict.fromkeys(("left", "Left", "LEFT", "L", "l", "OS"), 1),
}
"""Names of the eye sides."""

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
"""Labels that are 0 if readers called the whole fundus normal."""


def words(values: Mapping[str, int | None]) -> Mapping[str, int | None]:
    """Return a coding with its words in lower case, upper case and capitalised."""
    return {form: value for word, value in values.items() for form in (word.lower(), word.upper(), word.capitalize())}
