"""Vessel detail as verbs report it: of reconstructions beside PSNR, and of generated images beside photographs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    line_excess,
    vessel_correlation,
    vessel_energy_ratio,
    vessel_line_ratio,
)

VESSEL_ENERGY = f"energy_{BAND_NAMES[VESSEL_BAND]}"
VESSEL_FIGURES = ("vessel_correlation", "vessel_images", *(f"energy_{name}" for name in BAND_NAMES))
"""What `VesselDetail.figures` may hold."""
_OCTAVE = f"{BAND_NAMES[VESSEL_BAND].replace('_', ' to ')} cycles a diameter"
_MOST_IMAGES = 128
"""More images hardly change a mean, and cost time at every validation."""
_LOST_BELOW = 0.5
_LIKELY_ENERGY = (0.02, 3.0)
"""Energy beside photographs that generated images must lie within. Measured: .09 to .85 of demos of the usual length
(docs/LOG.md, entries 31 and 32), .85 to 1.02 of other photographs, 79 of the static after 144 images of training; a
flat image has none."""
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


@dataclass(frozen=True)
class VesselsBeside:
    """Vessels of generated images relative to photographs, by the medians of both; None where there is no figure.

    Attributes:
        energy: Energy in the vessels' octave: any fine structure counts; 0 where images show no eye and photographs do.
        lines: Excess of long dark lines over bright ones: noise and mottling do not count.
    """

    energy: float | None = None
    lines: float | None = None


def vessels_beside(images: NDArray[np.uint8], photographs: NDArray[np.uint8]) -> VesselsBeside:
    """Return the vessels of images relative to photographs.

    Args:
        images: ``[n, s, s, 3]``, of which the first `_MOST_IMAGES` are used.
        photographs: ``[m, s, s, 3]``, likewise.
    """
    ours, theirs = _figures(images, band_power), _figures(photographs, band_power)
    energy = vessel_energy_ratio(ours.nan_to_num(0.0) if ours.isnan().all() else ours, theirs)
    lines = vessel_line_ratio(_figures(images, line_excess), _figures(photographs, line_excess))
    return VesselsBeside(*(one if math.isfinite(one) else None for one in (energy, lines)))


def _figures(pixels: NDArray[np.uint8], figure: Callable[[Tensor], Tensor]) -> Tensor:
    chosen = pixels[:_MOST_IMAGES]
    return torch.cat([figure(pixels_to_tensor(chosen[at : at + _BATCH])) for at in range(0, len(chosen), _BATCH)])


def unlike_photographs(generated: VesselsBeside) -> str:
    """Return a warning where generated images cannot be fundus photographs: noise, or nothing; empty otherwise.

    Such images have labels in no sense, and a judge answers all the same. Without a figure there is none to tell by.
    """
    least, most = _LIKELY_ENERGY
    if generated.energy is None or least <= generated.energy <= most:
        return ""
    much = "noise, not detail" if generated.energy > most else "hardly anything is in them"
    return (
        f"these images do not look like fundus photographs: their energy at {_OCTAVE} is {generated.energy:.2f} times "
        f"that of photographs ({least:g} to {most:g} is usual): {much}. The training was too short, or something "
        "in it went wrong; figures of their labels would say nothing, and are withheld"
    )


def missing_vessels(generated: VesselsBeside) -> str:
    """Return a warning where generated images show too few vessels; empty otherwise."""
    if generated.lines is None or generated.lines >= _LOST_BELOW or unlike_photographs(generated):
        return ""
    return (
        f"generated images show few vessels: their lines are {max(generated.lines, 0.0):.2f} of those in photographs, "
        f"below {_LOST_BELOW}. Longer training shows more, if reconstructions keep them"
    )


def vessel_table(reconstructed: Mapping[str, Any], generated: VesselsBeside) -> tuple[str, list[str], list[list[str]]]:
    """Return title, head and rows of a table: what is left of vessels in reconstructions and in generated images.

    Args:
        reconstructed: Figures of `VesselDetail`.
        generated: Of generated images.
    """
    title = f"vessel detail beside photographs (energy at {_OCTAVE}; lines: dark over bright)"
    rows = [
        [
            "reconstructed",
            *(_figure(reconstructed.get(name)) for name in ("vessel_correlation", VESSEL_ENERGY)),
            "-",
        ],
        ["generated", "-", _figure(generated.energy), _figure(generated.lines)],
    ]
    return title, ["images", "correlation", "energy", "lines"], rows


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
