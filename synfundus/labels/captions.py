"""Label rows as short captions under images."""

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
    """Describe a label row: the side, the grade, findings that are present, parts that are unreadable.

    Findings known to be absent are not listed; a label outside the default schema is written ``name=value`` unless it
    is 0. A row without known labels gives ``no labels``.
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
    described = {"eye_side", "dr_grade", *_FINDINGS, *_UNREADABLE}
    words += [f"{name}={value}" for name, value in known.items() if name not in described and value]
    return ", ".join(words) or "no findings"
