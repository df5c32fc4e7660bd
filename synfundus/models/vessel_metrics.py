"""Vessel detail of an image: a map of its vessels, how well a reconstruction keeps it, and energy by spatial frequency.

PSNR hardly sees vessels: they are a few per cent of the pixels and differ by a few per cent from what is around them.
All lengths are shares of the image's edge, which `prepare` makes the diameter of the field of view, so that a figure
means the same at 128 px and at 1,024 px; larger images are reduced to 256 px first.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

_SIGMAS = (0.0055, 0.0085)
"""Scales of the line filter. The widest veins of a photograph of 45 degrees are .012 of its diameter, arteries .008."""
_MIN_SIGMA_PX = 0.7
_BACKGROUND_SIGMA = 0.03
_REACH = 0.05
"""How far inside the field of view a pixel must lie: nothing outside reaches the filter there."""
_LARGEST_PX = 256
_LIT_SHARE, _LIT_PERCENTILE = 0.25, 0.9
_MIN_LIT = 0.04
_MIN_AREA = 0.1
"""Smallest share of an image's pixels that a figure is taken from."""
_VESSEL_PERCENTILE = 0.95
_MIN_CONTRAST = 0.01
"""Response that the 95th percentile of a map must reach: below, there are no vessels to keep."""
_LINE_SIGMA, _LINE_LENGTH, _DIRECTIONS = 0.0085, 0.04, 18
"""Widths across and along a line, and the directions it is sought in, of `line_excess`."""
_BANDS = (4, 8, 16, 32, 64)
"""Edges of the octaves, in cycles per diameter."""
BAND_NAMES = tuple(f"{low}_{high}" for low, high in pairwise(_BANDS))
VESSEL_BAND = 2
"""The octave that holds most of the vessels' energy."""


def field_of_view(pixels: Float[Tensor, "b 3 h w"]) -> Bool[Tensor, "b _h _w"]:
    """Return where an image shows the eye, at least `_REACH` from the rim; of at most 256 px, as all maps here.

    Lit is what reaches a quarter of a bright pixel of the same image; what a structure smaller than twice the reach
    darkens is filled.
    """
    bright = _in_unit_range(pixels).amax(dim=1, keepdim=True)
    level = bright.flatten(1).quantile(_LIT_PERCENTILE, dim=1).mul(_LIT_SHARE).clamp(min=_MIN_LIT)
    lit = (bright >= level[:, None, None, None]).float()
    reach = max(1, round(_REACH * lit.shape[-1]))
    closed = _dilate(functional.pad(lit, (reach,) * 4), reach)
    return _erode(closed, 2 * reach)[:, 0, reach:-reach, reach:-reach] > 0.5


def _dilate(mask: Float[Tensor, "b 1 h w"], radius: int) -> Float[Tensor, "b 1 h w"]:
    rows = functional.max_pool2d(mask, (2 * radius + 1, 1), stride=1, padding=(radius, 0))
    return functional.max_pool2d(rows, (1, 2 * radius + 1), stride=1, padding=(0, radius))


def _erode(mask: Float[Tensor, "b 1 h w"], radius: int) -> Float[Tensor, "b 1 h w"]:
    """Erode; what lies beyond the image counts as outside."""
    outside = functional.pad(1 - mask, (radius,) * 4, value=1.0)
    return 1 - _dilate(outside, radius)[..., radius:-radius, radius:-radius]


def vessel_map(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b _h _w"]:
    """Return the contrast of dark lines in the green channel, as a share of the brightness around them.

    A line has brighter pixels on both sides: the response is the weaker of the two slopes, so that edges (of the optic
    disc, of the field of view) have none. Across the line is where the Hessian says.

    Source: Koller et al. 1995, "Multiscale detection of curvilinear structures in 2-D and 3-D image data" (two-sided
    response); Frangi et al. 1998, "Multiscale vessel enhancement filtering", Eq. 11 (line against blob).
    """
    green, background = _green_and_background(pixels)
    size = green.shape[-1]
    responses = [_line_response(green, max(sigma * size, _MIN_SIGMA_PX)) for sigma in _SIGMAS]
    return torch.stack(responses).amax(dim=0) / background


def _line_response(image: Float[Tensor, "b h w"], sigma: float) -> Float[Tensor, "b h w"]:
    smooth, first, second = _kernels(sigma, image)
    along_x, along_y = _filter(image, smooth, first), _filter(image, first, smooth)
    xx, yy, xy = _filter(image, smooth, second), _filter(image, second, smooth), _filter(image, first, first)
    middle, spread = (xx + yy) / 2, torch.hypot((xx - yy) / 2, xy)
    largest, other = middle + spread, middle - spread
    angle = 0.5 * torch.atan2(2 * xy, xx - yy)
    across = torch.stack([angle.cos(), angle.sin()], dim=-1)
    gradient = torch.stack([along_x, along_y], dim=1)
    slopes = [side * _sample(gradient, side * sigma * across, across) for side in (1.0, -1.0)]
    line = 1 - (other.abs() / largest.clamp(min=1e-9)).clamp(max=1)
    return sigma * torch.minimum(*slopes).clamp(min=0) * line


def _sample(
    gradient: Float[Tensor, "b 2 h w"], offsets: Float[Tensor, "b h w 2"], across: Float[Tensor, "b h w 2"]
) -> Float[Tensor, "b h w"]:
    """Return the slope along ``across`` at each pixel moved by its offset (x, y)."""
    height, width = gradient.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=gradient.device), torch.arange(width, device=gradient.device), indexing="ij"
    )
    places = torch.stack([x, y], dim=-1) + offsets
    scale = torch.tensor([2 / (width - 1), 2 / (height - 1)], device=gradient.device)
    moved = functional.grid_sample(gradient, places * scale - 1, padding_mode="border", align_corners=True)
    return (moved.movedim(1, -1) * across).sum(dim=-1)


def _kernels(sigma: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    radius = math.ceil(4 * sigma)
    x = torch.arange(-radius, radius + 1, dtype=torch.float64)
    smooth = torch.exp(-0.5 * (x / sigma) ** 2)
    smooth /= smooth.sum()
    first = x * smooth
    first /= (x * first).sum()
    second = (x**2 / sigma**2 - 1) * smooth
    second -= second.mean()
    second *= 2 / (x**2 * second).sum()
    return smooth.to(like), first.to(like), second.to(like)


def _filter(image: Float[Tensor, "b h w"], rows: Tensor, columns: Tensor) -> Float[Tensor, "b h w"]:
    radius = len(rows) // 2
    padded = functional.pad(image[:, None], (radius,) * 4, mode="replicate")
    down = functional.conv2d(padded, rows[None, None, :, None])
    return functional.conv2d(down, columns[None, None, None, :])[:, 0]


def _in_unit_range(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 _h _w"]:
    unit = (pixels.float().clamp(-1, 1) + 1) / 2
    height, width = unit.shape[-2:]
    if max(height, width) > _LARGEST_PX:
        ratio = _LARGEST_PX / max(height, width)
        unit = functional.adaptive_avg_pool2d(unit, (round(height * ratio), round(width * ratio)))
    return unit


def _green_and_background(
    pixels: Float[Tensor, "b 3 h w"],
) -> tuple[Float[Tensor, "b _h _w"], Float[Tensor, "b _h _w"]]:
    """Return the green channel and its brightness around each pixel."""
    green = _in_unit_range(pixels)[:, 1]
    smooth, _, _ = _kernels(_BACKGROUND_SIGMA * green.shape[-1], green)
    return green, _filter(green, smooth, smooth).clamp(min=_MIN_LIT)


@torch.no_grad()
def vessel_correlation(
    reconstruction: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b"]:
    """Return the Pearson correlation of the vessel maps of each pair inside the reference's field of view.

    It is 1 for equal images, near 0 where no vessel is left. Contrast and brightness as a whole do not count. It is nan
    where the reference has no visible vessel or hardly a field of view: there is nothing to keep.

    Args:
        reconstruction: The reconstructed images, in [-1, 1].
        reference: The original images, in [-1, 1].
    """
    inside = field_of_view(reference)
    kept, wanted = vessel_map(reconstruction), vessel_map(reference)
    return torch.stack([_correlation(*one) for one in zip(kept, wanted, inside, strict=True)])


def _correlation(kept: Float[Tensor, "h w"], wanted: Float[Tensor, "h w"], inside: Bool[Tensor, "h w"]) -> Tensor:
    if float(inside.float().mean()) < _MIN_AREA:
        return kept.new_full((), math.nan)
    kept, wanted = kept[inside].double(), wanted[inside].double()
    if float(wanted.quantile(_VESSEL_PERCENTILE)) < _MIN_CONTRAST:
        return kept.new_full((), math.nan).float()
    kept, wanted = kept - kept.mean(), wanted - wanted.mean()
    product: Tensor = (kept * wanted).sum() / (kept.norm() * wanted.norm()).clamp(min=1e-12)
    return product.float()


@torch.no_grad()
def band_power(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 4"]:
    """Return the power of the green channel's local contrast in each octave of `BAND_NAMES`, a mean over its area.

    The field of view is faded out towards its rim, which has no power then. nan where there is hardly one,
    and in octaves that the image is too small for.
    """
    return _band_power(pixels, field_of_view(pixels))


def _band_power(pixels: Float[Tensor, "b 3 h w"], inside: Bool[Tensor, "b _h _w"]) -> Float[Tensor, "b 4"]:
    green, background = _green_and_background(pixels)
    fade, _, _ = _kernels(_REACH / 3 * green.shape[-1], green)
    window = _filter(inside.float(), fade, fade)
    area = window.square().sum(dim=(1, 2))
    spectrum = torch.fft.rfft2((green / background - 1) * window).abs().square()
    height, width = green.shape[-2:]
    y = torch.fft.fftfreq(height, 1 / height, device=green.device)[:, None]
    x = torch.fft.rfftfreq(width, 1 / width, device=green.device)[None, :]
    radius = torch.hypot(x, y)
    twice = torch.where((x == 0) | (2 * x == width), 1.0, 2.0)
    power = torch.stack(
        [(spectrum * twice * ((radius >= low) & (radius < high))).sum(dim=(1, 2)) for low, high in pairwise(_BANDS)],
        dim=1,
    )
    power = power / (area * height * width).clamp(min=1e-12)[:, None]
    resolved = torch.tensor([high <= min(height, width) / 2 for high in _BANDS[1:]], device=power.device)
    shown = inside.float().mean(dim=(1, 2)) >= _MIN_AREA
    return torch.where(shown[:, None] & resolved, power, math.nan)


@torch.no_grad()
def band_energy_ratio(
    reconstruction: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b 4"]:
    """Return the power of each reconstruction over that of its reference, by octave, in the latter's field of view."""
    inside = field_of_view(reference)
    return _band_power(reconstruction, inside) / _band_power(reference, inside).clamp(min=1e-12)


def vessel_energy_ratio(images: Float[Tensor, "n 4"], photographs: Float[Tensor, "m 4"]) -> float:
    """Return the median energy of a set in the vessels' octave over that of another set, from their `band_power`.

    1 means as much fine structure as in photographs, whatever it is: noise counts too. nan where a set shows none.
    """
    ours, theirs = (float(power[:, VESSEL_BAND].nanmedian()) for power in (images, photographs))
    return ours / theirs if theirs > 0 else math.nan


@torch.no_grad()
def line_excess(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Return how much stronger the long dark lines of each image are than its long bright ones; nan without an eye.

    Vessels are dark lines; noise and mottling have as many bright ones, so that they give nearly 0 whatever their
    energy. Of real photographs the median is .010 of the brightness; with their phases drawn anew, the same energy at
    every frequency and no line, it is a seventeenth of that (docs/LOG.md, entry 32).

    Source: as `vessel_map`, the weaker of the slopes on both sides; along the line as oriented matched filters have it
    (Chaudhuri et al. 1989, "Detection of blood vessels in retinal images using two-dimensional matched filters").
    """
    green, background = _green_and_background(pixels)
    kernels = _line_kernels(green)
    reach = kernels.shape[-1] // 2
    padded = functional.pad((green / background - 1)[:, None], (reach,) * 4, mode="replicate")
    slopes = functional.conv2d(padded, kernels).unflatten(1, (_DIRECTIONS, 2))
    dark, bright = slopes.amin(dim=2).amax(dim=1), (-slopes).amin(dim=2).amax(dim=1)
    return torch.stack(
        [
            one[inside].quantile(_VESSEL_PERCENTILE).clamp(min=0)
            - other[inside].quantile(_VESSEL_PERCENTILE).clamp(min=0)
            if float(inside.float().mean()) >= _MIN_AREA
            else one.new_full((), math.nan)
            for one, other, inside in zip(dark, bright, field_of_view(pixels), strict=True)
        ]
    )


def _line_kernels(image: Float[Tensor, "b h w"]) -> Tensor:
    """Return the slopes towards a line's middle from both sides, ``[2 n, 1, k, k]``: pairs, by direction."""
    size = image.shape[-1]
    sigma, length = max(_LINE_SIGMA * size, _MIN_SIGMA_PX), _LINE_LENGTH * size
    radius = math.ceil(3 * max(sigma, length) + sigma)
    y, x = torch.meshgrid(*[torch.arange(-radius, radius + 1, dtype=torch.float64)] * 2, indexing="ij")
    kernels = []
    for angle in torch.arange(_DIRECTIONS) * math.pi / _DIRECTIONS:
        across, along = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
        for side in (1.0, -1.0):
            beside = across - side * sigma
            kernel = beside * torch.exp(-0.5 * ((beside / sigma) ** 2 + (along / length) ** 2))
            kernel -= kernel.mean()
            kernels.append(side * sigma * kernel / (beside * kernel).sum())
    return torch.stack(kernels)[:, None].to(image)


def vessel_line_ratio(images: Float[Tensor, "n"], photographs: Float[Tensor, "m"]) -> float:
    """Return the median `line_excess` of a set over that of another set; nan where the latter has none."""
    ours, theirs = float(images.nanmedian()), float(photographs.nanmedian())
    return ours / theirs if theirs > 0 else math.nan
