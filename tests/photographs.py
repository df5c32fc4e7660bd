"""Real photographs for tests; where they come from stands beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path(__file__).with_name("fixtures") / "photographs"


def photograph(name: str) -> NDArray[np.uint8]:
    """Return the pixels of a photograph, ``(H, W, 3)`` or ``(H, W)`` of one without colour."""
    with Image.open(FOLDER / f"{name}.jpg") as image:
        return np.array(image)


def retina() -> NDArray[np.uint8]:
    """Return the pixels of a real fundus photograph, ``(1411, 1411, 3)``."""
    return photograph("retina")
