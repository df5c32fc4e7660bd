"""Metrics of a reconstruction: PSNR and a differentiable SSIM."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from synfundus.errors import ConfigError

_SIGMA_PX = 1.5
_RADIUS_PX = 5
_K1, _K2 = 0.01, 0.03


def psnr(
    reconstruction: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"], *, data_range: float
) -> Float[Tensor, "b"]:
    """Return the peak signal-to-noise ratio of each image in decibels; infinite for equal images.

    Args:
        reconstruction: The reconstructed images.
        reference: The original images.
        data_range: Largest minus smallest possible value: 2 for pixels in [-1, 1].
    """
    error = (reconstruction.double() - reference.double()).square().flatten(1).mean(dim=1)
    return (10.0 * torch.log10(data_range**2 / error)).float()


def ssim(
    reconstruction: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"], *, data_range: float
) -> Float[Tensor, "b"]:
    """Return the structural similarity of each image, mean over positions and channels; 1 for equal images.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", Eq. 13 with
    its 11 px Gaussian window of sigma 1.5.
    """
    return ssim_map(reconstruction, reference, data_range=data_range).flatten(1).mean(dim=1)


def ssim_map(
    reconstruction: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"], *, data_range: float
) -> Float[Tensor, "b 3 _h _w"]:
    """Return SSIM at each position whose window lies inside the image, 5 px from every edge; differentiable.

    Computed in float32 under autocast too: variances are differences of nearly equal numbers.
    """
    with torch.autocast(reconstruction.device.type, enabled=False):
        x, y = reconstruction.float(), reference.float()
        batch = x.shape[0]
        means = _blur(torch.cat([x, y, x * x, y * y, x * y]))
        mean_x, mean_y, mean_xx, mean_yy, mean_xy = means.reshape(5, batch, *means.shape[1:]).unbind(0)
        var_x, var_y = mean_xx - mean_x.square(), mean_yy - mean_y.square()
        covariance = mean_xy - mean_x * mean_y
        c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
        luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
        structure = (2 * covariance + c2) / (var_x + var_y + c2)
        similarity: Tensor = luminance * structure
        return similarity


def _blur(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 _h _w"]:
    """Apply the Gaussian window along both axes, without padding.

    On a CPU it uses two products with banded matrices, because the backward pass of a one-channel convolution costs
    more there than the autoencoder's. On a GPU it uses sums, because products may run in TF32, too imprecise for
    variances.
    """
    if images.is_cuda:
        return _blur_by_sums(images)
    height, width = images.shape[-2:]
    blurred: Tensor = _window_matrix(height, images) @ images @ _window_matrix(width, images).T
    return blurred


def _blur_by_sums(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 _h _w"]:
    """Do the same with weighted sums of shifted images."""
    for axis in (-2, -1):
        window = _window(images.shape[axis]).tolist()
        valid = images.shape[axis] - len(window) + 1
        images = sum(weight * images.narrow(axis, tap, valid) for tap, weight in enumerate(window))
    return images


def _window(size: int) -> Float64[Tensor, "taps"]:
    """Return the Gaussian window, of sum 1; refuse images that are smaller."""
    taps = 2 * _RADIUS_PX + 1
    if size < taps:
        raise ConfigError(f"SSIM needs images of at least {taps} px, got {size}")
    offsets = torch.arange(taps, dtype=torch.float64) - _RADIUS_PX
    window = torch.exp(-0.5 * (offsets / _SIGMA_PX).square())
    return window / window.sum()


def _window_matrix(size: int, like: Tensor) -> Float[Tensor, "_valid _size"]:
    """Return the matrix whose rows are the window at each position where it fits."""
    window = _window(size)
    valid = size - len(window) + 1
    matrix = torch.zeros(valid, size, dtype=torch.float64)
    for tap, weight in enumerate(window):
        matrix.diagonal(tap)[:valid] = weight
    return matrix.to(like)
