"""How latents are drawn: the sampler, its steps, its guidance. All of it changes the bytes of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, get_args

SamplerName: TypeAlias = Literal["ddim", "dpmpp", "dpmpp_sde", "unipc", "euler", "heun"]


@dataclass(frozen=True)
class SamplerSettings:
    """How latents are drawn.

    Attributes:
        sampler: Solver.
        num_steps: Solver steps.
        guidance_scale: Classifier-free guidance; 1 turns it off.
        guidance_interval: Part of the timesteps, from the noisy end, in which guidance is on (arXiv 2404.07724).
        guidance_rescale: How far to rescale to the conditional prediction's contrast (arXiv 2305.08891).
        guidance_weight: Weights of labels, by name, in place of the scale.
        negative_label: Values of labels, by name, that guidance leads away from; the others are unknown.
        decode_tile_px: Edge of the tiles in which the latents are decoded; 0: in one piece.
    """

    sampler: SamplerName
    num_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    guidance_rescale: float
    guidance_weight: Mapping[str, float] = field(default_factory=dict)
    negative_label: Mapping[str, int] = field(default_factory=dict)
    decode_tile_px: int = 0

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> SamplerSettings:
        """Read settings from JSON; raises a ValueError, TypeError or KeyError where they are none."""
        first, last = (float(end) for end in document["guidance_interval"])
        if document["sampler"] not in get_args(SamplerName):
            raise ValueError(f"unknown sampler {document['sampler']!r}")
        scale, rescale = float(document["guidance_scale"]), float(document["guidance_rescale"])
        weights, negative = (dict(document.get(name) or {}) for name in _LATER[:2])
        return cls(
            document["sampler"],
            int(document["num_steps"]),
            scale,
            (first, last),
            rescale,
            {str(name): float(weight) for name, weight in weights.items()},
            {str(name): int(value) for name, value in negative.items()},
            int(document.get("decode_tile_px", 0)),
        )

    def to_document(self) -> dict[str, Any]:
        """Return the settings for JSON; without those that earlier versions lacked, where they have no effect."""
        return {name: value for name, value in asdict(self).items() if value or name not in _LATER}


_LATER = ("guidance_weight", "negative_label", "decode_tile_px")
