"""Construction: a section of the config becomes an object. Shared by all jobs: each thing is built in one way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from synfundus.artifacts.run_folder import SaverSettings
from synfundus.config.assets import read_ds_file
from synfundus.config.machine import LaunchConfig
from synfundus.config.measured import definite_micro_batch
from synfundus.config.precision import definite
from synfundus.config.training import AutoencoderConfig, EmaConfig, LoopConfig, OptimConfig, Precision
from synfundus.distributed.agreement import together
from synfundus.distributed.determinism import only_deterministic_kernels
from synfundus.distributed.ds_config import BatchPlan, build_ds_config, check_ds_file, plan_batch
from synfundus.distributed.engine import ZeroEngine
from synfundus.distributed.tensor_cores import set_tf32
from synfundus.distributed.watchdog import Watchdog
from synfundus.distributed.world import Device, World, status_store, torch_device
from synfundus.errors import ConfigError
from synfundus.models.attention import agreed_attention, apply_attention, choose_attention, head_dims
from synfundus.models.autoencoder import LatentAutoencoder, build_autoencoder
from synfundus.models.compilation import compile_blocks, require_compilation
from synfundus.seeding import derive_key
from synfundus.telemetry.console import Console
from synfundus.training.ema import ShardedEma
from synfundus.training.guards import GuardSettings
from synfundus.training.loop_state import LoopSettings
from synfundus.training.optim import LrPlan, parameter_groups
from synfundus.training.step_cost import Kernels

DISCRIMINATOR_CHANNELS = 64


def require(value: str | None, *, flag: str, key: str) -> str:
    """Return a path the verb cannot do without.

    Raises:
        ConfigError: It was not given.
    """
    if value is None:
        raise ConfigError(f"{flag} is missing", where=key, hint=f"give {flag}, or set {key} in the config")
    return value


def torch_dtype(precision: Precision) -> torch.dtype:
    """Return the working type of a precision.

    Raises:
        ConfigError: It is ``auto``, see `definite`.
    """
    return torch.bfloat16 if definite(precision) == "bf16" else torch.float32


def autoencoder(section: AutoencoderConfig, *, image_size_px: int, seed: int) -> LatentAutoencoder:
    """Build an autoencoder with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(seed, "init", "codec") % 2**63)
        return build_autoencoder(
            image_size_px=image_size_px,
            latent_channels=section.latent_channels,
            block_out_channels=section.block_out_channels,
            block_size_px=section.block_size_px,
            layers_per_block=section.layers_per_block,
            norm_num_groups=section.norm_num_groups,
            mid_block_attention=section.mid_block_attention,
            linear_path=section.linear_path,
        )


def attention(model: Any, config: LaunchConfig, *, dtype: torch.dtype, world: World, console: Console) -> None:  # noqa: ANN401 - a diffusers model
    """Choose the attention kernel of a model, the same on all ranks, install it and say which. Collective.

    Raises:
        ConfigError: On every rank when one cannot use the kernel that was asked for.
    """
    widths = head_dims(model)
    if not widths:
        return
    with together(world):
        device = torch_device(world)
        # the backward pass of xformers adds in an order that depends on timing
        exact = config.attention == "auto" and torch.are_deterministic_algorithms_enabled()
        requested = "sdpa" if exact else config.attention
        if requested == "xformers" and torch.are_deterministic_algorithms_enabled():
            console.warning("launch.attention=xformers may give other bits each time, also with deterministic=true")
        choice = choose_attention(requested=requested, head_dims=widths, dtype=dtype, device=device)
    choice = agreed_attention(world.all_gather(choice))
    apply_attention(model, choice)
    console.message(f"attention of {type(model).__name__}: {choice.backend} ({choice.reason})")


def arithmetic(loop: LoopConfig, world: World, console: Console) -> None:
    """Settle which kernels of a GPU a run computes with; call it before anything is computed."""
    if loop.deterministic and (settled := only_deterministic_kernels(device=world.device)) is not None:
        console.message(settled)
    tensor_cores(loop.tf32, world, console, option=f"tf32={str(loop.tf32).lower()}")


def tensor_cores(wanted: bool, world: World, console: Console, *, option: str = "") -> None:
    """Settle how a GPU multiplies fp32 numbers and say it; on a CPU there is nothing to settle or to say."""
    settled = set_tf32(wanted, device=world.device, option=option)
    if settled is not None:
        console.message(settled)


def check_compilation(loop: LoopConfig, world: World) -> None:
    """Make sure that a run which compiles can. Collective.

    Raises:
        ConfigError: On every rank when the machine of one cannot.
    """
    if not loop.compile:
        return
    with together(world):
        require_compilation(torch_device(world))


def compiled(network: nn.Module, loop: LoopConfig, console: Console) -> None:
    """Have a network's repeated blocks compiled if the run asks for it, and say it."""
    if loop.compile:
        count = compile_blocks(network, backend="inductor")
        console.message(f"{count} blocks are compiled in the first step (compile=true): minutes, once a machine")


def kernels(loop: LoopConfig) -> Kernels:
    """Return how a step of a loop section, whose precision is settled, is computed."""
    return Kernels(
        bf16=definite(loop.precision) == "bf16", tf32=loop.tf32, gradient_checkpointing=loop.gradient_checkpointing
    )


def ds_document(config: LaunchConfig, device: Device) -> dict[str, Any]:
    """Read and check the ds_configs file of a launch section."""
    path, document = read_ds_file(config.ds_config, device=device)
    return check_ds_file(document, where=str(path))


def batch_plan(loop: LoopConfig, world_size: int) -> BatchPlan:
    """Spread the global batch of a loop section, whose micro-batch is settled."""
    return plan_batch(
        global_batch_size=loop.global_batch_size,
        max_micro_batch_size=definite_micro_batch(loop),
        world_size=world_size,
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
    )


_PART_OF_THE_WAIT = 0.95
"""Of the longest wait for another rank, so that the one that stands still is named first."""


def watchdog(loop: LoopConfig, launch: LaunchConfig, world: World) -> Watchdog:
    """Build what ends the job when nothing moves, with its stacks: before the wait of the other ranks is over."""
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


def saver_settings(loop: LoopConfig, launch: LaunchConfig) -> SaverSettings:
    """Return how a run keeps and writes its checkpoints."""
    return SaverSettings(
        keep=loop.keep_checkpoints,
        in_background=loop.async_checkpoints,
        timeout_s=launch.collective_timeout_s,
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
        step: What the engine calls.
        trained: The part of it whose parameters are trained, and whose names go into checkpoints.
        loop: Precision and batch.
        optim: Optimizer.
        launch: DeepSpeed file.
        batch: How the global batch is spread.
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
    )


def ema(section: EmaConfig, zero: ZeroEngine, *, sigma_rel: Sequence[float] = ()) -> ShardedEma:
    """Start averages at the engine's weights."""
    return ShardedEma(
        zero.masters(),
        half_life_images=section.half_life_images,
        rampup_ratio=section.rampup_ratio,
        sigma_rel=sigma_rel,
    )
