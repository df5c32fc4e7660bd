"""Eyes of variety ``wide``: disc size, pigmentation, vessels and tissues from distributions matched to photographs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from synfundus.phantoms.canvas import Rgb
from synfundus.phantoms.clinic import Exam
from synfundus.phantoms.scene import EyeAnatomy
from synfundus.phantoms.tissue import Tissue
from synfundus.seeding import keyed_generator

_DISC_DIAMETERS_TO_FOVEA, _DISC_DIAMETERS_SPREAD = 2.65, 0.30
"""Distance of fovea and disc centre over the disc's diameter.

Source: Jonas et al. 2015, "Optic disc - fovea distance, axial length and parapapillary zones. The Beijing Eye Study
2011" (PMC4577126).
"""


def _rgb(values: np.ndarray) -> Rgb:
    return float(values[0]), float(values[1]), float(values[2])


def widened_eye(seed: int, exam: Exam, eye: EyeAnatomy) -> EyeAnatomy:
    """Return an anatomy of variety ``wide`` with the positions of ``eye``."""
    patient = keyed_generator(seed, "phantom.wide.patient", index=exam.patient)
    own = keyed_generator(seed, "phantom.wide.eye", index=exam.eye)
    diameters = patient.normal(_DISC_DIAMETERS_TO_FOVEA, _DISC_DIAMETERS_SPREAD) + own.normal(0, 0.08)
    distance = math.dist(eye.disc_center, eye.fovea_center)
    oval = eye.disc_axes[1] / eye.disc_axes[0]
    width = distance / float(np.clip(diameters, 1.9, 3.4)) / (1 + oval)
    red = float(np.exp(patient.normal(-0.26, 0.16)))
    green = float(np.clip(patient.normal(0.49, 0.09), 0.28, 0.72))
    blue = float(
        np.clip(patient.choice((0.02, 0.25, 0.55), p=(0.25, 0.40, 0.35)) + patient.normal(0, 0.09), 0.005, 0.95)
    )
    pale = bool(patient.random() < 0.3)
    bare = patient.uniform(0.15, 0.9) if pale else patient.uniform(0, 0.18)
    return replace(
        eye,
        pigmentation=(red, red * green, red * green * blue),
        disc_axes=(width, width * oval),
        calibre=float(patient.uniform(0.022, 0.036)),
        tortuosity=float(np.exp(patient.normal(0, 0.45))),
        tessellation=float(bare),
    )


def tissue_of(seed: int, exam: Exam, eye: EyeAnatomy) -> Tissue:
    """Return the tissues of the eye."""
    patient = keyed_generator(seed, "phantom.wide.tissue.patient", index=exam.patient)
    own = keyed_generator(seed, "phantom.wide.tissue.eye", index=exam.eye)
    strength = float(np.clip(np.exp(patient.normal(-0.66, 0.54) + own.normal(0, 0.08)), 0.08, 1.15))
    arteries = strength * float(patient.uniform(0.66, 1.0))
    reddening = float(patient.uniform(0.12, 0.42))
    shine = float(patient.uniform(0, 1) ** 2 * max(eye.youth - 0.35, 0) / 0.65)
    reflection = arteries * float(patient.uniform(0.05, 0.75))
    return Tissue(
        venous=(strength * reddening, strength, 0.85 * strength),
        arterial=(arteries * 0.6 * reddening, 0.85 * arteries, 0.80 * arteries),
        reflex=(-0.3 * reflection, -reflection, -0.9 * reflection),
        reflex_width=float(patient.uniform(0.26, 0.42)),
        haemorrhage=float(own.uniform(0.35, 0.95)),
        vessel_blur=float(own.uniform(0.001, 0.003)),
        mottling=float(np.exp(patient.normal(0, 0.5))),
        choroid_cells=(int(patient.integers(36, 60)), int(patient.integers(26, 44))),
        choroid=float(patient.uniform(0.25, 0.75)),
        lutein=float(patient.uniform(0.25, 1.35)),
        sheen=float(np.exp(patient.normal(-0.1, 0.6))),
        disc_cover=float(patient.uniform(0.80, 0.96)),
        disc_edge=float(own.uniform(0.08, 0.24)),
        disc_tint=_rgb(np.exp(patient.normal((0.02, -0.05, -0.28), (0.05, 0.10, 0.40))).clip(0.3, (1.05, 1.0, 0.85))),
        texture=_rgb(np.exp(patient.normal((-4.6, -4.6, -4.1), 0.5) + patient.normal(0, 0.3))),
        shine=shine,
        foveal_reflex=float(patient.uniform(0.1, 0.9)) if patient.random() < 0.35 else 0.0,
    )
