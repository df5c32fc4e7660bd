"""What the network predicts.

With ``a = sqrt(alphas_cumprod_t)`` and ``s = sqrt(1 - alphas_cumprod_t)``, ``x_t = a x0 + s noise``, and the velocity
is ``v = a noise - s x0`` (Salimans and Ho 2022, App. D). From ``x_t`` and any one of ``noise``, ``v`` and ``x0`` the
others follow. On a flow ``a = 1 - t`` and ``s = t``, and the velocity is ``u = noise - x0`` (Lipman et al. 2023).
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

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
