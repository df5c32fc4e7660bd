"""`synfundus plan`: parameters, memory of a rank, hours, bytes and price of a diffusion run, before it is started.

The network is built on the meta device: nothing is allocated, computed or started.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from synfundus.config.assets import read_ds_file
from synfundus.config.measured import assumed_micro_batch
from synfundus.config.precision import working_precision
from synfundus.config.schema import RunConfig
from synfundus.distributed.ds_config import BatchPlan, check_ds_file, plan_batch
from synfundus.distributed.world import World
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.models.counting import NetworkCount, count_network
from synfundus.stages import Summary, diffusion_setup
from synfundus.stages.trial_step import latent_shape
from synfundus.telemetry.console import Console
from synfundus.training.memory.footprint import (
    GIB,
    GPUS,
    StateBytes,
    checkpoint_bytes,
    latent_set_bytes,
    snapshot_bytes,
    state_bytes,
    step_traffic,
    throughput,
)
from synfundus.training.step_cost import image_flops

USABLE = 0.9
"""Part of a GPU's memory that is planned with: CUDA's context, NCCL's buffers and fragments take the rest."""


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Work out what the run of a config needs, and say it; returns what `work_out` does."""
    del world
    summary = work_out(config, count_denoiser(config))
    _report(config, console, summary)
    return summary


def work_out(config: RunConfig, count: NetworkCount) -> Summary:
    """Return what the run of a config needs. Pure.

    Args:
        config: The run.
        count: Its network, from `count_denoiser`.

    A micro-batch that a run would find at start is taken to be the largest that fits by this arithmetic.

    Returns:
        ``parameters``, ``flops_per_image`` (the model's), ``flops_recomputed``, ``ranks``, ``global_batch_size``,
        ``micro_batch_size``, ``accumulation_steps``, ``memory`` (bytes on the GPU by kind), ``states`` (bytes of the
        model's among them), ``host_memory`` (of a rank's states that are offloaded), ``memory_total``, ``gpu_memory``,
        ``fits``, ``largest_micro_batch_size``, ``mfu``, ``hfu``, ``images_per_s``, ``hours``, ``gpu_hours``, ``cost``,
        ``traffic_bytes`` (a rank sends in a step), ``checkpoint_bytes``,
        ``snapshot_bytes`` (all of a run), ``latent_set_bytes``.
    """
    ranks = config.launch.nodes * (config.launch.procs_per_node or config.launch.gpus_per_node or 1)
    batch = _batch(config, ranks, most=assumed_micro_batch(config.train.loop))
    weight_bytes, averages = _weight_bytes(config), 1 + len(config.train.ema.sigma_rel)
    network = {"parameters": count.parameters, "ranks": ranks, "weight_bytes": weight_bytes}
    states = state_bytes(**network, num_averages=averages)
    if config.train.loop.micro_batch_size == "auto":
        batch = _batch(config, ranks, most=max(1, _largest_micro_batch(config, count, states)))
    gpu, flops = GPUS[config.plan.gpu], image_flops(count)
    time = throughput(
        flops=flops,
        budget_images=config.train.loop.budget_images,
        ranks=ranks,
        peak_flops=gpu.peak(weight_bytes=weight_bytes, tf32=config.train.loop.tf32),
        hfu=config.plan.mfu,
    )
    price = config.plan.price_per_gpu_hour
    return {
        "parameters": count.parameters,
        "flops_per_image": flops.model,
        "flops_recomputed": count.flops_recomputed,
        "ranks": ranks,
        "global_batch_size": batch.global_batch_size,
        "micro_batch_size": batch.micro_batch_size,
        "accumulation_steps": batch.gradient_accumulation_steps,
        **_memory(config, count, batch, states),
        "mfu": time.mfu,
        "hfu": config.plan.mfu,
        "images_per_s": time.images_per_s,
        "hours": time.hours,
        "gpu_hours": time.gpu_hours,
        "cost": None if price is None else price * time.gpu_hours,
        "traffic_bytes": step_traffic(
            **network, gradient_bytes=_gradient_bytes(config), accumulation_steps=batch.gradient_accumulation_steps
        ).total,
        "checkpoint_bytes": checkpoint_bytes(parameters=count.parameters, num_averages=averages),
        "snapshot_bytes": snapshot_bytes(
            parameters=count.parameters,
            num_widths=len(config.train.ema.sigma_rel),
            budget_images=config.train.loop.budget_images,
            every_images=config.train.ema.snapshot_every_images,
        ),
        "latent_set_bytes": latent_set_bytes(
            num_images=config.plan.num_images, latent_shape=_latent_shape(config), with_flip=config.encode_latents.flip
        ),
    }


def _memory(config: RunConfig, count: NetworkCount, batch: BatchPlan, states: StateBytes) -> Summary:
    """Return the part of the summary that is about a rank's memory."""
    buckets = _bucket_bytes(config, _weight_bytes(config))
    on_gpu = _on_gpu(config, states)
    memory = {**asdict(on_gpu), "buckets": buckets, "activations": count.activation_bytes * batch.micro_batch_size}
    # activations and bucket are gone when the gradients are joined, which takes as much again as they do
    total = on_gpu.total + max(memory["buckets"] + memory["activations"], on_gpu.gradients)
    gpu = GPUS[config.plan.gpu]
    usable = int(USABLE * gpu.memory_bytes)
    return {
        "memory": memory,
        "states": on_gpu.total,
        "host_memory": states.total - on_gpu.total,
        "memory_total": total,
        "gpu_memory": gpu.memory_bytes,
        "fits": total <= usable,
        "largest_micro_batch_size": _largest_micro_batch(config, count, states),
    }


def _on_gpu(config: RunConfig, states: StateBytes) -> StateBytes:
    """Return the states that stay on the GPU: with an optimizer on the CPU the weights alone."""
    zero = _ds_document(config)["zero_optimization"]
    if zero.get("offload_optimizer", {}).get("device") != "cpu":
        return states
    return StateBytes(weights=states.weights, gradients=0, masters=0, moments=0, averages=0)


def _largest_micro_batch(config: RunConfig, count: NetworkCount, states: StateBytes) -> int:
    fixed = _on_gpu(config, states).total + _bucket_bytes(config, _weight_bytes(config))
    return max(0, (int(USABLE * GPUS[config.plan.gpu].memory_bytes) - fixed) // count.activation_bytes)


def _batch(config: RunConfig, ranks: int, *, most: int) -> BatchPlan:
    return plan_batch(
        global_batch_size=config.train.loop.global_batch_size, max_micro_batch_size=most, world_size=ranks
    )


def _weight_bytes(config: RunConfig) -> int:
    return 2 if working_precision(config.train.loop.precision, native_bf16=True) == "bf16" else 4


def count_denoiser(config: RunConfig) -> NetworkCount:
    """Count U-Net and conditioner for one image."""
    shape = _latent_shape(config)
    dtype = torch.bfloat16 if _weight_bytes(config) == 2 else torch.float32
    with torch.device("meta"):
        denoiser = (
            diffusion_setup.denoiser(
                config.train.unet, seed=config.seed, schema=DEFAULT_LABEL_SCHEMA, latent_shape=shape
            )
            .to(dtype)
            .train()
        )
        if config.train.loop.gradient_checkpointing:
            denoiser.unet.enable_gradient_checkpointing()
        labels = len(DEFAULT_LABEL_SCHEMA.labels)
        return count_network(
            denoiser,
            torch.empty(1, *shape, dtype=dtype),
            torch.zeros(1, dtype=torch.int64),
            torch.zeros(1, labels, dtype=torch.int64),
        )


def _latent_shape(config: RunConfig) -> tuple[int, int, int]:
    return latent_shape(config.train_vae.autoencoder, image_size_px=config.prepare.image_size_px)


def _ds_document(config: RunConfig) -> dict[str, Any]:
    path, document = read_ds_file(config.launch.ds_config, device="cuda")
    return check_ds_file(document, where=str(path))


def _bucket_bytes(config: RunConfig, weight_bytes: int) -> int:
    """Return the size of the buffer gradients are gathered in before they are reduced."""
    return int(_ds_document(config)["zero_optimization"]["reduce_bucket_size"]) * weight_bytes


def _gradient_bytes(config: RunConfig) -> int:
    """Return the size of a gradient on its way to the other ranks."""
    kind = _ds_document(config).get("communication_data_type")
    return _weight_bytes(config) if kind is None else 4 if kind == "fp32" else 2


def _report(config: RunConfig, console: Console, summary: Summary) -> None:
    memory, ranks, loop = summary["memory"], summary["ranks"], config.train.loop
    found = ", assumed: found at start" if loop.micro_batch_size == "auto" else ""
    shape = " x ".join(map(str, _latent_shape(config)))
    console.table(
        f"{config.plan.gpu} x {ranks}",
        ("what", "how much", "of what"),
        [
            ("parameters", f"{summary['parameters'] / 1e6:,.1f} M", f"U-Net and conditioner, latents {shape}"),
            ("operations", f"{summary['flops_per_image'] / 1e9:,.0f} GFLOP", "an image, forward and backward"),
            ("recomputed", f"{summary['flops_recomputed'] / 1e9:,.0f} GFLOP", "an image, by gradient checkpointing"),
            (
                "batch",
                f"{summary['global_batch_size']:,}",
                f"{ranks} ranks x {summary['accumulation_steps']} steps x {summary['micro_batch_size']} images{found}",
            ),
        ],
    )
    rows = [(name, f"{memory[name] / GIB:.2f} GiB", why) for name, why in _MEMORY.items()]
    total, device = summary["memory_total"] / GIB, summary["gpu_memory"] / GIB
    console.table(
        "memory of a rank under ZeRO-2",
        ("what", "how much", "of what"),
        [*rows, ("all", f"{total:.2f} GiB", f"of {device:.0f} GiB; model states {summary['states'] / GIB:.2f} GiB")],
    )
    if summary["host_memory"]:
        host = summary["host_memory"] * (config.launch.procs_per_node or config.launch.gpus_per_node or 1) / GIB
        console.message(f"states offloaded to the memory of a node: {host:.2f} GiB (launch.ds_config)")
    cost = "" if summary["cost"] is None else f", {summary['cost']:,.0f} at {config.plan.price_per_gpu_hour} an hour"
    console.table(
        f"time, if the GPUs compute at {config.plan.mfu:.0%} of their peak (HFU)",
        ("what", "how much", "of what"),
        [
            ("MFU", f"{summary['mfu']:.1%}", "of the peak: the model's own operations, without what is recomputed"),
            ("rate", f"{summary['images_per_s']:,.0f} images/s", f"{summary['images_per_s'] / ranks:,.1f} a GPU"),
            ("run", f"{summary['hours']:,.1f} h", f"{loop.budget_images:,} images"),
            ("GPU hours", f"{summary['gpu_hours']:,.0f}", f"{ranks} GPUs{cost}"),
            (
                "network",
                f"{summary['traffic_bytes'] / GIB:.2f} GiB",
                "a rank sends a step; its time is not in the above",
            ),
            ("checkpoint", f"{summary['checkpoint_bytes'] / GIB:,.2f} GiB", f"{loop.keep_checkpoints} are kept"),
            *_snapshots(config, summary),
            (
                "latents",
                f"{summary['latent_set_bytes'] / GIB:,.1f} GiB",
                f"{config.plan.num_images:,} images, fp16 moments",
            ),
        ],
    )
    if not summary["fits"]:
        largest = summary["largest_micro_batch_size"]
        advice = f"train.loop.micro_batch_size={largest} fits" if largest else "not even one image fits"
        more = "" if loop.gradient_checkpointing else "; train.loop.gradient_checkpointing=true keeps a fraction of it"
        console.warning(f"{total:.1f} GiB do not fit into {USABLE:.0%} of {device:.0f} GiB: {advice}{more}")


def _snapshots(config: RunConfig, summary: Summary) -> list[tuple[str, str, str]]:
    """Return the line about snapshots of averages, for a run that takes any."""
    if not config.train.ema.sigma_rel:
        return []
    widths = ", ".join(f"{width:g}" for width in config.train.ema.sigma_rel)
    return [("snapshots", f"{summary['snapshot_bytes'] / GIB:,.1f} GiB", f"averages of width {widths}; all are kept")]


_MEMORY = {
    "weights": "wP, on every rank",
    "gradients": "4P/N, fp32",
    "masters": "4P/N, fp32",
    "moments": "8P/N, fp32",
    "averages": "4P/N each, fp32",
    "buckets": "reduce_bucket_size x w",
    "activations": "kept for the backward pass, with a fused attention kernel",
}
