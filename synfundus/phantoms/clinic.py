"""A clinic with unlimited photographs: patient, eye, visit and true labels of each.

Photographs come in blocks of twelve: three patients whose visit counts (one to three, both eyes at each visit)
add up to six. So the patient of an index follows without computing other indices.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from statistics import NormalDist

from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA, READABLE
from synfundus.seeding import keyed_generator

GRADED_LABEL = "dr_grade"
SIDE_LABEL = "eye_side"

PATIENTS_PER_BLOCK = 3
PHOTOGRAPHS_PER_BLOCK = 12
_VISIT_PATTERNS = (*itertools.permutations((1, 2, 3)), (2, 2, 2))

UNKNOWN_RATE = 0.05
_NOT_FUNDUS_RATE = 0.055
_REGION_UNREADABLE_RATE = 0.03

_DR_CUMULATIVE = (0.56, 0.67, 0.82, 0.91)
_DME_GIVEN_DR = 0.25
_PREVALENCE = {
    "is_amd": 0.07,
    "is_aon": 0.05,
    "is_crp": 0.05,
    "is_dm": 0.06,
    "is_em": 0.05,
    "is_gc": 0.14,
    "is_htr": 0.06,
    "is_pm": 0.10,
    "is_rvo": 0.06,
}
# Loadings on the factors of a patient: age, myopia, vascular. The sum of squares must be below one.
_LOADINGS = {
    GRADED_LABEL: (0.15, 0.0, 0.45),
    "is_amd": (0.55, 0.0, 0.0),
    "is_aon": (0.2, 0.0, 0.1),
    "is_crp": (0.1, 0.25, 0.0),
    "is_dm": (0.1, 0.6, 0.0),
    "is_dme": (0.0, 0.0, 0.3),
    "is_em": (0.45, 0.1, 0.0),
    "is_gc": (0.35, 0.25, 0.0),
    "is_htr": (0.35, 0.0, 0.5),
    "is_pm": (0.15, 0.6, 0.0),
    "is_rvo": (0.35, 0.0, 0.35),
}
LABEL_NAMES = DEFAULT_LABEL_SCHEMA.names
"""The fifteen annotations of SynFundus-1M plus the side of the eye (0 right, 1 left)."""

_BOTH_EYES = 0.6
"""Share of the remaining variance that is common to both eyes of a patient."""
_DRIFT_PER_VISIT = 0.15
_MEAN_VISIT = 2 / 3
"""Mean visit number over photographs; centres the drift, so that the prevalences are exact."""

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Exam:
    """One photograph of one eye at one visit.

    Attributes:
        index: Number of the photograph in the clinic.
        patient: Number of the patient.
        visit: Visit number, from 0.
        eye_side: 0 right, 1 left.
    """

    index: int
    patient: int
    visit: int
    eye_side: int

    @property
    def eye(self) -> int:
        """Number of the eye: the key of everything that is the same at every visit."""
        return 2 * self.patient + self.eye_side


def exam_of(seed: int, index: int) -> Exam:
    """Return the exam of the ``index``-th photograph, in constant time."""
    block, position = divmod(index, PHOTOGRAPHS_PER_BLOCK)
    choice = int(keyed_generator(seed, "phantom.visits", index=block).integers(len(_VISIT_PATTERNS)))
    patient = block * PATIENTS_PER_BLOCK
    for visits in _VISIT_PATTERNS[choice]:
        if position < 2 * visits:
            break
        position -= 2 * visits
        patient += 1
    return Exam(index=index, patient=patient, visit=position // 2, eye_side=position % 2)


def _liabilities(seed: int, exam: Exam) -> dict[str, float]:
    """Return a standard normal liability for each disease: shared factors, patient, eye, slow drift."""
    patient_draws = keyed_generator(seed, "phantom.patient", index=exam.patient).standard_normal(3 + len(_LOADINGS))
    eye_draws = keyed_generator(seed, "phantom.eye", index=exam.eye).standard_normal(len(_LOADINGS))
    drift = _DRIFT_PER_VISIT * (exam.visit - _MEAN_VISIT)
    liabilities = {}
    for row, (name, loadings) in enumerate(_LOADINGS.items()):
        shared = sum(weight * float(patient_draws[k]) for k, weight in enumerate(loadings))
        rest = 1 - sum(weight**2 for weight in loadings)
        own = (rest * _BOTH_EYES) ** 0.5 * float(patient_draws[3 + row])
        own += (rest * (1 - _BOTH_EYES)) ** 0.5 * float(eye_draws[row])
        liabilities[name] = shared + own + drift
    return liabilities


def true_labels_of(seed: int, exam: Exam) -> dict[str, int]:
    """Return all sixteen labels of a photograph, in the order of ``LABEL_NAMES``.

    Diseases belong to the eye and never regress; readability belongs to the photograph.
    """
    liability = {name: _NORMAL.cdf(value) for name, value in _liabilities(seed, exam).items()}
    grade = sum(liability[GRADED_LABEL] > limit for limit in _DR_CUMULATIVE)
    labels = {name: int(liability[name] > 1 - rate) for name, rate in _PREVALENCE.items()}
    labels[GRADED_LABEL] = grade
    labels["is_dme"] = int(grade >= 2 and liability["is_dme"] > 1 - _DME_GIVEN_DR)
    labels[SIDE_LABEL] = exam.eye_side
    draws = keyed_generator(seed, "phantom.readability", index=exam.index).random(len(READABLE))
    labels["is_fundus"] = int(draws[0] >= _NOT_FUNDUS_RATE)
    for name, draw in zip(READABLE[1:], draws[1:], strict=True):
        labels[name] = int(labels["is_fundus"] and draw >= _REGION_UNREADABLE_RATE)
    return {name: labels[name] for name in LABEL_NAMES}


def recorded_labels_of(seed: int, exam: Exam, true_labels: dict[str, int]) -> dict[str, int | None]:
    """Return the labels as recorded in the table of the clinic; None was not recorded.

    About one label in twenty is missing. Of an unreadable photograph (``is_fundus`` 0) neither findings nor the side of
    the eye are recorded.
    """
    draws = keyed_generator(seed, "phantom.unknown", index=exam.index).random(len(LABEL_NAMES))
    shown = LABEL_NAMES if true_labels["is_fundus"] else READABLE
    return {
        name: true_labels[name] if name in shown and draw >= UNKNOWN_RATE else None
        for name, draw in zip(LABEL_NAMES, draws, strict=True)
    }
