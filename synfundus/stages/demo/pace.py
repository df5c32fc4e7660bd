"""How fast this machine trains the demo's U-Net: what its budgets are scaled by.

Processors differ by five in the training steps they do in a minute, and the demo promises minutes. So a few steps are
timed before anything else is decided.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from synfundus.config.measured import assumed_channels_last, assumed_micro_batch
from synfundus.config.schema import RunConfig
from synfundus.distributed.ds_config import plan_batch
from synfundus.distributed.world import World, torch_device
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.stages import build, diffusion_setup
from synfundus.training.step import LatentDiffusionStep

_WARM_UP_STEPS = 3
_MIN_STEPS = 5
_SECONDS = 3.0


def measure_pace(config: RunConfig, world: World) -> float:
    """Return the images a second that all ranks together take through forward and backward passes. Collective.

    The config's network and micro-batch on random latents, in its precision. The median step counts, so that a hiccup
    of a shared machine does not; ranks measure at the same time, as they train.

    Args:
        config: A config whose precisions are definite.
        world: The ranks.
    """
    micro_batch = plan_batch(
        global_batch_size=config.train.loop.global_batch_size,
        max_micro_batch_size=assumed_micro_batch(config.train.loop),
        world_size=world.size,
    ).micro_batch_size
    device = torch_device(world)
    channels, edge = config.train_vae.autoencoder.latent_channels, latent_edge(config)
    step = training_step(config, (channels, edge, edge), device)
    batch = random_batch(config, micro_batch, (channels, edge, edge), device)
    for _ in range(_WARM_UP_STEPS):
        _time_step(step, batch, device)
    world.barrier()
    seconds: list[float] = []
    while len(seconds) < _MIN_STEPS or sum(seconds) < _SECONDS:
        seconds.append(_time_step(step, batch, device))
    return world.sum([micro_batch / statistics.median(seconds)])[0]


def latent_edge(config: RunConfig) -> int:
    """Return height and width of the latents that the config's autoencoder makes of its images."""
    autoencoder = config.train_vae.autoencoder
    halvings = len(autoencoder.block_out_channels) - 1
    return (config.prepare.image_size_px // autoencoder.block_size_px) >> halvings


def training_step(config: RunConfig, shape: tuple[int, int, int], device: torch.device) -> LatentDiffusionStep:
    """Build the config's step for latents of a shape, normalised already."""
    denoiser = diffusion_setup.denoiser(
        config.train.unet, seed=config.seed, schema=DEFAULT_LABEL_SCHEMA, latent_shape=shape
    )
    return LatentDiffusionStep(
        denoiser.to(device=device, dtype=build.torch_dtype(config.train.loop.precision)),
        schedule=diffusion_setup.forward_process(config.train.diffusion),
        prediction_type=config.train.diffusion.prediction_type,
        min_snr_gamma=config.train.diffusion.min_snr_gamma,
        latent_mean=[0.0] * shape[0],
        latent_std=[1.0] * shape[0],
        channels_last=assumed_channels_last(config.train.loop),
    )


def random_batch(
    config: RunConfig,
    count: int,
    shape: tuple[int, int, int],
    device: torch.device,
    *,
    num_labels: int = len(DEFAULT_LABEL_SCHEMA.labels),
) -> dict[str, Tensor]:
    """Draw what a step takes, with all labels unknown."""
    generator = torch.Generator().manual_seed(0)

    def draw(channels: int) -> Tensor:
        return torch.randn(count, channels, *shape[1:], generator=generator).to(device)

    return {
        "moments": draw(2 * shape[0]),
        "noise": draw(shape[0]),
        "posterior_noise": draw(shape[0]),
        "timestep": _timesteps(config, count, generator).to(device),
        "states": torch.zeros(count, num_labels, dtype=torch.int64, device=device),
        "weights": torch.ones(count, device=device),
    }


def _timesteps(config: RunConfig, count: int, generator: torch.Generator) -> Tensor:
    """Draw timesteps evenly: whole ones, or the fractions of a flow."""
    end = config.train.diffusion.num_train_timesteps
    if config.train.diffusion.prediction_type == "flow_velocity":
        return torch.rand(count, generator=generator) * end
    return torch.randint(end, (count,), generator=generator)


def _time_step(step: LatentDiffusionStep, batch: dict[str, Tensor], device: torch.device) -> float:
    """Run one forward and backward pass; returns its seconds."""
    began = time.perf_counter()
    step.zero_grad(set_to_none=True)
    loss, _ = step(batch, 0)
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
