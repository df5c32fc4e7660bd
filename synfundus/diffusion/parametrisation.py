"""What the network predicts, and the loss: squared error, weighted by signal-to-noise ratio and by sample.

With ``a = sqrt(alphas_cumprod_t)`` and ``s = sqrt(1 - alphas_cumprod_t)``, ``x_t = a x0 + s noise``, and the velocity
is ``v = a noise - s x0`` (Salimans and Ho 2022, App. D). From ``x_t`` and any one of ``noise``, ``v`` and ``x0`` the
others follow. On a flow ``a = 1 - t`` and ``s = t``, and the velocity is ``u = noise - x0`` (Lipman et al. 2023).
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Real
from torch import Tensor

from synfundus.diffusion.flow import FlowPath, ForwardProcess
from synfundus.errors import ConfigError

NoisePrediction: TypeAlias = Literal["epsilon", "v_prediction", "sample"]
"""What can be predicted on a noise schedule."""
PredictionType: TypeAlias = Literal["epsilon", "v_prediction", "sample", "flow_velocity"]


def check_prediction_type(prediction_type: str, schedule: ForwardProcess) -> None:
    """Refuse an unknown prediction type, one of another forward process, and epsilon where no signal is left.

    Raises:
        ConfigError: As above. At zero SNR the noise *is* the input: the target carries nothing about ``x0``.
    """
    if prediction_type not in get_args(PredictionType):
        raise ConfigError(
            f"unknown prediction type {prediction_type!r}", hint=f"one of {', '.join(get_args(PredictionType))}"
        )
    if isinstance(schedule, FlowPath) or prediction_type == "flow_velocity":
        if not isinstance(schedule, FlowPath) or prediction_type != "flow_velocity":
            raise ConfigError(
                f"prediction type {prediction_type} does not fit the forward process {type(schedule).__name__}",
                hint="flow_velocity is for a flow, the others are for a noise schedule",
            )
        return
    if prediction_type == "epsilon" and schedule.has_zero_terminal_snr:
        raise ConfigError(
            "prediction type epsilon cannot be trained with zero-terminal SNR: the last timestep's input is the noise",
            hint="set the prediction type to v_prediction or sample, or turn zero-terminal SNR off",
        )


def training_target(
    *,
    x0: Float[Tensor, "b c lh lw"],
    noise: Float[Tensor, "b c lh lw"],
    timestep: Real[Tensor, "b"],
    schedule: ForwardProcess,
    prediction_type: PredictionType,
) -> Float[Tensor, "b c lh lw"]:
    """Return what the network should output.

    Source: Ho et al. 2020, Eq. 14 (epsilon); Salimans and Ho 2022, App. D (v); Lipman et al. 2023, Eq. 23 (flow).
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    if prediction_type == "flow_velocity":
        return noise - x0
    a, s = (scale[:, None, None, None] for scale in (schedule.signal_scale(timestep), schedule.noise_scale(timestep)))
    return a * noise - s * x0


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
        errors = errors * loss_weight(
            timestep, schedule=schedule, prediction_type=prediction_type, min_snr_gamma=min_snr_gamma
        )
    weights = weights.to(errors)
    total = weights.sum()
    mean = (errors * weights).sum() / torch.where(total > 0, total, torch.ones_like(total))
    return errors, mean


def loss_weight(
    timestep: Real[Tensor, "b"],
    *,
    schedule: ForwardProcess,
    prediction_type: PredictionType,
    min_snr_gamma: float | None,
) -> Float[Tensor, "b"]:
    """Return the weight of the squared error at each timestep; 1 without min-SNR weighting.

    Raises:
        ConfigError: min-SNR weighting of a flow.
    """
    if min_snr_gamma is None:
        return torch.ones_like(timestep, dtype=torch.float32)
    if isinstance(schedule, FlowPath):
        raise ConfigError(_NO_MIN_SNR)
    return min_snr_weight(schedule.snr(timestep), gamma=min_snr_gamma, prediction_type=prediction_type)


def unweighted_start(
    *, schedule: ForwardProcess, prediction_type: PredictionType, min_snr_gamma: float | None
) -> str | None:
    """Return what is wrong if the last timestep, with which every sample begins, has no weight in the loss.

    The formulas of Hang et al. give it the weight 0 when its SNR is 0, where Lin et al. want it trained.

    Source: Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed", Sec. 3.
    """
    if isinstance(schedule, FlowPath) or min_snr_gamma is None:
        return None
    last = torch.tensor([schedule.num_timesteps - 1])
    weight = loss_weight(last, schedule=schedule, prediction_type=prediction_type, min_snr_gamma=min_snr_gamma)
    if float(weight) > 0:
        return None
    return (
        f"min_snr_gamma {min_snr_gamma:g} gives the last timestep, with which every sample begins, the weight 0, since "
        "zero_terminal_snr leaves nothing but noise there: what decides layout and brightness is hardly trained. For a "
        "new run set min_snr_gamma to null"
    )


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
