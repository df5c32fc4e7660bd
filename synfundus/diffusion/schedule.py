"""The forward process: how much signal and noise there is at each timestep.

``x_t = sqrt(alphas_cumprod_t) x0 + sqrt(1 - alphas_cumprod_t) noise`` (Ho et al. 2020, Eq. 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from synfundus.errors import ConfigError

ScheduleKind: TypeAlias = Literal["linear", "scaled_linear", "cosine"]

_COSINE_OFFSET = 0.008
_COSINE_MAX_BETA = 0.999


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving noise schedule of discrete timesteps.

    Attributes:
        betas: Variance added from one timestep to the next, float64.
        alphas_cumprod: Share of the signal's variance left at each timestep, float64; 0 at the last one under
            zero-terminal SNR.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", Eq. 2 and 4.
    """

    betas: Float64[Tensor, "t"]
    alphas_cumprod: Float64[Tensor, "t"]
    _tables: dict[tuple[str, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_timesteps(self) -> int:
        """Number of timesteps."""
        return self.betas.shape[0]

    @property
    def has_zero_terminal_snr(self) -> bool:
        """Whether the last timestep is pure noise."""
        return float(self.alphas_cumprod[-1]) == 0.0

    def signal_scale(self, timestep: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Return the factor of ``x0`` in ``x_t``, float32, on the device of ``timestep``."""
        return self._gather("signal", self.alphas_cumprod.sqrt, timestep)

    def noise_scale(self, timestep: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Return the factor of the noise in ``x_t``, float32, on the device of ``timestep``."""
        return self._gather("noise", lambda: (1.0 - self.alphas_cumprod).sqrt(), timestep)

    def add_noise(
        self, x0: Float[Tensor, "b c lh lw"], noise: Float[Tensor, "b c lh lw"], timestep: Int[Tensor, "b"]
    ) -> Float[Tensor, "b c lh lw"]:
        """Return ``x_t``.

        Source: Ho et al. 2020, Eq. 4.
        """
        signal = self.signal_scale(timestep)[:, None, None, None]
        spread = self.noise_scale(timestep)[:, None, None, None]
        return signal * x0 + spread * noise

    def snr(self, timestep: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Return the signal-to-noise ratio ``alphas_cumprod / (1 - alphas_cumprod)``, float32."""
        return self._gather("snr", lambda: self.alphas_cumprod / (1.0 - self.alphas_cumprod), timestep)

    def _gather(
        self, name: str, compute: Callable[[], Float64[Tensor, "t"]], timestep: Int[Tensor, "b"]
    ) -> Float[Tensor, "b"]:
        """Look values up in a table that is copied to a device only once: each copy makes the host wait for the GPU."""
        key = (name, timestep.device)
        if key not in self._tables:
            self._tables[key] = compute().to(device=timestep.device, dtype=torch.float32)
        return self._tables[key][timestep]


def build_schedule(
    *, kind: ScheduleKind, num_timesteps: int, beta_start: float, beta_end: float, zero_terminal_snr: bool
) -> NoiseSchedule:
    """Build a noise schedule.

    Args:
        kind: ``linear`` (Ho et al. 2020), ``scaled_linear`` (linear in the square root; Rombach et al. 2022) or
            ``cosine`` (Nichol and Dhariwal 2021, Eq. 17), which takes no betas.
        num_timesteps: Length of the chain.
        beta_start: First beta of the linear kinds.
        beta_end: Last beta of the linear kinds.
        zero_terminal_snr: Rescale so that the last timestep is pure noise.

    Raises:
        ConfigError: An unknown kind, fewer than two timesteps, or betas outside ``0 < start < end < 1``.
    """
    if num_timesteps < 2:
        raise ConfigError(f"a noise schedule of {num_timesteps} timesteps: at least 2 are needed")
    if kind not in get_args(ScheduleKind):
        raise ConfigError(f"unknown noise schedule {kind!r}", hint=f"one of {', '.join(get_args(ScheduleKind))}")
    if kind != "cosine" and not 0.0 < beta_start < beta_end < 1.0:
        raise ConfigError(f"betas must satisfy 0 < beta_start < beta_end < 1, got {beta_start} and {beta_end}")
    if kind == "linear":
        betas = torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64)
    elif kind == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64) ** 2
    else:
        betas = _cosine_betas(num_timesteps)
    if zero_terminal_snr:
        betas = rescale_to_zero_terminal_snr(betas)
    return NoiseSchedule(betas=betas, alphas_cumprod=torch.cumprod(1.0 - betas, dim=0))


def _cosine_betas(num_timesteps: int) -> Float64[Tensor, "t"]:
    """Return the betas of the squared-cosine schedule, capped as in the paper.

    Source: Nichol and Dhariwal 2021, "Improved denoising diffusion probabilistic models", Eq. 17.
    """

    def alpha_bar(fraction: float) -> float:
        return math.cos((fraction + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2

    betas = [
        min(1 - alpha_bar((step + 1) / num_timesteps) / alpha_bar(step / num_timesteps), _COSINE_MAX_BETA)
        for step in range(num_timesteps)
    ]
    return torch.tensor(betas, dtype=torch.float64)


def rescale_to_zero_terminal_snr(betas: Float64[Tensor, "t"]) -> Float64[Tensor, "t"]:
    """Shift and scale ``sqrt(alphas_cumprod)`` so that the first stays and the last becomes zero.

    Source: Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed" (arXiv 2305.08891), Alg. 1.
    """
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    alphas_cumprod = ((root - last) * first / (first - last)) ** 2
    alphas = torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    return 1.0 - alphas
