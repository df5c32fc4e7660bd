"""The computation of one training step: from a batch to a loss and named sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from synfundus.diffusion.flow import ForwardProcess
from synfundus.diffusion.parametrisation import PredictionType, check_prediction_type, denoising_loss, training_target
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.autoencoder_objective import AutoencoderObjective
from synfundus.models.pixels import pixels_to_tensor
from synfundus.models.unet import ConditionalDenoiser

TensorBatch = Mapping[str, Tensor]
Sums = dict[str, Tensor]
"""Named sums over samples; ``images`` counts them. The mean of ``x`` is ``x / images``."""

TIMESTEP_BUCKETS = 4


class LatentDiffusionStep(nn.Module):
    """moments -> latents -> noisy latents -> prediction -> loss.

    Args:
        denoiser: The network.
        schedule: Noise schedule or flow.
        prediction_type: What the network predicts.
        min_snr_gamma: Loss weighting; None = plain mean squared error.
        latent_mean: Per-channel mean of the latent set, ``[c]``.
        latent_std: Per-channel standard deviation of the latent set, ``[c]``.
        channels_last: Give the network NHWC memory.
    """

    def __init__(
        self,
        denoiser: ConditionalDenoiser,
        *,
        schedule: ForwardProcess,
        prediction_type: PredictionType,
        min_snr_gamma: float | None,
        latent_mean: Sequence[float],
        latent_std: Sequence[float],
        channels_last: bool,
    ) -> None:
        super().__init__()
        check_prediction_type(prediction_type, schedule)
        self.denoiser = denoiser
        self._schedule = schedule
        self._prediction_type: PredictionType = prediction_type
        self._min_snr_gamma = min_snr_gamma
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # plain attributes, not buffers: the engine casts buffers to bf16
        self._mean = torch.tensor(latent_mean, dtype=torch.float32)[None, :, None, None]
        self._std = torch.tensor(latent_std, dtype=torch.float32)[None, :, None, None]

    def forward(self, batch: TensorBatch, images_seen: int) -> tuple[Tensor, Sums]:
        """Return the loss and its sums.

        The loss divides by the number of slots, so that its mean over micro-batches and ranks is the mean over the
        global batch.

        Args:
            batch: ``moments`` ``[b, 2c, lh, lw]``, ``states``, ``noise``, ``posterior_noise``, ``timestep``,
                ``weights`` ``[b]``.
            images_seen: Images before this step (not used here).
        """
        timestep, noise, weights = batch["timestep"], batch["noise"], batch["weights"]
        latents = LatentAutoencoder.sample_posterior(batch["moments"], batch["posterior_noise"])
        if self._mean.device != latents.device:  # only once: each copy makes the host wait for the GPU
            self._mean, self._std = self._mean.to(latents.device), self._std.to(latents.device)
        x0 = (latents - self._mean) / self._std
        x_t = self._schedule.add_noise(x0, noise, timestep)
        target = training_target(
            x0=x0, noise=noise, timestep=timestep, schedule=self._schedule, prediction_type=self._prediction_type
        )
        x_t = x_t.contiguous(memory_format=self._memory_format)
        prediction = self.denoiser(x_t, timestep, batch["states"])
        errors, _ = denoising_loss(
            prediction=prediction,
            target=target,
            timestep=timestep,
            schedule=self._schedule,
            prediction_type=self._prediction_type,
            min_snr_gamma=self._min_snr_gamma,
            weights=weights,
        )
        weighted = errors * weights
        return weighted.mean(), self._sums(weighted.detach(), weights, timestep)

    def _sums(self, weighted: Tensor, weights: Tensor, timestep: Tensor) -> Sums:
        sums = {"loss": weighted.sum(), "images": weights.sum()}
        # rounding may lift a flow's timestep to the end of the last bucket
        bucket = (timestep * TIMESTEP_BUCKETS // self._schedule.num_timesteps).clamp(max=TIMESTEP_BUCKETS - 1)
        for number in range(TIMESTEP_BUCKETS):
            inside = (bucket == number).to(weights.dtype)
            sums[f"loss_t{number}"] = (weighted * inside).sum()
            sums[f"images_t{number}"] = (weights * inside).sum()
        return sums


class AutoencoderStep(nn.Module):
    """pixels -> reconstruction -> loss.

    Args:
        objective: Autoencoder, optional discriminator and the terms of the loss.
        channels_last: Give the network NHWC memory.
    """

    def __init__(self, objective: AutoencoderObjective, *, channels_last: bool) -> None:
        super().__init__()
        self.objective = objective
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, batch: TensorBatch, images_seen: int) -> tuple[Tensor, Sums]:
        """Return the loss and its sums.

        Args:
            batch: ``pixels`` uint8 ``[b, h, w, 3]``, ``posterior_noise``, ``weights``.
            images_seen: Images before this step; decides whether the discriminator is used.
        """
        weights = batch["weights"]
        pixels = pixels_to_tensor(batch["pixels"]).contiguous(memory_format=self._memory_format)
        loss, parts = self.objective(
            pixels, posterior_noise=batch["posterior_noise"], images_seen=images_seen, weights=weights
        )
        images = weights.sum()
        sums = {name: part.float() * images for name, part in parts.items()}
        return loss, {"loss": loss.detach().float() * len(weights), "images": images, **sums}
