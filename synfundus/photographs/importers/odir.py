"""ODIR-5K: two eyes per row, with the diagnoses of each eye as keywords."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from synfundus.labels.schema import DISEASES, canonical_cell
from synfundus.photographs.importers.importer import FINDING, GRADE, SIDE, Cells, Column, Importer

_SEPARATORS = re.compile("[，,;；、]")
_NORMAL, _LOW_QUALITY, _HIDDEN_DISC = "normal fundus", "low image quality", "optic disk photographically invisible"
_NO_FUNDUS = ("no fundus image", "anterior segment image")
_REMARKS = ("lens dust", "image offset", _HIDDEN_DISC)
"""Keywords about the photograph; the fundus can still be normal."""

_LABELS = (*DISEASES, "is_fundus", "is_optic_disc_readable")

_FINDINGS: Mapping[str, Mapping[str, int]] = {
    "dr_grade": {
        "mild nonproliferative retinopathy": 1,
        "moderate nonproliferative retinopathy": 2,
        "severe nonproliferative retinopathy": 3,
        "proliferative diabetic retinopathy": 4,
        "severe proliferative diabetic retinopathy": 4,
    },
    "is_amd": {
        "age-related macular degeneration": 1,
        "dry age-related macular degeneration": 1,
        "wet age-related macular degeneration": 1,
    },
    "is_aon": {"optic nerve atrophy": 1, "optic disc edema": 1, "optic discitis": 1, "morning glory syndrome": 1},
    "is_em": {"epiretinal membrane": 1, "macular epiretinal membrane": 1, "epiretinal membrane over the macula": 1},
    "is_gc": {"glaucoma": 1},
    "is_htr": {"hypertensive retinopathy": 1},
    "is_pm": {"pathological myopia": 1, "myopic maculopathy": 1},
    "is_rvo": {
        "branch retinal vein occlusion": 1,
        "central retinal vein occlusion": 1,
        "old branch retinal vein occlusion": 1,
        "old central retinal vein occlusion": 1,
    },
}
"""Keywords that give the value of a label."""

_DOUBTFUL: Mapping[str, tuple[str, ...]] = {
    "dr_grade": ("diabetic", "proliferative", "laser", "photocoagulation", "microvascular"),
    "is_amd": ("macular degeneration", "choroidal neovascularization"),
    "is_gc": ("glaucoma",),
    "is_htr": ("hypertensi",),
    "is_pm": ("myopi",),
}
"""Parts of other keywords that exclude a 0: a suspicion, a finding without a grade, a treated eye."""

_PATIENT_COLUMNS = {"dr_grade": "D", "is_amd": "A", "is_gc": "G", "is_htr": "H", "is_pm": "M"}
"""Column that is 1 if either eye of the patient has the disease."""


def keywords(cell: str) -> tuple[str, ...]:
    """Split diagnostic keywords at full-width and ASCII separators; normalise spaces and "nonproliferative"."""
    words = (" ".join(word.split()).lower() for word in _SEPARATORS.split(cell))
    return tuple(re.sub(r"\bnon[ -]?proliferative", "nonproliferative", word) for word in words if word)


def eye_labels(cell: str, patient: Cells) -> dict[str, str]:
    """Return the labels from the keywords of one eye, as cells with 0, 1 or a grade; empty is unknown.

    Args:
        cell: Diagnostic keywords of the eye.
        patient: Columns `D`, `A`, `G`, `H`, `M` of the patient.
    """
    words = keywords(cell)
    labels = dict.fromkeys(_LABELS, "")
    flags = {name: canonical_cell(patient[column]) for name, column in _PATIENT_COLUMNS.items()}
    wrong = {name: f"{_PATIENT_COLUMNS[name]} = {flag}" for name, flag in flags.items() if flag not in ("", "0", "1")}
    if wrong or not words:
        return labels | wrong  # a cell outside the coding, for which the photograph is rejected
    readable = not ({_LOW_QUALITY, *_NO_FUNDUS} & set(words))
    findings = [word for word in words if word not in (_NORMAL, _LOW_QUALITY, *_NO_FUNDUS, *_REMARKS)]
    normal = readable and _NORMAL in words and not findings
    if normal:
        labels["is_fundus"] = "1"
    elif set(_NO_FUNDUS) & set(words) or not (readable or findings):
        labels["is_fundus"] = "0"
    if _HIDDEN_DISC in words:
        labels["is_optic_disc_readable"] = "0"
    for name in DISEASES:
        positive = [value for word, value in _FINDINGS.get(name, {}).items() if word in words]
        if positive:
            labels[name] = str(max(positive))
        elif normal:
            labels[name] = "0"
        elif readable and flags.get(name) == "0":
            doubtful = any(part in word for part in _DOUBTFUL[name] for word in findings)
            labels[name] = "" if doubtful else "0"
    if _HIDDEN_DISC in words:
        labels |= {name: "" for name in ("is_aon", "is_gc") if labels[name] == "0"}
    return labels


def _photographs(cells: Cells) -> Sequence[Cells]:
    """Return both eyes of a row; only the eye of `filename` if the table has a row per photograph."""
    eyes = []
    for side in ("Left", "Right"):
        labels = eye_labels(cells[f"{side}-Diagnostic Keywords"], cells)
        eyes.append({**cells, "photograph": cells[f"{side}-Fundus"], "side": side, **_keyed(labels)})
    name = cells["filename"]
    if not name:
        return eyes
    chosen = [eye for eye in eyes if eye["photograph"].lower() == name.lower()]
    unsided = {**cells, "photograph": name, "side": "neither Left-Fundus nor Right-Fundus", **_keyed({})}
    return chosen[:1] or (unsided,)


def _keyed(labels: Mapping[str, str]) -> Cells:
    return {f"keywords ({name})": labels.get(name, "") for name in _LABELS}


ODIR5K = Importer(
    collection="ODIR-5K",
    file="photograph",
    suffix=".jpg",
    patient="ID",
    labels={
        **{name: (Column(f"keywords ({name})", GRADE if name == "dr_grade" else FINDING),) for name in _LABELS},
        "eye_side": (Column("side", SIDE),),
    },
    required=(
        "Left-Fundus",
        "Right-Fundus",
        "Left-Diagnostic Keywords",
        "Right-Diagnostic Keywords",
        *_PATIENT_COLUMNS.values(),
    ),
    optional=frozenset({"filename"}),
    derived=frozenset({"photograph", "side", *(f"keywords ({name})" for name in _LABELS)}),
    photographs=_photographs,
)
"""ODIR-5K: ``ODIR-5K_Training_Annotations(Updated)_V2.xlsx`` saved as CSV UTF-8 (a row is a patient with two
photographs), or ``full_df.csv`` (a row is a photograph, with a column `filename`).

`N` to `O` are of the patient: the disease can be in either eye. So a label comes from the keywords of the eye itself:

- a keyword with the definite disease gives the value; with "diabetic retinopathy" without a grade, or a suspicion, the
  label is unknown;
- "normal fundus" without findings is 0 for all eleven diseases, and readable;
- `D`, `A`, `G`, `H`, `M` = 0: neither eye has the disease, so 0. A 1 says nothing about an eye without the keyword;
- other diseases are recorded when present, but their absence is not: unknown;
- "no fundus image" and "anterior segment image", and "low image quality" without a finding: not readable, and no
  absence is known.

Some copies contain the photographs twice (``Training Images``, ``preprocessed_images``): ``--source`` must be one of
these folders.
"""
