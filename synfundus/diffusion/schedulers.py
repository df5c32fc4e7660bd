"""diffusers' schedulers for a trained model, and the steps they take.

Timesteps have ``trailing`` spacing, from the last one down, so that a model trained with zero-terminal SNR starts at
the last timestep. All are deterministic maps from the first noise, but ``dpmpp_sde``, which adds more at each step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor

from synfundus.diffusion.flow_schedulers import FlowScheduler, build_flow_scheduler, follows_flow, plan_flow_steps
from synfundus.diffusion.parametrisation import NoisePrediction, check_prediction_type
from synfundus.diffusion.sampler_settings import SamplerName
from synfundus.diffusion.schedule import NoiseSchedule, ScheduleKind, build_schedule
from synfundus.diffusion.unipc import UniPCScheduler
from synfundus.errors import ConfigError

NoiseScheduler: TypeAlias = (
    DDIMScheduler | DPMSolverMultistepScheduler | UniPCScheduler | EulerDiscreteScheduler | HeunDiscreteScheduler
)
Scheduler: TypeAlias = NoiseScheduler | FlowScheduler

_DIFFUSERS_KIND = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
_HEUN_MAX_SIGMA = 80.0
"""Karras et al. 2022, Table 1: where EDM starts. A second-order step from sigma in the thousands is useless."""
_EPSILON_MAX_SIGMA = 20.0
"""Largest noise level at which a predicted noise is turned into a sample: the error grows by this factor."""


class TrailingDDIMScheduler(DDIMScheduler):  # type: ignore[misc]
    """DDIM with eta 0 whose steps end where the next one begins.

    diffusers' class takes ``timestep - num_train_timesteps // num_steps`` as the next timestep. With trailing spacing
    the next one differs if the division has a remainder, and the last step may then end before zero noise.

    Source: Song et al. 2021, "Denoising diffusion implicit models", Eq. 12 with sigma = 0.
    """

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Plan the steps; ``timesteps``, descending, replaces the trailing plan if given."""
        if timesteps is None:
            super().set_timesteps(num_inference_steps, device)
        else:
            self.num_inference_steps = len(timesteps)
            self.timesteps = torch.tensor(timesteps, dtype=torch.int64, device=device)

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> tuple[Tensor]:  # noqa: ANN401
        """Take one step; returns the next sample in a tuple."""
        position = int((self.timesteps == int(timestep)).nonzero()[0])
        now = self.alphas_cumprod[int(timestep)]
        last = position + 1 == len(self.timesteps)
        then = torch.ones_like(now) if last else self.alphas_cumprod[int(self.timesteps[position + 1])]
        a, s = (float(part) for part in (now.sqrt(), (1 - now).sqrt()))  # in fp32, as diffusers: the same bits
        if self.config.prediction_type == "epsilon":
            noise, x0 = model_output, (sample - s * model_output) / a
        elif self.config.prediction_type == "v_prediction":
            noise, x0 = a * model_output + s * sample, a * sample - s * model_output
        else:
            noise, x0 = (sample - a * model_output) / s, model_output
        return (float(then.sqrt()) * x0 + float((1 - then).sqrt()) * noise,)


def scheduler_for(sampler: SamplerName, settings: Mapping[str, Any]) -> Scheduler:
    """Build a sampler for a trained model.

    Args:
        sampler: Name of the sampler.
        settings: The schedule of an export: ``prediction_type`` and the arguments, without the sampler, of
            :func:`build_flow_scheduler` if that is ``flow_velocity``, else of :func:`build_scheduler`.

    Raises:
        ConfigError: The sampler does not fit the model.
    """
    if settings.get("prediction_type") != "flow_velocity":
        return build_scheduler(sampler=sampler, **settings)
    rest = {name: value for name, value in settings.items() if name != "prediction_type"}
    with _numpy_migration_warning_ignored():
        return build_flow_scheduler(sampler=sampler, **rest)


def build_scheduler(
    *,
    sampler: SamplerName,
    schedule_kind: ScheduleKind,
    num_timesteps: int,
    beta_start: float,
    beta_end: float,
    zero_terminal_snr: bool,
    prediction_type: NoisePrediction,
) -> NoiseScheduler:
    """Build the sampler for a training schedule.

    ``heun`` is EDM's: Karras noise levels (rho 7) from at most sigma 80, because a second-order step is only as good as
    its spacing in sigma and diffusers' class does not support zero-terminal SNR. Its timesteps are fractions, and
    in ``n`` steps it calls the network ``2 n - 1`` times.

    Raises:
        ConfigError: An unknown sampler, or a schedule or prediction type that cannot work.

    Source: DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095, Alg. 2; ``dpmpp_sde`` is its SDE-DPM-Solver++(2M)); Karras
    et al. 2022, "Elucidating the design space", Alg. 1 and Eq. 5; UniPC (Zhao et al. 2023, arXiv 2302.04867).
    """
    schedule = build_schedule(
        kind=schedule_kind,
        num_timesteps=num_timesteps,
        beta_start=beta_start,
        beta_end=beta_end,
        zero_terminal_snr=zero_terminal_snr,
    )
    check_prediction_type(prediction_type, schedule)
    settings: dict[str, Any] = {
        "num_train_timesteps": num_timesteps,
        "beta_start": beta_start,
        "beta_end": beta_end,
        "beta_schedule": _DIFFUSERS_KIND[schedule_kind],
        "prediction_type": prediction_type,
        "timestep_spacing": "trailing",
    }
    with _numpy_migration_warning_ignored():
        return _construct(sampler, schedule, settings, zero_terminal_snr=zero_terminal_snr)


def _construct(
    sampler: SamplerName, schedule: NoiseSchedule, settings: dict[str, Any], *, zero_terminal_snr: bool
) -> NoiseScheduler:
    """Construct a sampler's class."""
    if sampler == "heun":
        settings["trained_betas"] = _capped_betas(schedule, max_sigma=_HEUN_MAX_SIGMA)
        return HeunDiscreteScheduler(**settings, use_karras_sigmas=True)
    settings["rescale_betas_zero_snr"] = zero_terminal_snr
    if sampler == "ddim":
        return TrailingDDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=True)
    if sampler in ("dpmpp", "dpmpp_sde"):
        kind = "dpmsolver++" if sampler == "dpmpp" else "sde-dpmsolver++"
        return DPMSolverMultistepScheduler(**settings, algorithm_type=kind, solver_order=2)
    if sampler == "unipc":
        return UniPCScheduler(**settings, solver_order=2)
    if sampler == "euler":
        return EulerDiscreteScheduler(**settings)
    raise ConfigError(f"unknown sampler {sampler!r}", hint=f"one of {', '.join(get_args(SamplerName))}")


def _capped_betas(schedule: NoiseSchedule, *, max_sigma: float) -> list[float]:
    """Return betas of the same schedule with no noise level above ``max_sigma`` (and none infinite)."""
    # A plain clamp would make levels equal, and diffusers divide by zero: let them fall by 1 % in total.
    floor = torch.linspace(1.01, 1.0, schedule.num_timesteps, dtype=torch.float64) / (max_sigma**2 + 1.0)
    alphas_cumprod = schedule.alphas_cumprod.maximum(floor)
    alphas = torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    betas: list[float] = (1.0 - alphas).tolist()
    return betas


def plan_steps(scheduler: Scheduler, num_steps: int) -> None:
    """Plan the steps, below noise levels at which a predicted noise tells nothing about the sample.

    The plan is in the host's memory: whoever reads a timestep that is on a GPU waits for all that was asked of it.
    """
    if follows_flow(scheduler):
        with _numpy_migration_warning_ignored():
            plan_flow_steps(scheduler, num_steps)
        return
    usable = usable_timesteps(scheduler)
    if usable < scheduler.config.num_train_timesteps:
        spaced = np.round(np.arange(usable, 0, -usable / num_steps))[:num_steps].astype(np.int64) - 1
        with _numpy_migration_warning_ignored():
            scheduler.set_timesteps(timesteps=spaced.tolist())
        return
    with _numpy_migration_warning_ignored():
        scheduler.set_timesteps(num_steps)


@contextmanager
def _numpy_migration_warning_ignored() -> Iterator[None]:
    """Silence numpy 2's warning about how diffusers turns a tensor into an array; the values are correct."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array__ implementation doesn't accept a copy keyword")
        yield


def usable_timesteps(scheduler: NoiseScheduler) -> int:
    """Return how many timesteps, from 0 on, have noise levels at which the prediction tells something."""
    if scheduler.config.prediction_type != "epsilon" or isinstance(scheduler, HeunDiscreteScheduler):
        return int(scheduler.config.num_train_timesteps)
    return int((_log_sigmas(scheduler) <= math.log(_EPSILON_MAX_SIGMA)).sum())


def _log_sigmas(scheduler: Scheduler) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the logarithm of noise over signal at each training timestep."""
    alphas_cumprod = scheduler.alphas_cumprod.double().clamp(min=1e-12).numpy()
    return np.asarray(0.5 * np.log((1.0 - alphas_cumprod) / alphas_cumprod))


def share_of_steps(scheduler: Scheduler, strength: float) -> float:
    """Return which share of all steps lies below a share of all timesteps."""
    if follows_flow(scheduler):
        shift = float(getattr(scheduler.config, "flow_shift", None) or scheduler.config.shift)
        return strength / (shift - (shift - 1.0) * strength)
    return min(1.0, strength * int(scheduler.config.num_train_timesteps) / usable_timesteps(scheduler))


def begin_near(scheduler: Scheduler, strength: float) -> int:
    """Let planned steps begin at the one nearest to a share of all timesteps; returns its place among the timesteps."""
    wanted = strength * int(scheduler.config.num_train_timesteps) - (0 if follows_flow(scheduler) else 1)
    calls_a_step = 2 if isinstance(scheduler, (HeunDiscreteScheduler, FlowMatchHeunDiscreteScheduler)) else 1
    first = calls_a_step * int((scheduler.timesteps[::calls_a_step] - wanted).abs().argmin())
    if not isinstance(scheduler, TrailingDDIMScheduler):  # which finds its place by the timestep
        scheduler.set_begin_index(first)
    return first


def noise_level(scheduler: Scheduler, place: int) -> tuple[float, float]:
    """Return the factors of image and noise in what a scheduler holds before the step of a place."""
    if isinstance(scheduler, TrailingDDIMScheduler):
        alphas = float(scheduler.alphas_cumprod[int(scheduler.timesteps[place])])
        return math.sqrt(alphas), math.sqrt(1.0 - alphas)
    sigma = float(scheduler.sigmas[place])
    if follows_flow(scheduler):
        return 1.0 - sigma, sigma
    signal = 1.0 if isinstance(scheduler, (EulerDiscreteScheduler, HeunDiscreteScheduler)) else 1 / math.hypot(1, sigma)
    return signal, sigma * signal


def draws_noise(scheduler: Scheduler) -> bool:
    """Whether a sampler needs fresh noise at each step."""
    return isinstance(scheduler, DPMSolverMultistepScheduler) and scheduler.config.algorithm_type == "sde-dpmsolver++"
