"""Samplers of a flow: they solve ``dx/dt = velocity`` from noise at time 1 to data at time 0.

All pass the network timesteps as in training, ``t * num_train_timesteps`` as a fraction, and step evenly in time before
the shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from synfundus.diffusion.flow import shifted
from synfundus.diffusion.sampler_settings import SamplerName
from synfundus.diffusion.unipc import UniPCScheduler
from synfundus.errors import ConfigError

FlowScheduler: TypeAlias = (
    FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler | DPMSolverMultistepScheduler | UniPCScheduler
)
FLOW_SAMPLERS: tuple[SamplerName, ...] = ("dpmpp", "euler", "heun", "unipc")
_FLOW_CLASSES = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)


def build_flow_scheduler(*, sampler: str, num_timesteps: int, shift: float) -> FlowScheduler:
    """Build a sampler for a network that predicts the flow's velocity.

    ``heun`` calls the network ``2 n - 1`` times in ``n`` steps. ``dpmpp`` and ``unipc`` are of second order with one
    call a step. The first starts at time ``1 - 1 / num_timesteps``, the second a millionth before 1, because the log
    signal-to-noise ratio is infinite at pure noise.

    Raises:
        ConfigError: A sampler that cannot be used for a flow.

    Source: Esser et al. 2024 (arXiv 2403.03206), Eq. 23; Lu et al. 2022, "DPM-Solver++", Alg. 2; Zhao et al. 2023,
    "UniPC" (arXiv 2302.04867), Alg. 1 and 2.
    """
    if sampler == "euler":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=num_timesteps, shift=shift)
    if sampler == "heun":
        return FlowMatchHeunDiscreteScheduler(num_train_timesteps=num_timesteps, shift=shift)
    settings: dict[str, Any] = {
        "num_train_timesteps": num_timesteps,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": shift,
        "solver_order": 2,
    }
    if sampler == "dpmpp":
        return DPMSolverMultistepScheduler(**settings, algorithm_type="dpmsolver++")
    if sampler == "unipc":
        return UniPCScheduler(**settings)
    raise ConfigError(
        f"sampler {sampler!r} cannot draw from a model that predicts flow_velocity",
        hint=f"use one of {', '.join(FLOW_SAMPLERS)}: --sampler, or sample.sampler in the config",
    )


def follows_flow(scheduler: object) -> bool:
    """Whether a scheduler is one of `build_flow_scheduler`."""
    if isinstance(scheduler, (DPMSolverMultistepScheduler, UniPCScheduler)):
        return bool(scheduler.config.use_flow_sigmas)
    return isinstance(scheduler, _FLOW_CLASSES)


def plan_flow_steps(scheduler: FlowScheduler, num_steps: int) -> None:
    """Plan a sampler's steps, the shift applied once.

    diffusers' own plans are not used. Euler's ends with a step of a thousandth of the path; Euler's and Heun's apply
    the shift to a last time that is already shifted; DPM-Solver++ and UniPC round the timesteps they pass to the
    network.
    """
    count = scheduler.config.num_train_timesteps
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / num_steps, num_steps).tolist())
        return
    scheduler.set_timesteps(num_steps)
    if isinstance(scheduler, FlowMatchHeunDiscreteScheduler):
        # the last step, to time 0, is of first order: make it small
        times = shifted(np.linspace(1.0, 1.0 / count, num_steps), scheduler.config.shift)
        inner = np.repeat(times[1:], 2)
        scheduler.sigmas = _tensor([times[0], *inner, 0.0])
        scheduler.timesteps = _tensor([times[0] * count, *inner * count])
        return
    scheduler.timesteps = scheduler.sigmas[:-1] * count


def _tensor(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)
