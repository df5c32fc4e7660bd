"""The denoising loss: squared error of the prediction, weighted by signal-to-noise ratio and by sample."""

from __future__ import annotations

import torch
from jaxtyping import Float, Real
from torch import Tensor

from synfundus.diffusion.flow import FlowPath, ForwardProcess
from synfundus.diffusion.parametrisation import PredictionType
from synfundus.errors import ConfigError

_NO_MIN_SNR = "min-SNR weighting does not apply to flow_velocity: a flow is weighted by the density of its times"


def denoising_loss(
    *,
    prediction: Float[Tensor, "b c lh lw"],
    target: Float[Tensor, "b c lh lw"],
    timestep: Real[Tensor, "b"],
    schedule: ForwardProcess,
    prediction_type: PredictionType,
    min_snr_gamma: float | None,
    weights: Float[Tensor, "b"],
) -> tuple[Float[Tensor, "b"], Float[Tensor, ""]]:
    """Return the loss of each sample and their weighted mean.

    Args:
        prediction: The network's output, any float type; the error is taken in float32.
        target: The correct prediction.
        timestep: Timestep of each sample.
        schedule: The noise schedule or flow.
        prediction_type: What is predicted; decides the form of the min-SNR weight.
        min_snr_gamma: SNR above which a timestep's weight stops growing; None = plain mean squared error.
        weights: Weight of each sample; 0 for a slot without one. All zero gives a loss of exactly 0.

    Raises:
        ConfigError: min-SNR weighting of a flow, which is weighted by the density of its times.

    Source: Ho et al. 2020, Eq. 14; Lipman et al. 2023, Eq. 23; Hang et al. 2023 (arXiv 2303.09556), Sec. 3.4.
    """
    errors = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
    if min_snr_gamma is not None:
        if isinstance(schedule, FlowPath):
            raise ConfigError(_NO_MIN_SNR)
        errors = errors * min_snr_weight(schedule.snr(timestep), gamma=min_snr_gamma, prediction_type=prediction_type)
    weights = weights.to(errors)
    total = weights.sum()
    mean = (errors * weights).sum() / torch.where(total > 0, total, torch.ones_like(total))
    return errors, mean


def min_snr_weight(snr: Float[Tensor, "b"], *, gamma: float, prediction_type: PredictionType) -> Float[Tensor, "b"]:
    """Return the weight that makes every prediction type minimise ``min(SNR, gamma) |x0 - x0_predicted|^2``.

    The error of epsilon is SNR times, that of v is (SNR + 1) times the error of ``x0``; hence the divisors.

    Raises:
        ConfigError: The prediction type does not belong to a noise schedule.

    Source: Hang et al. 2023, "Efficient diffusion training via min-SNR weighting strategy", Sec. 3.4.
    """
    capped = snr.clamp(max=gamma)
    if prediction_type == "sample":
        return capped
    if prediction_type == "v_prediction":
        return capped / (snr + 1.0)
    if prediction_type == "flow_velocity":
        raise ConfigError(_NO_MIN_SNR)
    # capped / snr, written so that a vanishing SNR gives 1 and not 0 / 0.
    return torch.where(snr > gamma, gamma / snr.clamp(min=gamma), torch.ones_like(snr))
