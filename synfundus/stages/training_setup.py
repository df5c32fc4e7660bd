"""Parts of a training, built from the config: engine, averages, batch, learning rate, watchdog, kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from synfundus.artifacts.run_changes import record_changes
from synfundus.artifacts.run_folder import RunFolder
from synfundus.config.assets import read_ds_file
from synfundus.config.auto import assumed_compile, definite, definite_channels_last, definite_micro_batch
from synfundus.config.diffusion import TrainConfig
from synfundus.config.machine import LaunchConfig
from synfundus.config.training import EmaConfig, LoopConfig, OptimConfig, TrainVaeConfig, changeable
from synfundus.distributed.agreement import on_rank_0, together
from synfundus.distributed.ds_config import BatchPlan, build_ds_config, check_ds_file, plan_batch
from synfundus.distributed.engine import ZeroEngine
from synfundus.distributed.numerics import only_deterministic_kernels
from synfundus.distributed.watchdog import Watchdog
from synfundus.distributed.world import Device, World, status_store, torch_device
from synfundus.errors import ConfigError
from synfundus.models.compilation import compile_blocks, require_compilation
from synfundus.stages import build
from synfundus.telemetry.console import Console
from synfundus.training.ema import ShardedEma
from synfundus.training.guards import GuardSettings
from synfundus.training.optim import LrPlan, lifted, parameter_groups
from synfundus.training.progress import StepCost
from synfundus.training.step_cost import Kernels, long_run, product_flops_per_s
from synfundus.training.trainer import LoopSettings


def arithmetic(loop: LoopConfig, world: World, console: Console) -> None:
    """Choose deterministic kernels and TF32 on a GPU; call it before any computation."""
    if loop.deterministic and (settled := only_deterministic_kernels(device=world.device)) is not None:
        console.message(settled)
    build.tensor_cores(loop.tf32, world, console, option=f"tf32={str(loop.tf32).lower()}")


def check_compilation(loop: LoopConfig, world: World) -> None:
    """Check that a run with compile=true can compile. Collective.

    Raises:
        ConfigError: On every rank when one cannot.
    """
    if loop.compile is not True:
        return
    with together(world):
        require_compilation(torch_device(world))


def compiled(network: nn.Module, loop: LoopConfig, world: World, console: Console) -> None:
    """Compile a network's repeated blocks if configured, and report it. Collective."""
    if not assumed_compile(loop, device=world.device):
        return
    option = f"compile={str(loop.compile).lower()}"
    if loop.compile == "auto" and (obstacle := _obstacle_to_compilation(world)):
        console.message(f"nothing is compiled ({option}): {obstacle}")
        return
    count = compile_blocks(network, backend="inductor")
    console.message(f"{count} blocks are compiled in the first step ({option}): minutes, once per machine")


def _obstacle_to_compilation(world: World) -> str:
    """Return why a rank cannot compile; empty if all can. Collective."""
    try:
        require_compilation(torch_device(world))
        found = ""
    except ConfigError as error:
        found = error.message
    return next(filter(None, world.all_gather(found)), "")


def kernels(loop: LoopConfig) -> Kernels:
    """Return the kernels of a step, for a resolved precision."""
    return Kernels(
        bf16=definite(loop.precision) == "bf16", tf32=loop.tf32, gradient_checkpointing=loop.gradient_checkpointing
    )


def ds_document(config: LaunchConfig, device: Device) -> dict[str, Any]:
    """Read and check the ds_configs file of a launch section."""
    path, document = read_ds_file(config.ds_config, device=device)
    return check_ds_file(document, where=str(path))


def batch_plan(loop: LoopConfig, world_size: int) -> BatchPlan:
    """Split the global batch of a loop section, for a resolved micro-batch."""
    return plan_batch(
        global_batch_size=loop.global_batch_size, max_micro_batch_size=definite_micro_batch(loop), world_size=world_size
    )


def rank_share(loop: LoopConfig, world_size: int) -> int:
    """Return a rank's images of a global batch."""
    batch = plan_batch(global_batch_size=loop.global_batch_size, max_micro_batch_size=1, world_size=world_size)
    return batch.gradient_accumulation_steps


def lr_plan(optim: OptimConfig, loop: LoopConfig) -> LrPlan:
    """Build the learning-rate plan."""
    return LrPlan(
        peak=optim.lr,
        schedule=optim.schedule,
        warmup_images=optim.warmup_images,
        budget_images=loop.budget_images,
        min_ratio=optim.min_lr_ratio,
        decay_fraction=optim.decay_fraction,
    )


def note_changes(
    directory: RunFolder,
    name: str,
    section: TrainConfig | TrainVaeConfig,
    images_seen: int,
    world: World,
    console: Console,
) -> None:
    """Record and report what a run is resumed with other values of, and whether anything is left. Collective."""
    loop, wanted = section.loop, changeable(section.loop, section.optim, section.ema)
    before, text = on_rank_0(
        lambda: record_changes(directory.url, section=name, wanted=wanted, images_seen=images_seen), world
    )
    if text:
        console.message(text)
    if images_seen >= loop.budget_images:
        console.message(f"already done: {images_seen:,} images are trained, the budget is {loop.budget_images:,}")
        return
    if section.optim.warmup_images >= loop.budget_images:
        console.warning(
            f"the learning rate rises for {section.optim.warmup_images:,} images (warmup_images), the run has "
            f"{loop.budget_images:,}: it never reaches lr"
        )
    then = lr_plan(section.optim.model_copy(update=before["optim"]), loop.model_copy(update=before["loop"]))
    first = images_seen + loop.global_batch_size
    if images_seen and (doubt := lifted(then, lr_plan(section.optim, loop), first)):
        console.warning(doubt)


def warn_of_long_run(cost: StepCost | None, loop: LoopConfig, world: World, console: Console) -> None:
    """Say before it starts what a run on processors would take, where nobody can mean it; rank 0 has the cost."""
    if cost is None or world.device != "cpu":
        return
    rate = world.size * product_flops_per_s(build.torch_dtype(loop.precision))
    doubt = long_run(images=loop.budget_images, flops_per_image=cost.flops_per_image, flops_per_s=rate)
    if doubt:
        console.warning(doubt)


_PART_OF_THE_WAIT = 0.95
"""Fraction of the timeout of a collective: the rank that hangs is named before the others time out."""


def watchdog(loop: LoopConfig, launch: LaunchConfig, world: World) -> Watchdog:
    """Build the watchdog, which ends a job that hangs and prints its stacks, before the other ranks time out."""
    longest = _PART_OF_THE_WAIT * launch.collective_timeout_s if world.size > 1 else math.inf
    return Watchdog(
        rank=world.rank,
        world_size=world.size,
        store=status_store(world),
        limit_s=loop.watchdog_s,
        longest_phase_s=longest,
    )


def loop_settings(loop: LoopConfig, batch: BatchPlan, *, seed: int) -> LoopSettings:
    """Build the trainer's settings."""
    return LoopSettings(
        seed=seed,
        budget_images=loop.budget_images,
        global_batch_size=loop.global_batch_size,
        gradient_accumulation_steps=batch.gradient_accumulation_steps,
        log_every_images=loop.log_every_images,
        guards=GuardSettings(
            on_nonfinite=loop.on_nonfinite,
            on_spike=loop.on_spike,
            spike_factor=loop.spike_factor,
            spike_window_steps=loop.spike_window_steps,
            max_rewinds=loop.max_rewinds,
        ),
        max_bad_fraction=loop.max_bad_fraction,
    )


def engine(
    step: nn.Module,
    trained: nn.Module,
    *,
    loop: LoopConfig,
    optim: OptimConfig,
    launch: LaunchConfig,
    batch: BatchPlan,
    world: World,
) -> ZeroEngine:
    """Put a step module under ZeRO-2. Collective.

    Args:
        step: The module that the engine calls.
        trained: Its part to train; the names of its parameters go into checkpoints.
        loop: Precision and batch.
        optim: Optimizer.
        launch: DeepSpeed file.
        batch: How the global batch is split.
        world: The job.
    """
    groups, decays = parameter_groups(trained.named_parameters(), weight_decay=optim.weight_decay)
    ds_config = build_ds_config(
        ds_document(launch, world.device),
        batch=batch,
        precision=definite(loop.precision),
        max_grad_norm=optim.max_grad_norm,
    )
    return ZeroEngine(
        step.to(torch_device(world)),
        groups=groups,
        weight_decays=decays,
        ds_config=ds_config,
        world=world,
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        channels_last=world.device == "cuda" and definite_channels_last(loop),
    )


def ema(section: EmaConfig, zero: ZeroEngine, *, sigma_rel: Sequence[float] = ()) -> ShardedEma:
    """Build the averages, starting at the engine's weights."""
    return ShardedEma(
        zero.masters(),
        half_life_images=section.half_life_images,
        rampup_ratio=section.rampup_ratio,
        sigma_rel=sigma_rel,
    )
