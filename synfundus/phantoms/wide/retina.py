"""What variety ``wide`` adds to the retina: fine texture, and the patchy reflections of young eyes."""

from __future__ import annotations

import numpy as np

from synfundus.phantoms.canvas import Rgb, absorb, blend, smoothstep
from synfundus.phantoms.circulation import changed_tree
from synfundus.phantoms.scene import Scene

_PIGMENT: Rgb = (0.55, 1.0, 0.9)
_GRAINS = (60, 120, 240)


def paint_texture(scene: Scene) -> None:
    """Add mottling at three grains, as far as the picture can show them."""
    stream = scene.eye_stream("wide.texture")
    density = np.zeros_like(scene.x)
    for cells, strength in zip(_GRAINS, scene.tissue.texture, strict=True):
        if cells * 1.2 < scene.view.size_px:
            density += scene.view.noise(stream, cells=cells, aspect=1.15) * np.float32(strength)
    absorb(scene.image, [(density, _PIGMENT)])


def paint_reflections(scene: Scene) -> None:
    """Add patches of reflected light beside the large vessels, as the inner surface of a young retina gives them."""
    strength = scene.tissue.shine
    if strength < 0.05:
        return
    stream = scene.eye_stream("wide.shine")
    trunks = changed_tree(scene)[0].select(slice(0, 8))
    beside = scene.mask()
    beside.polygons(trunks.outlines(7.0), 1.0)
    patches = smoothstep(0.0, 1.6, scene.view.noise(stream, cells=44, aspect=1.4))
    glow = beside.finish(blur=0.03) * patches * (1 + 0.4 * scene.view.noise(stream, cells=110))
    blend(scene.image, np.clip(glow * np.float32(0.5 * strength), 0, 0.7), (0.98, 0.88, 0.80))
