"""Vessel detail as verbs report it: of reconstructions beside PSNR, and of generated images beside photographs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from synfundus.models.pixels import pixels_to_tensor
from synfundus.models.vessel_metrics import (
    BAND_NAMES,
    VESSEL_BAND,
    band_energy_ratio,
    band_power,
    vessel_correlation,
    vessel_energy_ratio,
)

VESSEL_ENERGY = f"energy_{BAND_NAMES[VESSEL_BAND]}"
VESSEL_FIGURES = ("vessel_correlation", "vessel_images", *(f"energy_{name}" for name in BAND_NAMES))
"""What `VesselDetail.figures` may hold."""
_OCTAVE = f"{BAND_NAMES[VESSEL_BAND].replace('_', ' to ')} cycles a diameter"
_MOST_IMAGES = 128
"""More images hardly change a mean, and cost time at every validation."""
_LOST_BELOW = 0.5
_BATCH = 16


class VesselDetail:
    """Vessel detail of reconstructions, gathered in batches from the first `_MOST_IMAGES`."""

    def __init__(self) -> None:
        self._correlations: list[Tensor] = []
        self._ratios: list[Tensor] = []

    def add(self, restored: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> None:
        """Add images and their reconstructions, in [-1, 1]."""
        left = _MOST_IMAGES - sum(map(len, self._correlations))
        restored, target = restored[:left], target[:left]
        if len(target):
            self._correlations.append(vessel_correlation(restored, target).cpu())
            self._ratios.append(band_energy_ratio(restored, target).cpu())

    def figures(self) -> dict[str, float]:
        """Return ``vessel_correlation`` (mean), ``vessel_images`` behind it, and an ``energy_…`` an octave (median).

        A figure that no image has is left out.
        """
        if not self._correlations:
            return {"vessel_images": 0}
        correlation, ratios = torch.cat(self._correlations), torch.cat(self._ratios)
        energy = zip(BAND_NAMES, ratios.nanmedian(dim=0).values.tolist(), strict=True)
        found = {"vessel_correlation": float(correlation.nanmean()), **{f"energy_{name}": one for name, one in energy}}
        counted = {name: one for name, one in found.items() if math.isfinite(one)}
        return {**counted, "vessel_images": int(correlation.isfinite().sum())}


def describe_vessels(figures: Mapping[str, Any]) -> str:
    """Return the vessel detail of reconstructions in a few words."""
    if "vessel_correlation" not in figures:
        return "vessels not judged (no image shows any)"
    energy = f", energy {figures[VESSEL_ENERGY]:.2f}" if VESSEL_ENERGY in figures else ""
    return f"vessel correlation {figures['vessel_correlation']:.2f}{energy} (n {figures['vessel_images']})"


def lost_vessels(figures: Mapping[str, Any]) -> str:
    """Return a warning where reconstructions keep too little of the vessels; empty otherwise."""
    correlation = figures.get("vessel_correlation", 1.0)
    if correlation >= _LOST_BELOW:
        return ""
    return (
        f"vessels are lost in reconstructions: their correlation is {correlation:.2f}, below {_LOST_BELOW}; PSNR does "
        "not see them. More latent channels, a smaller downsampling factor or longer training keep more"
    )


def energy_beside(images: NDArray[np.uint8], photographs: NDArray[np.uint8]) -> float | None:
    """Return the median energy of images in the vessels' octave over that of photographs; None where there is none.

    Args:
        images: ``[n, s, s, 3]``, of which the first `_MOST_IMAGES` are used.
        photographs: ``[m, s, s, 3]``, likewise.
    """
    ratio = vessel_energy_ratio(_band_powers(images), _band_powers(photographs))
    return ratio if math.isfinite(ratio) else None


def _band_powers(pixels: NDArray[np.uint8]) -> Float[Tensor, "n 4"]:
    chosen = pixels[:_MOST_IMAGES]
    return torch.cat([band_power(pixels_to_tensor(chosen[at : at + _BATCH])) for at in range(0, len(chosen), _BATCH)])


def vessel_table(
    reconstructed: Mapping[str, Any], generated_energy: float | None
) -> tuple[str, list[str], list[list[str]]]:
    """Return title, head and rows of a table: what is left of vessels in reconstructions and in generated images.

    Args:
        reconstructed: Figures of `VesselDetail`.
        generated_energy: What `energy_beside` returned for generated images.
    """
    title = f"vessel detail beside photographs (energy at {_OCTAVE})"
    rows = [
        ["reconstructed", _figure(reconstructed.get("vessel_correlation")), _figure(reconstructed.get(VESSEL_ENERGY))],
        ["generated", "-", _figure(generated_energy)],
    ]
    return title, ["images", "correlation", "energy"], rows


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
