"""The permanent features of an eye, and the scene that the painters share: exam, labels, view, and the image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from synfundus.phantoms.canvas import FloatArray, Mask, Rgb, View
from synfundus.phantoms.clinic import Exam
from synfundus.phantoms.tissue import Tissue
from synfundus.seeding import keyed_generator

Variety = Literal["demo", "wide"]

# Fundus colours at full light, from blond to heavily pigmented (sRGB, 0..1).
_PIGMENTATIONS = np.array(
    [
        [0.90, 0.47, 0.20],
        [0.84, 0.37, 0.19],
        [0.66, 0.36, 0.18],
        [0.85, 0.53, 0.25],
        [0.53, 0.29, 0.15],
        [0.90, 0.55, 0.34],
    ]
)
_PIGMENTATION_WEIGHTS = np.array([0.28, 0.20, 0.17, 0.14, 0.09, 0.12])

_DISC_DIAMETERS_TO_FOVEA, _USUAL = NormalDist(2.65, 0.29), (0.005, 0.995)
"""Distance of fovea and disc centre over the disc's diameter, of patients; their eyes differ by 3 %.

Source: Jonas et al. 2015, "Optic disc - fovea distance, axial length and parapapillary zones. The Beijing Eye Study
2011" (PMC4577126): 2.65 +- 0.30.
"""


@dataclass(frozen=True)
class EyeAnatomy:
    """Permanent features of one eye, in eye coordinates of a right eye.

    Attributes:
        pigmentation: Fundus colour at full light (sRGB, 0..1).
        disc_center: Centre of the optic disc.
        disc_axes: Half axes of the disc (x, y).
        disc_tilt: Rotation of the disc's axes in radians.
        cup_ratio: Cup-to-disc ratio of the healthy disc.
        fovea_center: Centre of the fovea.
        calibre: Width of the widest vein at the disc.
        tortuosity: Relative waviness of the vessels.
        youth: 0 old .. 1 young: nerve fibre sheen, foveal reflex.
        tessellation: Visibility of choroidal vessels without disease.
    """

    pigmentation: Rgb
    disc_center: tuple[float, float]
    disc_axes: tuple[float, float]
    disc_tilt: float
    cup_ratio: float
    fovea_center: tuple[float, float]
    calibre: float
    tortuosity: float
    youth: float
    tessellation: float


def anatomy_of(seed: int, exam: Exam) -> EyeAnatomy:
    """Return the anatomy of the photographed eye: that of the patient, with small deviations of the eye."""
    patient = keyed_generator(seed, "phantom.anatomy.patient", index=exam.patient)
    own = keyed_generator(seed, "phantom.anatomy.eye", index=exam.eye)
    first, second = patient.choice(len(_PIGMENTATIONS), size=2, p=_PIGMENTATION_WEIGHTS)
    blend = patient.uniform(0, 0.6)
    color = _PIGMENTATIONS[first] * (1 - blend) + _PIGMENTATIONS[second] * blend
    color = color * np.exp(patient.normal(0, 0.05, 3) + patient.normal(0, 0.05))
    diameters = _DISC_DIAMETERS_TO_FOVEA.inv_cdf(float(np.clip(patient.uniform(0, 1), *_USUAL)))
    diameters *= math.exp(own.normal(0, 0.03))
    oval = patient.uniform(1.04, 1.14)
    distance = patient.uniform(0.63, 0.70) + own.normal(0, 0.008)
    disc = (0.47 + own.normal(0, 0.012), -0.03 + own.normal(0, 0.015))
    fovea = (disc[0] - distance, disc[1] + patient.uniform(0.05, 0.11) + own.normal(0, 0.01))
    size = math.dist(disc, fovea) / diameters / (1 + oval)
    youth = float(patient.uniform(0, 1))
    return EyeAnatomy(
        pigmentation=(float(color[0]), float(color[1]), float(color[2])),
        disc_center=disc,
        disc_axes=(size, size * oval),
        disc_tilt=float(own.normal(0, 0.15)),
        cup_ratio=float(np.clip(patient.normal(0.34, 0.07) + own.normal(0, 0.02), 0.18, 0.46)),
        fovea_center=fovea,
        calibre=float(patient.uniform(0.030, 0.036)),
        tortuosity=float(patient.uniform(0.6, 1.5)),
        youth=youth,
        tessellation=float(patient.uniform(0, 0.22) + 0.12 * (1 - youth)),
    )


@dataclass
class Scene:
    """State shared by the painters of one photograph.

    Attributes:
        seed: Seed of the clinic.
        exam: The photograph.
        labels: Its true labels.
        eye: Permanent anatomy.
        view: Mapping from eye to pixels.
        x: Eye coordinate x of every pixel ``[h, w]``.
        y: Eye coordinate y of every pixel ``[h, w]``.
        image: Colour ``[3, h, w]``, 0..1.
        variety: ``demo``, or ``wide``: as different as photographs of many clinics.
        tissue: Colour and contrast of the tissues.
        blood: Layers of blood and pigment, not yet applied.
    """

    seed: int
    exam: Exam
    labels: Mapping[str, int]
    eye: EyeAnatomy
    view: View
    x: FloatArray
    y: FloatArray
    image: FloatArray
    variety: Variety = "demo"
    tissue: Tissue = field(default_factory=Tissue)
    blood: list[tuple[FloatArray, Rgb]] = field(default_factory=list)

    def has(self, label: str) -> bool:
        """Return whether a 0/1 label is set."""
        return bool(self.labels[label])

    def eye_stream(self, purpose: str) -> np.random.Generator:
        """Return the stream of the eye for a purpose: the same at every visit, independent of other labels."""
        return keyed_generator(self.seed, f"phantom.{purpose}", index=self.exam.eye)

    def photograph_stream(self, purpose: str) -> np.random.Generator:
        """Return the stream of this photograph for a purpose."""
        return keyed_generator(self.seed, f"phantom.{purpose}", index=self.exam.index)

    def bleed(self, density: FloatArray, color: Rgb) -> None:
        """Add blood outside the vessels, as dense as the eye's haemorrhages are."""
        share = self.tissue.haemorrhage
        self.blood.append((density, (color[0] * share, color[1] * share, color[2] * share)))

    def grown(self, count: float) -> int:
        """Return a number of lesions at this visit: it grows by a fifth per visit."""
        return round(count * (1 + 0.2 * self.exam.visit))

    def offsets(self, center: tuple[float, float], turn: float = 0.0) -> tuple[FloatArray, FloatArray]:
        """Return (x, y) of every pixel from ``center``, each ``[h, w]``, along axes turned by ``turn`` radians."""
        dx, dy = self.x - np.float32(center[0]), self.y - np.float32(center[1])
        if turn == 0:
            return dx, dy
        cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
        return cos * dx + sin * dy, cos * dy - sin * dx

    def mask(self) -> Mask:
        """Return an empty coverage mask of this view."""
        return Mask(self.view)

    def cover(self, outlines: NDArray[np.floating], fills: NDArray[np.floating] | float, *, blur: float) -> FloatArray:
        """Return the coverage ``[h, w]`` in 0..1 of outlines ``[n, k, 2]``, blurred by ``blur`` field-of-view radii."""
        mask = self.mask()
        mask.polygons(outlines, fills)
        return mask.finish(blur=blur)
