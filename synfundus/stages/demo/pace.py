"""How fast this machine trains the demo's U-Net, which scales its budgets.

Processors differ by a factor of five in training steps per minute, and the demo promises minutes. So a few steps are
timed first.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from synfundus.config.auto import assumed_micro_batch
from synfundus.config.diffusion import TrainConfig
from synfundus.distributed.ds_config import plan_batch
from synfundus.distributed.world import World, torch_device
from synfundus.stages.trial_step import random_batch, training_step
from synfundus.training.step import LatentDiffusionStep

_WARM_UP_STEPS = 3
_MIN_STEPS = 5
_SECONDS = 3.0


def measure_pace(section: TrainConfig, shape: tuple[int, int, int], world: World, *, seed: int) -> float:
    """Return the images per second of forward and backward passes, over all ranks. Collective.

    Runs the section's network and micro-batch on random latents, in its precision. The median step counts, so that a
    short disturbance does not; ranks measure at the same time, as they train.

    Args:
        section: The training; its precision is resolved.
        shape: Shape of the latents, ``(c, lh, lw)``.
        world: The ranks.
        seed: Seed of the weights.
    """
    micro_batch = plan_batch(
        global_batch_size=section.loop.global_batch_size,
        max_micro_batch_size=assumed_micro_batch(section.loop),
        world_size=world.size,
    ).micro_batch_size
    device = torch_device(world)
    step = training_step(section, shape, device, seed=seed)
    batch = random_batch(section.diffusion, micro_batch, shape, device)
    for _ in range(_WARM_UP_STEPS):
        _time_step(step, batch, device)
    world.barrier()
    seconds: list[float] = []
    while len(seconds) < _MIN_STEPS or sum(seconds) < _SECONDS:
        seconds.append(_time_step(step, batch, device))
    return world.sum([micro_batch / statistics.median(seconds)])[0]


def _time_step(step: LatentDiffusionStep, batch: dict[str, Tensor], device: torch.device) -> float:
    """Run one forward and backward pass; returns its seconds."""
    began = time.perf_counter()
    step.zero_grad(set_to_none=True)
    loss, _ = step(batch, 0)
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
