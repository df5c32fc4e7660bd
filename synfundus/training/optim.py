"""Parameter groups and the learning-rate schedule, counted in images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

NamedParameters = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class LrPlan:
    """Learning rate as a function of images seen.

    Attributes:
        peak: Rate after the warm-up.
        schedule: ``cosine`` falls to ``min_ratio * peak`` at the budget; ``constant`` stays at the peak.
        warmup_images: Images over which the rate rises linearly.
        budget_images: Images of the whole run.
        min_ratio: Final rate of the cosine as a fraction of the peak.
    """

    peak: float
    schedule: Literal["cosine", "constant"]
    warmup_images: int
    budget_images: int
    min_ratio: float

    def at(self, images_seen: int) -> float:
        """Return the rate for the step that ends at ``images_seen``.

        Source: cosine annealing, Loshchilov and Hutter 2017 (arXiv 1608.03983), Eq. 5.
        """
        if images_seen < self.warmup_images:
            return self.peak * images_seen / self.warmup_images
        if self.schedule == "constant":
            return self.peak
        span = max(1, self.budget_images - self.warmup_images)
        progress = min(1.0, (images_seen - self.warmup_images) / span)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.peak * (self.min_ratio + (1.0 - self.min_ratio) * cosine)


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float
) -> tuple[list[NamedParameters], list[float]]:
    """Split trainable parameters into optimizer groups; returns (groups, decay of each group).

    Weight decay applies to matrices and kernels, not to vectors (biases, norm scales). Without it there is one group.
    """
    trainable = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if weight_decay == 0.0:
        return [trainable], [0.0]
    matrices = [(name, parameter) for name, parameter in trainable if parameter.ndim >= 2]
    vectors = [(name, parameter) for name, parameter in trainable if parameter.ndim < 2]
    groups = [(group, decay) for group, decay in ((matrices, weight_decay), (vectors, 0.0)) if group]
    return [group for group, _ in groups], [decay for _, decay in groups]
