"""Label rows in words, short enough to stand under an image."""

from __future__ import annotations

from collections.abc import Mapping

_FINDINGS = {
    "is_amd": "AMD",
    "is_aon": "optic nerve anomaly",
    "is_crp": "choroidal pathology",
    "is_dm": "degenerative myopia",
    "is_dme": "macular edema",
    "is_em": "epiretinal membrane",
    "is_gc": "glaucoma",
    "is_htr": "hypertensive",
    "is_pm": "pathologic myopia",
    "is_rvo": "vein occlusion",
}
_UNREADABLE = {
    "is_fundus": "unreadable",
    "is_optic_disc_readable": "disc unreadable",
    "is_macular_readable": "macula unreadable",
    "is_retinal_region_readable": "retina unreadable",
}
_SIDES = {0: "right", 1: "left"}


def label_caption(labels: Mapping[str, int | None]) -> str:
    """Say what a label row says: the side, the grade, findings that are present, parts that are unreadable.

    Findings known to be absent are not listed; a label outside the default schema stands as ``name=value`` unless it
    is 0. A row in which nothing is known reads ``no labels``.
    """
    known = {name: value for name, value in labels.items() if value is not None}
    if not known:
        return "no labels"
    words = []
    if "eye_side" in known:
        words.append(_SIDES.get(known["eye_side"], f"side {known['eye_side']}"))
    if "dr_grade" in known:
        words.append(f"DR {known['dr_grade']}")
    words += [text for name, text in _FINDINGS.items() if known.get(name) == 1]
    words += [text for name, text in _UNREADABLE.items() if known.get(name) == 0]
    spoken = {"eye_side", "dr_grade", *_FINDINGS, *_UNREADABLE}
    words += [f"{name}={value}" for name, value in known.items() if name not in spoken and value]
    return ", ".join(words) or "no findings"
