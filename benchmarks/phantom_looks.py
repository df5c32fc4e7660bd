"""How like photographs the phantoms of variety ``wide`` look: distributions beside those of a folder of photographs.

``python benchmarks/phantom_looks.py FOLDER [--number 150] [--size 256] [--variety wide]`` crops photographs and
phantoms alike and prints percentiles of both: colour inside the field, darkness of vessels against what surrounds them,
contrast in octave bands, noise; and of each figure the share of photographs inside the phantoms' 2.5th to 97.5th
percentiles.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synfundus.errors import SynfundusError
from synfundus.phantoms.draw import draw_phantom
from synfundus.photographs.field_of_view import find_field_of_view
from synfundus.photographs.transforms import crop_to_field_of_view, fundus_mask

Floats = NDArray[np.float64]
_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
_SHOWN = (5, 25, 50, 75, 95)


def smoothed(values: Floats, weight: Floats, sigma: float) -> Floats:
    """Return the Gaussian mean ``[h, w]`` of ``values`` where ``weight`` is not 0."""
    side = values.shape[0]
    pad = 2 * side
    waves = np.exp(-2 * (np.pi * sigma * np.fft.fftfreq(pad)) ** 2)
    kernel = waves[:, None] * waves[None, : side + 1]

    def through(field: Floats) -> Floats:
        return np.asarray(np.fft.irfft2(np.fft.rfft2(field, (pad, pad)) * kernel, (pad, pad))[:side, :side])

    return through(values * weight) / np.maximum(through(weight), 1e-3)


def figures_of(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> dict[str, float]:
    """Return the figures of one crop uint8 ``[h, w, 3]`` whose retina is ``mask`` ``[h, w]``."""
    side, weight = pixels.shape[0], mask.astype(float)
    inner = smoothed(weight, np.ones_like(weight), side / 60) > 0.99
    colors = pixels[inner].astype(float).mean(axis=0)
    found = dict(zip(("red", "green", "blue"), colors.tolist(), strict=True))
    found |= {"green/red": colors[1] / colors[0], "blue/green": colors[2] / max(colors[1], 1e-3)}
    green = pixels[..., 1].astype(float)
    level = np.maximum(smoothed(green, weight, side / 24), 4)
    flat = green / level - 1
    bands = [flat]
    for octave in range(5):
        bands.append(smoothed(flat, weight, 0.7 * 2**octave))
        found[f"band {octave}"] = float(np.log2((bands[-2] - bands[-1])[inner].std() + 1e-5))
    # Ridges: the larger curvature of the smoothed picture is great along dark lines.
    ridge = smoothed(green / level, weight, side / 150)
    down, right = np.gradient(ridge)
    (yy, yx), (_, xx) = np.gradient(down), np.gradient(right)
    curvature = (yy + xx) / 2 + np.sqrt(((yy - xx) / 2) ** 2 + yx**2)
    clear = inner & (green < 1.25 * level)  # the disc is left out
    along = np.sort((curvature * clear)[inner])[::-1]
    for name, share in (("strong vessels", 0.02), ("vessels", 0.06), ("faint vessels", 0.15)):
        on = clear & (curvature >= along[int(share * len(along))])
        found[name] = float(-np.median((smoothed(green, weight, 0.6) / level - 1)[on]))
    fine = np.diff(green, n=2, axis=1)[:, :] / np.sqrt(6)
    found["noise"] = float(np.median(np.abs(fine[inner[:, 1:-1]])) * 1.4826)
    found["rim/centre"] = float(_by_distance(green, mask, 0.8, 0.95) / max(_by_distance(green, mask, 0.0, 0.5), 1))
    return found


def _by_distance(values: Floats, mask: NDArray[np.bool_], low: float, high: float) -> float:
    """Return the median between two distances from the centre of the crop, in its half side."""
    at = (np.arange(len(values)) + 0.5) / len(values) * 2 - 1
    radius = np.hypot(at[None], at[:, None])
    return float(np.median(values[mask & (radius >= low) & (radius < high)]))


def cropped(pixels: NDArray[np.uint8], size_px: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return the crop to the field of view and its mask."""
    circle = find_field_of_view(pixels)
    height, width = pixels.shape[:2]
    mask = fundus_mask(circle, frame_height_px=height, frame_width_px=width, image_size_px=size_px)
    return crop_to_field_of_view(pixels, circle, size_px), mask


def table(photographs: list[dict[str, float]], phantoms: list[dict[str, float]]) -> str:
    """Return percentiles of both sides, and how many photographs the phantoms cover."""
    lines = [f"{'':14}" + "".join(f"{p:>17}%" for p in _SHOWN) + "   inside  spans 5-95"]
    for name in photographs[0]:
        ours, theirs = (np.array([row[name] for row in rows]) for rows in (phantoms, photographs))
        low, high = np.percentile(ours, [2.5, 97.5])
        inside = ((theirs >= low) & (theirs <= high)).mean()
        wanted = np.percentile(theirs, [5, 95])
        pairs = zip(np.percentile(theirs, _SHOWN), np.percentile(ours, _SHOWN), strict=True)
        cells = "".join(f"{a:>9.3f}/{b:<8.3f}" for a, b in pairs)
        lines.append(f"{name:14}{cells} {inside:7.2f}  {'yes' if low <= wanted[0] and wanted[1] <= high else 'NO'}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=150)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--variety", choices=("demo", "wide"), default="wide")
    given = parser.parse_args()
    files = sorted(path for path in given.folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    files = files[:: max(1, len(files) // given.number)]
    photographs, phantoms, lost = [], [], 0
    for path in files:
        with Image.open(path) as image:
            photographs.append(figures_of(*cropped(np.asarray(image.convert("RGB")), given.size)))
    for index in range(4, 4 + 7 * given.number, 7):
        drawn = draw_phantom(seed=17, index=index, image_size_px=given.size * 9 // 8, variety=given.variety)
        if not all(drawn.true_labels[name] for name in ("is_fundus", "is_retinal_region_readable")):
            continue
        try:
            phantoms.append(figures_of(*cropped(drawn.pixels, given.size)))
        except SynfundusError:
            lost += 1
    print(f"{len(photographs)} photographs / {len(phantoms)} phantoms ({lost} refused), {given.size} px: theirs/ours")
    print(table(photographs, phantoms))


if __name__ == "__main__":
    main()
