"""`synfundus plan`: parameters, memory of a rank, hours, bytes and price of a diffusion run, before it is started.

The network is built on the meta device: nothing is allocated, computed or started.
"""

from __future__ import annotations

from dataclasses import asdict

import torch

from synfundus.config.assets import read_ds_file
from synfundus.config.measured import assumed_micro_batch
from synfundus.config.precision import working_precision
from synfundus.config.schema import RunConfig
from synfundus.distributed.ds_config import BatchPlan, check_ds_file, plan_batch
from synfundus.distributed.world import World
from synfundus.jobs import Summary, build
from synfundus.jobs.demo_pace import latent_edge
from synfundus.jobs.step_cost import BACKWARD
from synfundus.models.counting import NetworkCount, count_network
from synfundus.storage.label_schema import DEFAULT_LABEL_SCHEMA
from synfundus.telemetry.console import Console
from synfundus.training.footprint import (
    GIB,
    GPUS,
    StateBytes,
    Throughput,
    checkpoint_bytes,
    latent_set_bytes,
    state_bytes,
    throughput,
)

USABLE = 0.9
"""Part of a GPU's memory that is planned with: CUDA's context, NCCL's buffers and fragments take the rest."""


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Work out what the run of a config needs, and say it.

    A micro-batch that a run would find at start is taken to be the largest that fits by this arithmetic.

    Returns:
        ``parameters``, ``flops_per_image``, ``ranks``, ``micro_batch_size``, ``memory`` (bytes by kind), ``fits``,
        ``largest_micro_batch_size``, ``images_per_s``, ``hours``, ``gpu_hours``, ``cost``, ``checkpoint_bytes``,
        ``latent_set_bytes``.
    """
    del world
    ranks = config.launch.nodes * (config.launch.procs_per_node or config.launch.gpus_per_node or 1)
    batch = _batch(config, ranks, most=assumed_micro_batch(config.loop))
    weight_bytes = 2 if working_precision(config.loop.precision, native_bf16=True) == "bf16" else 4
    count = count_denoiser(config, weight_bytes=weight_bytes)
    averages = 1 + len(config.ema.sigma_rel)
    states = state_bytes(
        parameters=count.parameters,
        ranks=ranks,
        weight_bytes=weight_bytes,
        num_averages=averages,
        accumulation_steps=batch.gradient_accumulation_steps,
    )
    fixed = {**asdict(states), "buckets": _bucket_bytes(config, weight_bytes)}
    gpu, flops = GPUS[config.plan.gpu], count.flops_forward * (1.0 + BACKWARD)
    usable = int(USABLE * gpu.memory_bytes)
    largest = max(0, (usable - sum(fixed.values())) // count.activation_bytes)
    if config.loop.micro_batch_size == "auto":
        batch = _batch(config, ranks, most=max(1, largest))
    memory = {**fixed, "activations": count.activation_bytes * batch.micro_batch_size}
    time = throughput(
        flops_per_image=flops,
        budget_images=config.loop.budget_images,
        ranks=ranks,
        peak_flops=gpu.flops,
        mfu=config.plan.mfu,
    )
    price = config.plan.price_per_gpu_hour
    summary: Summary = {
        "parameters": count.parameters,
        "flops_per_image": flops,
        "ranks": ranks,
        "micro_batch_size": batch.micro_batch_size,
        "memory": memory,
        "memory_total": sum(memory.values()),
        "gpu_memory": gpu.memory_bytes,
        "fits": sum(memory.values()) <= usable,
        "largest_micro_batch_size": largest,
        "images_per_s": time.images_per_s,
        "hours": time.hours,
        "gpu_hours": time.gpu_hours,
        "cost": None if price is None else price * time.gpu_hours,
        "checkpoint_bytes": checkpoint_bytes(parameters=count.parameters, num_averages=averages),
        "latent_set_bytes": latent_set_bytes(
            num_images=config.plan.num_images, latent_shape=_latent_shape(config), with_flip=config.encode.flip
        ),
    }
    _report(config, console, count=count, batch=batch, states=states, time=time, summary=summary)
    return summary


def _batch(config: RunConfig, ranks: int, *, most: int) -> BatchPlan:
    return plan_batch(global_batch_size=config.loop.global_batch_size, max_micro_batch_size=most, world_size=ranks)


def count_denoiser(config: RunConfig, *, weight_bytes: int) -> NetworkCount:
    """Count U-Net and conditioner for one image."""
    shape = _latent_shape(config)
    dtype = torch.bfloat16 if weight_bytes == 2 else torch.float32
    with torch.device("meta"):
        denoiser = build.denoiser(config, schema=DEFAULT_LABEL_SCHEMA, latent_shape=shape).to(dtype).train()
        if config.loop.gradient_checkpointing:
            denoiser.unet.enable_gradient_checkpointing()
        labels = len(DEFAULT_LABEL_SCHEMA.labels)
        return count_network(
            denoiser,
            torch.empty(1, *shape, dtype=dtype),
            torch.zeros(1, dtype=torch.int64),
            torch.zeros(1, labels, dtype=torch.int64),
        )


def _latent_shape(config: RunConfig) -> tuple[int, int, int]:
    edge = latent_edge(config)
    return (config.vae.codec.latent_channels, edge, edge)


def _bucket_bytes(config: RunConfig, weight_bytes: int) -> int:
    """Return the size of the buffer gradients are gathered in before they are reduced."""
    path, document = read_ds_file(config.launch.ds_config, device="cuda")
    zero = check_ds_file(document, where=str(path))["zero_optimization"]
    return int(zero["reduce_bucket_size"]) * weight_bytes


def _report(
    config: RunConfig,
    console: Console,
    *,
    count: NetworkCount,
    batch: BatchPlan,
    states: StateBytes,
    time: Throughput,
    summary: Summary,
) -> None:
    memory, ranks = summary["memory"], batch.world_size
    found = ", assumed: found at start" if config.loop.micro_batch_size == "auto" else ""
    shape = " x ".join(map(str, _latent_shape(config)))
    console.table(
        f"{config.plan.gpu} x {ranks}",
        ("what", "how much", "of what"),
        [
            ("parameters", f"{count.parameters / 1e6:,.1f} M", f"U-Net and conditioner, latents {shape}"),
            ("operations", f"{summary['flops_per_image'] / 1e9:,.0f} GFLOP", "an image, forward and backward"),
            (
                "batch",
                f"{batch.global_batch_size:,}",
                f"{ranks} ranks x {batch.gradient_accumulation_steps} steps x {batch.micro_batch_size} images{found}",
            ),
        ],
    )
    rows = [(name, f"{memory[name] / GIB:.2f} GiB", why) for name, why in _MEMORY.items()]
    total, device = summary["memory_total"] / GIB, summary["gpu_memory"] / GIB
    console.table(
        "memory of a rank under ZeRO-2",
        ("what", "how much", "of what"),
        [*rows, ("all", f"{total:.2f} GiB", f"of {device:.0f} GiB; model states {states.total / GIB:.2f} GiB")],
    )
    cost = "" if summary["cost"] is None else f", {summary['cost']:,.0f} at {config.plan.price_per_gpu_hour} an hour"
    console.table(
        f"time, if {config.plan.mfu:.0%} of the peak arrive",
        ("what", "how much", "of what"),
        [
            ("rate", f"{time.images_per_s:,.0f} images/s", f"{time.images_per_s / ranks:,.1f} a GPU"),
            ("run", f"{time.hours:,.1f} h", f"{config.loop.budget_images:,} images"),
            ("GPU hours", f"{time.gpu_hours:,.0f}", f"{ranks} GPUs{cost}"),
            ("checkpoint", f"{summary['checkpoint_bytes'] / GIB:,.2f} GiB", f"{config.loop.keep_checkpoints} are kept"),
            (
                "latents",
                f"{summary['latent_set_bytes'] / GIB:,.1f} GiB",
                f"{config.plan.num_images:,} images, fp16 moments",
            ),
        ],
    )
    if not summary["fits"]:
        largest = summary["largest_micro_batch_size"]
        advice = f"loop.micro_batch_size={largest} fits" if largest else "not even one image fits"
        more = "" if config.loop.gradient_checkpointing else "; loop.gradient_checkpointing=true keeps a fraction of it"
        console.warning(f"{total:.1f} GiB do not fit into {USABLE:.0%} of {device:.0f} GiB: {advice}{more}")


_MEMORY = {
    "weights": "wP, on every rank",
    "gradients": "4P/N, fp32",
    "masters": "4P/N, fp32",
    "moments": "8P/N, fp32",
    "averages": "4P/N each, fp32",
    "buckets": "reduce_bucket_size x w",
    "activations": "kept for the backward pass, with a fused attention kernel",
}
