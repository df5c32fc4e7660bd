"""Sampling of latents: diffusers' schedulers and guidance; independent of the network.

All samplers are deterministic maps from the initial noise (DDIM with eta 0, DPM-Solver++ 2M, Euler, Heun): a sample
depends on its own noise and labels, never on its batch. Timesteps have ``trailing`` spacing, from the last one down, so
that a model trained with zero-terminal SNR starts at the last timestep.

The samplers of a flow solve ``dx/dt = velocity`` from noise at time 1 to data at time 0. All pass the network timesteps
as in training, ``t * num_train_timesteps`` as a fraction, and step evenly in time before the shift.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)
from jaxtyping import Float, Int
from torch import Tensor

from synfundus.diffusion.flow import shifted
from synfundus.diffusion.parametrisation import NoisePrediction, check_prediction_type
from synfundus.diffusion.schedule import NoiseSchedule, ScheduleKind, build_schedule
from synfundus.errors import ConfigError

FlowScheduler: TypeAlias = (
    FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler | DPMSolverMultistepScheduler
)
SamplerName: TypeAlias = Literal["ddim", "dpmpp", "euler", "heun"]
Denoiser: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(x_t [b c lh lw], timestep [b], states [b k]) -> prediction [b c lh lw]``."""

NoiseScheduler: TypeAlias = DDIMScheduler | DPMSolverMultistepScheduler | EulerDiscreteScheduler | HeunDiscreteScheduler
Scheduler: TypeAlias = NoiseScheduler | FlowScheduler


@dataclass(frozen=True)
class SamplerSettings:
    """How latents are drawn.

    Attributes:
        sampler: Solver.
        num_steps: Solver steps.
        guidance_scale: Classifier-free guidance; 1 turns it off.
        guidance_interval: Part of the timesteps, from the noisy end, in which guidance is on (arXiv 2404.07724).
        guidance_rescale: How far to rescale to the conditional prediction's contrast (arXiv 2305.08891).
    """

    sampler: SamplerName
    num_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    guidance_rescale: float

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> SamplerSettings:
        """Read settings from JSON; raises a ValueError, TypeError or KeyError where they are none."""
        first, last = (float(end) for end in document["guidance_interval"])
        if document["sampler"] not in get_args(SamplerName):
            raise ValueError(f"unknown sampler {document['sampler']!r}")
        scale, rescale = float(document["guidance_scale"]), float(document["guidance_rescale"])
        return cls(document["sampler"], int(document["num_steps"]), scale, (first, last), rescale)


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

    Source: DPM-Solver++ (Lu et al. 2022, Alg. 2); Karras et al. 2022, "Elucidating the design space", Alg. 1 and Eq. 5.
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
    if sampler == "dpmpp":
        return DPMSolverMultistepScheduler(**settings, algorithm_type="dpmsolver++", solver_order=2)
    if sampler == "euler":
        return EulerDiscreteScheduler(**settings)
    raise ConfigError(f"unknown sampler {sampler!r}", hint=f"one of {', '.join(get_args(SamplerName))}")


def sample_latents(
    denoise: Denoiser,
    *,
    initial_noise: Float[Tensor, "b c lh lw"],
    scheduler: Scheduler,
    num_steps: int,
    states: Int[Tensor, "b k"],
    guidance_scale: float,
    guidance_interval: tuple[float, float] | None,
    guidance_rescale: float,
) -> Float[Tensor, "b c lh lw"]:
    """Turn standard normal noise into normalised latents.

    Args:
        denoise: The network: noisy latents, timestep, label states -> prediction of the scheduler's type.
        initial_noise: One keyed draw per sample, unit variance.
        scheduler: From :func:`scheduler_for`; not changed.
        num_steps: Sampler steps.
        states: Label states; UNKNOWN = 0 is the unconditional input of guidance.
        guidance_scale: 1 = the conditional prediction alone (one call a step); above 1 = classifier-free guidance.
        guidance_interval: Part of the timesteps, ``(first, last)`` with 0 = pure noise and 1 = clean, within which
            guidance is on, whatever the steps between them; None = everywhere.
        guidance_rescale: 0 to 1: how far the guided prediction is rescaled to the conditional one's standard deviation.

    Raises:
        ConfigError: Steps, guidance or interval out of range.

    Source: Ho and Salimans 2021, Eq. 6; Kynkäänniemi et al. 2024 (interval); Lin et al. 2023, Eq. 15-16 (rescale).
    """
    _check_sampling(scheduler, num_steps, guidance_scale, guidance_interval, guidance_rescale)
    scheduler = copy.deepcopy(scheduler)
    _set_timesteps(scheduler, num_steps)
    first, last = guidance_interval if guidance_interval is not None else (0.0, 1.0)
    null_states = torch.zeros_like(states)
    flow = follows_flow(scheduler)
    x_t = initial_noise.float() if flow else initial_noise.float() * float(scheduler.init_noise_sigma)
    noisiest = scheduler.config.num_train_timesteps - (0 if flow else 1)
    for timestep in scheduler.timesteps:
        model_input = x_t if flow else scheduler.scale_model_input(x_t, timestep)
        rows = torch.full((len(x_t),), timestep.item(), dtype=timestep.dtype, device=x_t.device)
        progress = 1.0 - float(timestep) / noisiest
        if guidance_scale == 1.0 or not first <= progress <= last:
            prediction = denoise(model_input, rows, states).float()
        else:
            both = denoise(
                torch.cat([model_input, model_input]), torch.cat([rows, rows]), torch.cat([states, null_states])
            )
            conditional, unconditional = both.float().chunk(2)
            prediction = guide(conditional, unconditional, scale=guidance_scale, rescale=guidance_rescale)
        x_t = scheduler.step(prediction, timestep, x_t, return_dict=False)[0]
    return x_t


def guide(
    conditional: Float[Tensor, "b c lh lw"], unconditional: Float[Tensor, "b c lh lw"], *, scale: float, rescale: float
) -> Float[Tensor, "b c lh lw"]:
    """Extrapolate from the unconditional through the conditional prediction.

    Source: Ho and Salimans 2021, "Classifier-free diffusion guidance", Eq. 6; Lin et al. 2023, Eq. 15-16.
    """
    guided = unconditional + scale * (conditional - unconditional)
    if rescale == 0.0:
        return guided
    axes = tuple(range(1, guided.ndim))
    factor = conditional.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return rescale * (guided * factor) + (1.0 - rescale) * guided  # in diffusers' order: the same bits


def _capped_betas(schedule: NoiseSchedule, *, max_sigma: float) -> list[float]:
    """Return betas of the same schedule with no noise level above ``max_sigma`` (and none infinite)."""
    # A plain clamp would make levels equal, and diffusers divide by zero: let them fall by 1 % in total.
    floor = torch.linspace(1.01, 1.0, schedule.num_timesteps, dtype=torch.float64) / (max_sigma**2 + 1.0)
    alphas_cumprod = schedule.alphas_cumprod.maximum(floor)
    alphas = torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    betas: list[float] = (1.0 - alphas).tolist()
    return betas


def _set_timesteps(scheduler: Scheduler, num_steps: int) -> None:
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


def usable_timesteps(scheduler: NoiseScheduler) -> int:
    """Return how many timesteps, from 0 on, have noise levels at which the prediction tells something."""
    if scheduler.config.prediction_type != "epsilon" or isinstance(scheduler, HeunDiscreteScheduler):
        return int(scheduler.config.num_train_timesteps)
    return int((_log_sigmas(scheduler) <= math.log(_EPSILON_MAX_SIGMA)).sum())


@contextmanager
def _numpy_migration_warning_ignored() -> Iterator[None]:
    """Silence numpy 2's warning about how diffusers turns a tensor into an array; the values are correct."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array__ implementation doesn't accept a copy keyword")
        yield


def _log_sigmas(scheduler: Scheduler) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the logarithm of noise over signal at each training timestep."""
    alphas_cumprod = scheduler.alphas_cumprod.double().clamp(min=1e-12).numpy()
    return np.asarray(0.5 * np.log((1.0 - alphas_cumprod) / alphas_cumprod))


def _check_sampling(
    scheduler: Scheduler,
    num_steps: int,
    guidance_scale: float,
    guidance_interval: tuple[float, float] | None,
    guidance_rescale: float,
) -> None:
    """Refuse values out of range."""
    if not 1 <= num_steps <= scheduler.config.num_train_timesteps:
        raise ConfigError(f"{num_steps} sampler steps: 1 to {scheduler.config.num_train_timesteps} are possible")
    if guidance_scale < 0.0 or not math.isfinite(guidance_scale):
        raise ConfigError(f"guidance_scale {guidance_scale} must be 0 or more; 1 = no guidance")
    if not 0.0 <= guidance_rescale <= 1.0:
        raise ConfigError(f"guidance_rescale {guidance_rescale} must lie between 0 and 1")
    if guidance_interval is not None and not 0.0 <= guidance_interval[0] < guidance_interval[1] <= 1.0:
        raise ConfigError(f"guidance_interval {guidance_interval} must be (first, last) with 0 <= first < last <= 1")


FLOW_SAMPLERS: tuple[SamplerName, ...] = ("dpmpp", "euler", "heun")
_FLOW_CLASSES = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)


def build_flow_scheduler(*, sampler: str, num_timesteps: int, shift: float) -> FlowScheduler:
    """Build a sampler for a network that predicts the flow's velocity.

    ``heun`` calls the network ``2 n - 1`` times in ``n`` steps. ``dpmpp`` is of second order with one call a step: it
    starts at time ``1 - 1 / num_timesteps``, because its log signal-to-noise ratio is infinite at pure noise.

    Raises:
        ConfigError: A sampler that cannot be used for a flow.

    Source: Esser et al. 2024 (arXiv 2403.03206), Eq. 23; Lu et al. 2022, "DPM-Solver++", Alg. 2.
    """
    if sampler == "euler":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=num_timesteps, shift=shift)
    if sampler == "heun":
        return FlowMatchHeunDiscreteScheduler(num_train_timesteps=num_timesteps, shift=shift)
    if sampler == "dpmpp":
        return DPMSolverMultistepScheduler(
            num_train_timesteps=num_timesteps,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=shift,
            algorithm_type="dpmsolver++",
            solver_order=2,
        )
    raise ConfigError(
        f"sampler {sampler!r} cannot draw from a model that predicts flow_velocity",
        hint=f"use one of {', '.join(FLOW_SAMPLERS)}: --sampler, or sample.sampler in the config",
    )


def follows_flow(scheduler: object) -> bool:
    """Whether a scheduler is one of `build_flow_scheduler`."""
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        return bool(scheduler.config.use_flow_sigmas)
    return isinstance(scheduler, _FLOW_CLASSES)


def plan_flow_steps(scheduler: FlowScheduler, num_steps: int) -> None:
    """Plan a sampler's steps, the shift applied once.

    diffusers' own plans are not used. Euler's ends with a step of a thousandth of the path; Euler's and Heun's apply
    the shift to a last time that is already shifted; DPM-Solver++ rounds the timesteps it passes to the network.
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
