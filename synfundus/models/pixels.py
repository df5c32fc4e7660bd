"""Conversion between stored pixels (uint8, channels last) and network tensors (float, channels first)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor


def pixels_to_tensor(pixels: NDArray[np.uint8] | Tensor) -> Float[Tensor, "b 3 h w"]:
    """Turn uint8 ``[b, h, w, 3]`` into float32 in [-1, 1]."""
    stored = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.require(pixels, requirements=("C", "W")))
    return stored.permute(0, 3, 1, 2).to(torch.float32, copy=True).div_(127.5).sub_(1.0)


def tensor_to_pixels(images: Float[Tensor, "b 3 h w"]) -> NDArray[np.uint8]:
    """Turn floats, clipped to [-1, 1], into uint8 ``[b, h, w, 3]``; inverse of `pixels_to_tensor`."""
    scaled = ((images.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    pixels: NDArray[np.uint8] = scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels
