"""Phantoms of variety ``demo`` as they are: mean colours on a grid, in golden/demo_phantoms.json.

The demo's budgets and thresholds were set on these pictures. `make golden` writes the file anew; look at the pictures
before committing a change.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from synfundus.phantoms.draw import draw_phantom

FILE = Path(__file__).with_name("demo_phantoms.json")
CASES = {"64 px": (5, 0, 64), "128 px": (5, 3, 128), "lesions": (5, 10, 128), "256 px": (11, 7, 256)}
CELLS = 8


def means(seed: int, index: int, size: int) -> list[float]:
    pixels = draw_phantom(seed=seed, index=index, image_size_px=size).pixels.astype(float)
    cells = pixels.reshape(CELLS, size // CELLS, CELLS, size // CELLS, 3).mean(axis=(1, 3))
    return [round(float(value), 2) for value in cells.ravel()]


@pytest.mark.parametrize("name", CASES)
def test_demo_phantoms_are_those_of_before(name: str) -> None:
    found = means(*CASES[name])
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("SYNFUNDUS_REGENERATE_GOLDEN"):
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in {**known, name: found}.items()]
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    np.testing.assert_allclose(found, known[name], atol=0.05)
