"""Options of the objective: what is predicted, on which way from data to noise, and how it is weighted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from synfundus.config.base import Fraction, PositiveFloat, Section


class DiffusionConfig(Section):
    """Noise schedule, objective and guidance drop."""

    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    """Length of the discrete schedule."""
    beta_schedule: Literal["linear", "scaled_linear", "cosine"] = "scaled_linear"
    """Shape of the noise schedule."""
    beta_start: Fraction = 0.00085
    """First beta of the linear schedules."""
    beta_end: Fraction = 0.012
    """Last beta of the linear schedules."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that the last step is pure noise (arXiv 2305.08891); needs v_prediction or sample."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    """What the network predicts; epsilon is the seed system's mean squared error on the noise."""
    latent_scaling: Literal["channel", "global"] = "channel"
    """How latents get unit variance: each channel by its own spread, or all by one, which keeps their proportions."""
    min_snr_gamma: PositiveFloat | None = None
    """Min-SNR weighting (arXiv 2303.09556), usually 5; null gives the plain mean squared error."""
    label_drop_prob: Fraction = 0.1
    """Chance that all labels of a sample become unknown (for guidance)."""
    single_label_drop_prob: Fraction = 0.1
    """Chance of each single label to become unknown, so that any subset can condition."""
    flip: bool = False
    """Use the mirrored moments half of the time (the set must have been encoded with --flip)."""

    @model_validator(mode="after")
    def _solvable(self) -> DiffusionConfig:
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "zero_terminal_snr cannot be trained with prediction_type epsilon: at the last step the image is pure "
                "noise; use v_prediction or sample"
            )
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} is above beta_end {self.beta_end}")
        return self
