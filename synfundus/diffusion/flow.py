"""The straight path from data to noise (rectified flow), and how its times are drawn.

``x_t = (1 - t) x0 + t noise``; the network predicts its velocity ``dx_t / dt = noise - x0``.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Real
from numpy.typing import NDArray
from torch import Tensor

from synfundus.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class FlowPath:
    """The forward process of flow matching. Its timesteps are fractions: time times ``num_timesteps`` (ADR-0012).

    Attributes:
        num_timesteps: Timestep the network gets at time 1: the scale of its time embedding.

    Source: Lipman et al. 2023, "Flow matching for generative modeling" (arXiv 2210.02747), Eq. 22 with sigma_min = 0
    and time reversed; Liu et al. 2023, "Flow straight and fast" (arXiv 2209.03003), Eq. 1.
    """

    num_timesteps: int

    def time(self, timestep: Real[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Return the time, 0 at the data and 1 at the noise, float32."""
        return timestep.float() / self.num_timesteps

    def signal_scale(self, timestep: Real[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Return the factor of ``x0`` in ``x_t``, float32, on the device of ``timestep``."""
        return 1.0 - self.time(timestep)

    def noise_scale(self, timestep: Real[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Return the factor of the noise in ``x_t``, float32, on the device of ``timestep``."""
        return self.time(timestep)

    def add_noise(
        self, x0: Float[Tensor, "b c lh lw"], noise: Float[Tensor, "b c lh lw"], timestep: Real[Tensor, "b"]
    ) -> Float[Tensor, "b c lh lw"]:
        """Return ``x_t``."""
        signal = self.signal_scale(timestep)[:, None, None, None]
        spread = self.noise_scale(timestep)[:, None, None, None]
        return signal * x0 + spread * noise


ForwardProcess: TypeAlias = NoiseSchedule | FlowPath
"""What turns data into noise: a schedule of discrete timesteps, or the straight path."""


TimeDensity: TypeAlias = Literal["logit_normal", "uniform"]

_LEAST_UNIFORM = 2.0**-54
"""Half of the smallest step of a uniform draw: replaces 0, whose quantile is not finite."""


@dataclass(frozen=True)
class FlowTime:
    """The density of training times, as a map from uniform draws.

    Attributes:
        density: ``logit_normal``: most draws in the middle, where the velocity is hardest to predict; or ``uniform``.
        location: Of ``logit_normal``: mean of the logit of the time before the shift; above 0 is nearer to noise.
        scale: Of ``logit_normal``: standard deviation of that logit.
        shift: See `shifted`.

    Source: Esser et al. 2024, "Scaling rectified flow transformers" (arXiv 2403.03206), Sec. 3.1, Eq. 19.
    """

    density: TimeDensity
    location: float
    scale: float
    shift: float

    def __call__(self, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a time for each draw ``[n]`` in [0, 1): its quantile, so a larger draw gives a later time."""
        time = uniform
        if self.density == "logit_normal":
            quantile = NormalDist().inv_cdf
            normal = np.array([quantile(draw) for draw in np.maximum(uniform, _LEAST_UNIFORM).tolist()])
            time = 1.0 / (1.0 + np.exp(-(self.location + self.scale * normal)))
        return shifted(time, self.shift)


def shifted(time: NDArray[np.float64], shift: float) -> NDArray[np.float64]:
    """Shift times towards noise, as larger images need: the same noise hides less of them.

    It adds ``log(shift)`` to the logit of a time; 1 changes nothing. If a shift of 1 suits some image size, a shift of
    ``m`` gives images of ``m`` times the width and height the same uncertainty.

    Source: Esser et al. 2024 (arXiv 2403.03206), Eq. 23.
    """
    moved: NDArray[np.float64] = shift * time / (1.0 + (shift - 1.0) * time)
    return moved
