"""The scene that the painters share: exam, labels, anatomy, view, and the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from synfundus.phantoms.canvas import FloatArray, Mask, Rgb, View
from synfundus.phantoms.clinic import Exam
from synfundus.phantoms.eye import EyeAnatomy
from synfundus.seeding import keyed_generator


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

    def grown(self, count: float) -> int:
        """Return a number of lesions at this visit: it grows by a fifth per visit."""
        return round(count * (1 + 0.2 * self.exam.visit))

    def mask(self) -> Mask:
        """Return an empty coverage mask of this view."""
        return Mask(self.view)
