"""Guidance: how several predictions of the network become the one that a sampler follows.

With the conditional prediction ``c``, the reference ``r`` (unconditional, or of a weaker model), the scale ``w``, and
for each label that has a weight ``w_l`` of its own the prediction ``c_l`` without this label::

    guided = r + w (c - r) + sum over l of (w_l - w) (c - c_l)

A label without a weight has the scale's. Where all labels have one weight, that is the scale and the sum is empty:
plain guidance, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from synfundus.errors import ConfigError

Denoiser: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(x_t [b c lh lw], timestep [b], states [b k]) -> prediction [b c lh lw]``."""


@dataclass(frozen=True)
class Guidance:
    """Guidance of any label schema.

    Attributes:
        scale: 1 = the conditional prediction alone (one call a step); above 1 = away from the reference.
        interval: Part of the timesteps, ``(first, last)`` with 0 = pure noise and 1 = clean, within which guidance is
            on, whatever the steps between them.
        rescale: 0 to 1: how far the guided prediction is rescaled to the conditional one's standard deviation.
        label_weights: Weights by column of the label states, of labels whose weight is not the scale.
        negative: States ``[k]`` that guidance leads away from; empty = all unknown (0).
        guide: A weaker network that is the reference, with the same labels, in place of the unconditional prediction.

    Source: Ho and Salimans 2021, Eq. 6; Kynkäänniemi et al. 2024 (interval); Lin et al. 2023, Eq. 15-16 (rescale);
    Karras et al. 2024 (guide, arXiv 2406.02507); Liu et al. 2022 (composed conditions, arXiv 2206.01714).
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    label_weights: Mapping[int, float] = field(default_factory=dict)
    negative: Sequence[int] = ()
    guide: Denoiser | None = None

    def acts_at(self, progress: float) -> bool:
        """Whether more than the conditional prediction is needed at a point of the way, 0 = noise and 1 = clean."""
        first, last = self.interval
        return (self.scale != 1.0 or bool(self.label_weights)) and first <= progress <= last


def plan_label_weights(
    names: Sequence[str], weights: Mapping[str, float], *, scale: float
) -> tuple[float, dict[int, float]]:
    """Return the scale, and the weights by column of the labels that have another weight.

    Args:
        names: All labels, in the order of the states.
        weights: Weights of some of them.
        scale: Weight of the others.
    """
    every = [weights.get(name, scale) for name in names]
    if len(set(every)) == 1:
        return every[0], {}
    return scale, {column: weight for column, weight in enumerate(every) if weight != scale}


def check_guidance(guidance: Guidance) -> None:
    """Refuse values out of range.

    Raises:
        ConfigError: Scale, a weight, rescale or interval.
    """
    if guidance.scale < 0.0 or not math.isfinite(guidance.scale):
        raise ConfigError(f"guidance_scale {guidance.scale} must be 0 or more; 1 = no guidance")
    for weight in guidance.label_weights.values():
        if weight < 0.0 or not math.isfinite(weight):
            raise ConfigError(f"guidance_weight {weight} must be 0 or more; a label of weight 0 is not asked for")
    if not 0.0 <= guidance.rescale <= 1.0:
        raise ConfigError(f"guidance_rescale {guidance.rescale} must lie between 0 and 1")
    if not 0.0 <= guidance.interval[0] < guidance.interval[1] <= 1.0:
        raise ConfigError(f"guidance_interval {guidance.interval} must be (first, last) with 0 <= first < last <= 1")
    if guidance.guide is not None and any(guidance.negative):
        raise ConfigError(
            "negative labels and a guiding model exclude each other: the model's prediction is what is led away from",
            hint="leave out --guide-model or --negative-label",
        )


def states_to_predict(states: Int[Tensor, "b k"], guidance: Guidance) -> list[Tensor]:
    """Return the label states of all predictions that a guided one is made of, each ``[b, k]``.

    The condition itself, the unconditional one if it is needed, and one without each label that has its own weight.
    """
    negative = states.new_tensor(guidance.negative) if guidance.negative else torch.zeros_like(states)
    wanted = [states]
    if guidance.guide is None and guidance.scale != 1.0:
        wanted.append(negative.expand_as(states))
    columns = torch.arange(states.shape[1], device=states.device)
    return wanted + [torch.where(columns == column, negative, states) for column in guidance.label_weights]


def guided_prediction(
    denoise: Denoiser,
    x_t: Float[Tensor, "b c lh lw"],
    timestep: Tensor,
    wanted: Sequence[Tensor],
    guidance: Guidance,
) -> Float[Tensor, "b c lh lw"]:
    """Return the guided prediction, with as few passes as it needs.

    Args:
        denoise: The network.
        x_t: Noisy latents, scaled for the network.
        timestep: ``[b]``.
        wanted: From `states_to_predict`.
        guidance: What is wanted.
    """
    scale = guidance.scale
    if scale == 0.0 and guidance.rescale == 0.0 and not guidance.label_weights:
        return (guidance.guide or denoise)(x_t, timestep, wanted[-1]).float()
    conditional, *others = _predictions(denoise, x_t, timestep, wanted)
    guided = conditional
    if scale != 1.0:
        guide = guidance.guide
        reference = others.pop(0) if guide is None else guide(x_t, timestep, wanted[0]).float()
        guided = reference + scale * (conditional - reference)
    for weight, without in zip(guidance.label_weights.values(), others, strict=True):
        guided = guided + (weight - scale) * (conditional - without)
    return rescaled(guided, conditional, share=guidance.rescale)


def _predictions(denoise: Denoiser, x_t: Tensor, timestep: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
    """Return the prediction for each of the label states; two in a pass, so that more of them take no more memory."""
    found: list[Tensor] = []
    for first in range(0, len(wanted), 2):
        states = wanted[first : first + 2]
        count = len(states)
        prediction = denoise(torch.cat([x_t] * count), torch.cat([timestep] * count), torch.cat(list(states)))
        found += prediction.float().chunk(count)
    return found


def rescaled(
    guided: Float[Tensor, "b c lh lw"], conditional: Float[Tensor, "b c lh lw"], *, share: float
) -> Float[Tensor, "b c lh lw"]:
    """Move a guided prediction's standard deviation to the conditional one's, by a share of the way.

    Source: Lin et al. 2023, Eq. 15-16.
    """
    if share == 0.0:
        return guided
    axes = tuple(range(1, guided.ndim))
    factor = conditional.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return share * (guided * factor) + (1.0 - share) * guided  # in diffusers' order: the same bits
