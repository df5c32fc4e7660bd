"""UniPC of second order, its coefficients computed on the host: a step waits for no GPU and mixes no images."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor


class UniPCScheduler(UniPCMultistepScheduler):  # type: ignore[misc]
    """A predictor and a corrector of second order, with one call of the network a step.

    diffusers' class takes its coefficients from tensors on the sample's device, and solves a system of equations for
    each step there.

    Source: Zhao et al. 2023, "UniPC" (arXiv 2302.04867), Alg. 1 and 2 with ``B(h) = exp(h) - 1`` (bh2).
    """

    model_outputs: list[Tensor | None]
    last_sample: Tensor | None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Plan the steps; ``timesteps``, descending, replaces the trailing plan if given."""
        super().set_timesteps(num_inference_steps if timesteps is None else len(timesteps), device)
        if timesteps is not None:
            self.timesteps = torch.tensor(timesteps, dtype=torch.int64, device=device)
            levels = ((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5
            self.sigmas = torch.cat([levels[timesteps], torch.zeros(1)])

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> tuple[Tensor]:  # noqa: ANN401
        """Correct the sample by the new prediction, and take one step; returns the next sample in a tuple."""
        if self.step_index is None:
            self._init_step_index(timestep)
        here, x0 = self.step_index, self.convert_model_output(model_output, sample=sample)
        earlier = [one for one in self.model_outputs if one is not None]
        if self.last_sample is not None:
            sample = self._corrected(x0, earlier, self.last_sample)
        self.model_outputs, self.last_sample = [*earlier, x0][-2:], sample
        last = here + 1 == len(self.timesteps)  # of first order, as there is no noise after it
        following = self._moved(sample, x0, here, [] if last else earlier[-1:])
        self._step_index += 1
        return (following,)

    def _moved(self, sample: Tensor, x0: Tensor, here: int, before: list[Tensor]) -> Tensor:
        """Predict the next sample from this one, of second order if there is an earlier prediction."""
        moved, weight, h = self._first_order(here)
        slope: Tensor | float = 0.0
        if before:
            slope = (before[0] - x0) * (0.5 * h / (self._log_snr(here - 1) - self._log_snr(here)))
        return moved * sample - weight * (x0 + slope)

    def _corrected(self, x0: Tensor, earlier: list[Tensor], last_sample: Tensor) -> Tensor:
        """Repeat the last step, now that the prediction at its end is known, with the order it had."""
        start = self.step_index - 1
        moved, weight, h = self._first_order(start)
        before, change = earlier[-1], x0 - earlier[-1]
        if len(earlier) < 2:
            return moved * last_sample - weight * (before + 0.5 * change)
        ratio = (self._log_snr(start - 1) - self._log_snr(start)) / h
        factor = math.expm1(-h)
        first = (factor / -h - 1.0) / factor
        second = 2.0 * ((factor / -h - 1.0) / -h - 0.5) / factor
        # the weights of both differences, a + b = first and ratio a + b = second
        old = (second - first) / (ratio - 1.0)
        return moved * last_sample - weight * (before + (earlier[-2] - before) * (old / ratio) + change * (first - old))

    def _first_order(self, here: int) -> tuple[float, float, float]:
        """Return the factors of sample and prediction in a step of first order, and its length in log SNR."""
        (_, now), (signal, then) = self._scales(here), self._scales(here + 1)
        h = math.inf if then == 0.0 else self._log_snr(here + 1) - self._log_snr(here)
        return then / now, signal * math.expm1(-h), h

    def _scales(self, step: int) -> tuple[float, float]:
        """Return the factors of signal and noise at a step."""
        sigma = float(self.sigmas[step])
        signal = 1.0 - sigma if self.config.use_flow_sigmas else 1.0 / math.sqrt(sigma**2 + 1.0)
        return signal, sigma if self.config.use_flow_sigmas else sigma * signal

    def _log_snr(self, step: int) -> float:
        signal, noise = self._scales(step)
        return math.log(signal) - math.log(noise)
