"""The guidance interval: users give it in parts of the way from noise to image, the sampler takes noise levels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from synfundus.diffusion.schedule import build_schedule


def sigma_interval(fractions: tuple[float, float], schedule_settings: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the noise levels ``(low, high]`` between two points of the way; None for the whole way.

    The bounds lie half a timestep beside the steps they let in, so that rounding decides nothing. Samplers with other
    spacings than the trailing one (heun) get the same noise levels, hence another number of steps.

    Args:
        fractions: (from, to), 0 = pure noise, 1 = image, of the training timesteps.
        schedule_settings: The training schedule (`build.schedule_settings`).

    Source: Kynkäänniemi et al. 2024, "Applying guidance in a limited interval" (arXiv 2404.07724), Eq. 5.
    """
    start, end = fractions
    if start <= 0.0 and end >= 1.0:
        return None
    schedule = build_schedule(
        kind=schedule_settings["schedule_kind"],
        num_timesteps=schedule_settings["num_timesteps"],
        beta_start=schedule_settings["beta_start"],
        beta_end=schedule_settings["beta_end"],
        zero_terminal_snr=schedule_settings["zero_terminal_snr"],
    )
    signal = schedule.alphas_cumprod.clamp(min=1e-12).numpy()
    log_sigmas = 0.5 * np.log((1.0 - signal) / signal)
    timesteps = np.arange(schedule.num_timesteps)

    def sigma_at(fraction: float) -> float:
        place = schedule.num_timesteps * (1.0 - fraction) - 0.5
        return math.exp(float(np.interp(place, timesteps, log_sigmas)))

    return (0.0 if end >= 1.0 else sigma_at(end), math.inf if start <= 0.0 else sigma_at(start))
