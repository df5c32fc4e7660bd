"""What the network predicts, and how one kind of prediction becomes another.

With ``a = sqrt(alphas_cumprod_t)`` and ``s = sqrt(1 - alphas_cumprod_t)``, ``x_t = a x0 + s noise``, and the velocity
is ``v = a noise - s x0`` (Salimans and Ho 2022, App. D). From ``x_t`` and any one of ``noise``, ``v`` and ``x0`` the
others follow.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from jaxtyping import Float, Int
from torch import Tensor

from synfundus.diffusion.schedule import NoiseSchedule
from synfundus.errors import ConfigError

PredictionType: TypeAlias = Literal["epsilon", "v_prediction", "sample"]


def check_prediction_type(prediction_type: str, schedule: NoiseSchedule) -> None:
    """Refuse an unknown prediction type, and noise prediction where the last timestep holds no signal.

    Raises:
        ConfigError: As above. At zero SNR the noise *is* the input: the target carries nothing about ``x0``.
    """
    if prediction_type not in get_args(PredictionType):
        raise ConfigError(
            f"unknown prediction type {prediction_type!r}", hint=f"one of {', '.join(get_args(PredictionType))}"
        )
    if prediction_type == "epsilon" and schedule.has_zero_terminal_snr:
        raise ConfigError(
            "prediction type epsilon cannot be trained with zero-terminal SNR: the last timestep's input is the noise",
            hint="set the prediction type to v_prediction or sample, or turn zero-terminal SNR off",
        )


def training_target(
    *,
    x0: Float[Tensor, "b c lh lw"],
    noise: Float[Tensor, "b c lh lw"],
    timestep: Int[Tensor, "b"],
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
) -> Float[Tensor, "b c lh lw"]:
    """Return what the network should output.

    Source: Ho et al. 2020, Eq. 14 (epsilon); Salimans and Ho 2022, App. D (v).
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    a, s = _scales(schedule, timestep)
    return a * noise - s * x0


def to_sample(
    *,
    prediction: Float[Tensor, "b c lh lw"],
    x_t: Float[Tensor, "b c lh lw"],
    timestep: Int[Tensor, "b"],
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
) -> Float[Tensor, "b c lh lw"]:
    """Return the predicted ``x0``. From epsilon it is not defined where the SNR is zero (the result is infinite)."""
    a, s = _scales(schedule, timestep)
    if prediction_type == "sample":
        return prediction
    if prediction_type == "v_prediction":
        return a * x_t - s * prediction
    return (x_t - s * prediction) / a


def to_epsilon(
    *,
    prediction: Float[Tensor, "b c lh lw"],
    x_t: Float[Tensor, "b c lh lw"],
    timestep: Int[Tensor, "b"],
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
) -> Float[Tensor, "b c lh lw"]:
    """Return the predicted noise; defined at zero SNR for every prediction type."""
    a, s = _scales(schedule, timestep)
    if prediction_type == "epsilon":
        return prediction
    if prediction_type == "v_prediction":
        return s * x_t + a * prediction
    return (x_t - a * prediction) / s


def to_velocity(
    *,
    prediction: Float[Tensor, "b c lh lw"],
    x_t: Float[Tensor, "b c lh lw"],
    timestep: Int[Tensor, "b"],
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
) -> Float[Tensor, "b c lh lw"]:
    """Return the predicted velocity. From epsilon it is not defined where the SNR is zero (the result is infinite)."""
    a, s = _scales(schedule, timestep)
    if prediction_type == "v_prediction":
        return prediction
    if prediction_type == "sample":
        return (a * x_t - prediction) / s
    return (prediction - s * x_t) / a


def _scales(
    schedule: NoiseSchedule, timestep: Int[Tensor, "b"]
) -> tuple[Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]:
    """Return the signal and the noise scale, ready to multiply latents."""
    return schedule.signal_scale(timestep)[:, None, None, None], schedule.noise_scale(timestep)[:, None, None, None]
