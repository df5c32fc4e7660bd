"""The picture in the making: who is photographed, how the eye lies in the frame, the colour so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from synfundus.phantoms.canvas import FloatArray, Mask, Rgb, View
from synfundus.phantoms.clinic import Sitting
from synfundus.phantoms.eye import EyeAnatomy
from synfundus.seeding import keyed_generator


@dataclass
class Scene:
    """State shared by the painters of one photograph.

    Attributes:
        seed: The clinic's seed.
        sitting: Whose photograph it is.
        labels: What is true of it.
        eye: Lasting anatomy.
        view: Eye to pixels.
        x: Eye coordinate x of every pixel ``[h, w]``.
        y: Eye coordinate y of every pixel ``[h, w]``.
        image: Colour ``[3, h, w]``, 0..1.
        blood: Layers of blood and pigment still to be looked through.
    """

    seed: int
    sitting: Sitting
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
        """Return the eye's stream for a purpose: the same at every visit, whatever the other labels are."""
        return keyed_generator(self.seed, f"phantom.{purpose}", index=self.sitting.eye)

    def photo_stream(self, purpose: str) -> np.random.Generator:
        """Return this photograph's own stream for a purpose."""
        return keyed_generator(self.seed, f"phantom.{purpose}", index=self.sitting.index)

    def grown(self, count: float) -> int:
        """Return a number of lesions after the visits so far: a fifth more at each."""
        return round(count * (1 + 0.2 * self.sitting.visit))

    def mask(self) -> Mask:
        """Return an empty coverage mask of this view."""
        return Mask(self.view)
