"""How the tissues of an eye look in a photograph."""

from __future__ import annotations

from dataclasses import dataclass

from synfundus.phantoms.canvas import Rgb


@dataclass(frozen=True)
class Tissue:
    """Colour and contrast of one eye's tissues; the defaults are those of variety ``demo``.

    Attributes:
        venous: Absorption by the widest vein, per colour channel.
        arterial: Absorption by the widest artery.
        reflex: Absorption at the middle of arteries; negative: light is reflected.
        reflex_width: Width of the reflex over that of the artery.
        haemorrhage: Density of blood outside the vessels.
        vessel_blur: Scatter of light around vessels, in field-of-view radii.
        mottling: Contrast of the pigment's mottling.
        choroid_cells: Coarseness of the two networks of choroidal vessels, in grid cells across the field.
        choroid: Contrast of choroidal vessels where they can be seen.
        lutein: Darkness of the macula.
        sheen: Strength of the nerve fibres' sheen.
        disc_cover: Opacity of the disc.
        disc_edge: Softness of the disc's edge, in disc radii.
        disc_tint: Colour of the disc, relative to a pale one.
        texture: Contrast of fine mottling at three grains, from coarse to fine.
        foveal_reflex: Strength of the reflex of the fovea in young eyes.
        shine: Strength of the patchy reflections beside the vessels of young eyes.
    """

    venous: Rgb = (0.56, 1.08, 0.95)
    arterial: Rgb = (0.20, 0.80, 0.78)
    reflex: Rgb = (-0.14, -0.52, -0.46)
    reflex_width: float = 0.36
    haemorrhage: float = 1.0
    vessel_blur: float = 0.002
    mottling: float = 1.0
    choroid_cells: tuple[int, int] = (29, 21)
    choroid: float = 1.0
    lutein: float = 1.0
    sheen: float = 1.0
    disc_cover: float = 0.93
    disc_edge: float = 0.09
    disc_tint: Rgb = (1.0, 1.0, 1.0)
    texture: tuple[float, float, float] = (0.0, 0.0, 0.0)
    foveal_reflex: float = 1.0
    shine: float = 0.0
