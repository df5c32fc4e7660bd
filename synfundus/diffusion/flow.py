"""The straight path from data to noise (rectified flow).

``x_t = (1 - t) x0 + t noise``; the network predicts its velocity ``dx_t / dt = noise - x0``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Float, Real
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
