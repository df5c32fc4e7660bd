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
        schedule: ``cosine`` falls to ``min_ratio * peak`` at the budget; ``constant`` stays at the peak; ``wsd`` does
            so up to the last part of the budget, in which it falls to ``min_ratio * peak``.
        warmup_images: Images over which the rate rises linearly.
        budget_images: Images of the whole run.
        min_ratio: Final rate of a schedule that falls as a fraction of the peak.
        decay_fraction: Part of the budget in which ``wsd`` falls.
    """

    peak: float
    schedule: Literal["cosine", "constant", "wsd"]
    warmup_images: int
    budget_images: int
    min_ratio: float
    decay_fraction: float = 0.2

    def at(self, images_seen: int) -> float:
        """Return the rate for the step that ends at ``images_seen``.

        Source: cosine annealing, Loshchilov and Hutter 2017 (arXiv 1608.03983), Eq. 5; warm-up, stable, decay: Hu et
        al. 2024, "MiniCPM" (arXiv 2404.06395), Sec. 4, with the decay ``1 - sqrt`` of Hägele et al. 2024 (arXiv
        2405.18392), Sec. 3.
        """
        if images_seen < self.warmup_images:
            return self.peak * images_seen / self.warmup_images
        if self.schedule == "constant":
            return self.peak
        first = self.warmup_images
        if self.schedule == "wsd":
            first = max(first, self.budget_images - round(self.decay_fraction * self.budget_images))
        progress = min(1.0, max(0, images_seen - first) / max(1, self.budget_images - first))
        left = 1.0 - math.sqrt(progress) if self.schedule == "wsd" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.peak * (self.min_ratio + (1.0 - self.min_ratio) * left)


_LIFT = 1.5
"""A rate that a change lifts by more is reported."""


def lifted(before: LrPlan, now: LrPlan, images_seen: int) -> str | None:
    """Return what to tell of a change that lifts the rate of the step that ends at ``images_seen``, or None."""
    was, rate = before.at(images_seen), now.at(images_seen)
    if was <= 0.0 or rate <= _LIFT * was:
        return None
    return (
        f"the change lifts the learning rate {rate / was:.3g}-fold, from {was:.3g} to {rate:.3g}: the loss may rise at "
        "first. lr is the peak of the schedule; schedule=wsd, for runs that are extended, stays at it until the last "
        "part of the budget"
    )


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
