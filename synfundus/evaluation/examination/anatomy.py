"""Where optic discs and the fovea lie in an image: a small network that learned from drawn eyes alone.

No photograph is in its weights: `python -m benchmarks.anatomy_finder` draws eyes of variety ``wide``, plants second
discs, takes discs away, adds bright lesions, and trains it. How well it does on photographs is measured where they are
(`benchmarks/examination.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = Path(__file__).with_name("anatomy.safetensors")
GRID = 32
"""Cells along a side of the maps that the network gives, of an image of 128 px."""
_STEM, _WIDTH = 16, 24
_DILATIONS = (1, 2, 4, 1)
_MIXED_AFTER = 2
_UNLIT = 14
_SURROUNDINGS_PX, _BLURS = 8, 2
_NEVER = -20.0
APART = 0.3
"""Two discs are at least this far apart, in half widths of the field: nearer maxima are one."""
MAX_DISCS = 3


class AnatomyNetwork(nn.Module):
    """Images to maps ``[b, 3, 32, 32]``: logits of a disc's centre and of the fovea's, and a disc's log radius."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, _STEM, 5, stride=2, padding=2)
        self.down = nn.Conv2d(_STEM, _WIDTH, 3, stride=2, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=d, dilation=d) for d in _DILATIONS)
        self.mix = nn.Linear(_WIDTH, _WIDTH)
        self.head = nn.Conv2d(_WIDTH, 3, 1)

    def forward(self, x: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 3 g g"]:
        """Return the maps of images as `relative_colour` gives them."""
        x = functional.relu(self.down(functional.relu(self.stem(x))))
        for number, convolution in enumerate(self.body):
            x = functional.relu(x + convolution(x))
            if number == _MIXED_AFTER:  # what kind of picture it is
                x = x + self.mix(x.mean(dim=(2, 3)))[..., None, None]
        maps: Tensor = self.head(x)
        return maps


def relative_colour(copies: NDArray[np.uint8]) -> Float[Tensor, "b 4 h w"]:
    """Return colour relative to its surroundings, so that light and pigment do not matter, and where there is retina.

    Args:
        copies: Working copies, uint8 ``[b, 128, 128, 3]``.
    """
    pixels = torch.tensor(np.ascontiguousarray(copies)).permute(0, 3, 1, 2).float()
    lit = (pixels.amax(dim=1, keepdim=True) > _UNLIT).float()
    around = functional.avg_pool2d(torch.cat([pixels * lit, lit], dim=1), _SURROUNDINGS_PX)
    for _ in range(_BLURS):
        around = functional.avg_pool2d(around, 5, 1, 2, count_include_pad=False)
    level = around[:, :3] / around[:, 3:].clamp(min=0.02)
    level = functional.interpolate(level, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
    relative = (pixels - level) / (level + 12) * lit
    return torch.cat([relative.clamp(-1, 1.5), lit - 1], dim=1)


@dataclass(frozen=True)
class Spot:
    """A maximum of a map.

    Attributes:
        x: To the right of the field's centre, in its half widths.
        y: Below it.
        radius: Of a disc, in the same unit.
        score: Log odds that it is what it is taken for.
    """

    x: float
    y: float
    radius: float
    score: float


@dataclass(frozen=True)
class Anatomy:
    """What was found in an image.

    Attributes:
        discs: Candidates of optic discs, the likeliest first.
        fovea: The likeliest fovea.
    """

    discs: tuple[Spot, ...]
    fovea: Spot


@lru_cache(maxsize=1)
def load_finder() -> AnatomyNetwork:
    """Return the shipped network."""
    network = AnatomyNetwork()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval()


def _cells() -> NDArray[np.float32]:
    return np.asarray((np.arange(GRID) + 0.5) / GRID * 2 - 1, dtype=np.float32)


def _spots(scores: NDArray[np.float32], log_radius: NDArray[np.float32], count: int) -> list[Spot]:
    """Return the highest cells of a map ``[32, 32]`` that are `APART`, the highest first."""
    cells, left, found = _cells(), scores.copy(), []
    for _ in range(count):
        row, column = divmod(int(left.argmax()), GRID)
        x, y = float(cells[column]), float(cells[row])
        radius = math.exp(float(log_radius[row, column]))
        found.append(Spot(x, y, radius, round(float(left[row, column]), 2)))
        left[np.hypot(cells[None] - x, cells[:, None] - y) < APART] = _NEVER
    return found


@torch.no_grad()
def find_anatomy(copy: NDArray[np.uint8]) -> Anatomy:
    """Return discs and fovea of a working copy ``[128, 128, 3]``; one image a call, so that no other can change it."""
    maps = load_finder()(relative_colour(copy[None]))[0].numpy()
    discs = _spots(maps[0], maps[2], MAX_DISCS)
    return Anatomy(tuple(discs), _spots(maps[1], maps[2], 1)[0])
