"""The loop of plain PyTorch that a good engineer writes by hand: what the engine and `train` are measured against.

The recipe is `train`'s: AdamW in one fused kernel, the gradient's norm clipped, fp32 masters under bf16 weights, an
average of the fp32 weights. Every pass over the parameters is one call for all of them (``torch._foreach_…``); in fp32
there is no second copy of the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from synfundus.config.auto import assumed_channels_last
from synfundus.config.schema import RunConfig
from synfundus.config.training import OptimConfig
from synfundus.diffusion.parametrisation import denoising_loss, training_target
from synfundus.distributed.world import LocalWorld
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.unet import ConditionalDenoiser
from synfundus.stages import build
from synfundus.telemetry.console import SilentConsole
from synfundus.training.ema import ema_decay
from synfundus.training.optim import parameter_groups


class BareUpdate:
    """What follows the backward pass: clip, AdamW, average, and bf16 copies of the masters.

    Args:
        network: In fp32; gets the working type.
        dtype: Working type.
        optim: AdamW's values and the clipping.
    """

    def __init__(self, network: nn.Module, *, dtype: torch.dtype, optim: OptimConfig) -> None:
        groups, decays = parameter_groups(network.named_parameters(), weight_decay=optim.weight_decay)
        self._weights: list[Tensor] = [parameter for group in groups for _, parameter in group]
        self._separate = dtype != torch.float32
        exact = [weight.detach().clone() for weight in self._weights] if self._separate else []
        self._masters: list[Tensor] = [master.requires_grad_() for master in exact] or list(self._weights)
        network.to(dtype)
        places = iter(self._masters)
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [next(places) for _ in group], "weight_decay": decay}
                for group, decay in zip(groups, decays, strict=True)
            ],
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            fused=True,
        )
        self._max_norm = optim.max_grad_norm
        self._averages = [master.detach().clone() for master in self._masters]
        if self._separate:
            for master in self._masters:
                master.grad = torch.empty_like(master)

    @torch.no_grad()
    def __call__(self, decay: float) -> None:
        """Update the weights from their gradients and move the average."""
        if self._separate:
            gradients = [weight.grad for weight in self._weights if weight.grad is not None]
            torch._foreach_copy_([master.grad for master in self._masters if master.grad is not None], gradients)
        torch.nn.utils.clip_grad_norm_(self._masters, self._max_norm)
        self._optimizer.step()
        torch._foreach_lerp_(self._averages, self._masters, 1.0 - decay)
        if self._separate:
            torch._foreach_copy_(self._weights, self._masters)
        for weight in self._weights:
            weight.grad = None


class BareDiffusion:
    """Network, loss and update of latent diffusion; one rank, no accumulation.

    Args:
        config: Network, diffusion, precision and optimizer.
        latent_shape: ``(c, lh, lw)``.
    """

    def __init__(self, config: RunConfig, latent_shape: tuple[int, int, int]) -> None:
        self._config = config
        self.network: ConditionalDenoiser = build.denoiser(
            config.train.unet, seed=config.seed, schema=DEFAULT_LABEL_SCHEMA, latent_shape=latent_shape
        )
        dtype = build.torch_dtype(config.train.loop.precision)
        # the kernel `train` chooses: in bf16 on a CPU diffusers' default is slower
        build.attention(self.network.unet, config.launch, dtype=dtype, world=LocalWorld(), console=SilentConsole())
        self._update = BareUpdate(self.network, dtype=dtype, optim=config.train.optim)
        self._schedule = build.forward_process(config.train.diffusion)
        self._images_seen = 0
        channels_last = assumed_channels_last(config.train.loop)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def step(self, moments: Tensor, states: Tensor) -> None:
        """Train on a batch.

        Args:
            moments: Mean and log-variance of normalised latents, ``[b, 2c, lh, lw]``.
            states: Label states ``[b, k]``.
        """
        section, size = self._config.train.diffusion, len(moments)
        x0 = LatentAutoencoder.sample_posterior(moments, torch.randn_like(moments[:, : moments.shape[1] // 2]))
        noise = torch.randn_like(x0)
        timestep = torch.randint(0, section.num_train_timesteps, (size,))
        common: dict[str, Any] = {
            "timestep": timestep,
            "schedule": self._schedule,
            "prediction_type": section.prediction_type,
        }
        target = training_target(x0=x0, noise=noise, **common)
        x_t = self._schedule.add_noise(x0, noise, timestep).contiguous(memory_format=self._memory_format)
        _, loss = denoising_loss(
            prediction=self.network(x_t, timestep, states),
            target=target,
            min_snr_gamma=section.min_snr_gamma,
            weights=torch.ones(size),
            **common,
        )
        torch.autograd.backward(loss)
        self._images_seen += size
        averages = self._config.train.ema
        self._update(
            ema_decay(
                batch_images=size,
                images_seen=self._images_seen,
                half_life_images=averages.half_life_images,
                rampup_ratio=averages.rampup_ratio,
            )
        )
