"""`synfundus plan`: parameters, memory per rank, time, disk space and cost of a diffusion run, before it starts.

The network is built on the meta device: nothing is allocated, computed or started.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from synfundus.config.assets import read_ds_file
from synfundus.config.auto import assumed_micro_batch, working_precision
from synfundus.config.diffusion import DiffusionEmaConfig, TrainConfig
from synfundus.config.machine import PlanConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.ds_config import BatchPlan, check_ds_file, plan_batch
from synfundus.distributed.world import World
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.stages import Summary, build
from synfundus.stages.trial_step import latent_shape
from synfundus.telemetry.console import Console
from synfundus.training.memory.footprint import (
    GIB,
    GPUS,
    Gpu,
    StateBytes,
    checkpoint_bytes,
    latent_set_bytes,
    snapshot_bytes,
    state_bytes,
    step_traffic,
    throughput,
)
from synfundus.training.step_cost import NetworkCount, count_network, image_flops

USABLE = 0.9
"""Usable fraction of a GPU's memory: CUDA's context, NCCL's buffers and fragmentation take the rest."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of `train`, with all that its needs depend on.

    Attributes:
        plan: The plan section.
        train: The train section.
        ranks: Number of ranks.
        ranks_per_node: Ranks per node.
        ds_document: Content of its DeepSpeed file.
        weight_bytes: Bytes of a weight.
        latent_shape: ``(c, h, w)`` of a latent.
        with_flip: Whether the latent set also has moments of mirrored images.
        seed: Seed of the run.
    """

    plan: PlanConfig
    train: TrainConfig
    ranks: int
    ranks_per_node: int
    ds_document: dict[str, Any]
    weight_bytes: int
    latent_shape: tuple[int, int, int]
    with_flip: bool
    seed: int

    @classmethod
    def of(cls, config: RunConfig) -> PlannedRun:
        """Build it from a configuration."""
        launch = config.launch
        ranks_per_node = launch.procs_per_node or launch.gpus_per_node or 1
        path, document = read_ds_file(launch.ds_config, device="cuda")
        return cls(
            plan=config.plan,
            train=config.train,
            ranks=launch.nodes * ranks_per_node,
            ranks_per_node=ranks_per_node,
            ds_document=check_ds_file(document, where=str(path)),
            weight_bytes=2 if working_precision(config.train.loop.precision, native_bf16=True) == "bf16" else 4,
            latent_shape=latent_shape(config.train_vae.autoencoder, image_size_px=config.prepare.image_size_px),
            with_flip=config.encode_latents.flip,
            seed=config.seed,
        )

    @property
    def gpu(self) -> Gpu:
        """Return the GPU to plan for."""
        return GPUS[self.plan.gpu]

    @property
    def bucket_bytes(self) -> int:
        """Return the size of the buffer for gradients before their reduction."""
        return int(self.ds_document["zero_optimization"]["reduce_bucket_size"]) * self.weight_bytes

    def batch(self, *, most: int) -> BatchPlan:
        """Split the global batch, with a maximum micro-batch."""
        size = self.train.loop.global_batch_size
        return plan_batch(global_batch_size=size, max_micro_batch_size=most, world_size=self.ranks)

    def on_gpu(self, states: StateBytes) -> StateBytes:
        """Return the states on the GPU: with the optimizer on the CPU only the weights."""
        if self.ds_document["zero_optimization"].get("offload_optimizer", {}).get("device") != "cpu":
            return states
        return StateBytes(weights=states.weights, gradients=0, masters=0, moments=0, averages=0)

    def largest_micro_batch(self, count: NetworkCount, states: StateBytes) -> int:
        """Return the largest micro-batch whose activations fit beside the states."""
        fixed = self.on_gpu(states).total + self.bucket_bytes
        return max(0, (int(USABLE * self.gpu.memory_bytes) - fixed) // count.activation_bytes)


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Estimate and show the needs of a run; returns the result of `work_out`."""
    del world
    planned = PlannedRun.of(config)
    summary = work_out(planned, count_denoiser(planned))
    _report(planned, console, summary)
    return summary


def work_out(planned: PlannedRun, count: NetworkCount) -> Summary:
    """Return the needs of a run. Pure.

    Args:
        planned: The run.
        count: Its network, from `count_denoiser`.

    A micro-batch of `auto` is assumed to be the largest that fits by this arithmetic.

    Returns:
        ``parameters``, ``flops_per_image`` (the model's), ``flops_recomputed``, ``ranks``, ``global_batch_size``,
        ``micro_batch_size``, ``accumulation_steps``, ``memory`` (bytes on the GPU by kind), ``states`` (bytes of the
        model's among them), ``host_memory`` (of a rank's states that are offloaded), ``memory_total``, ``gpu_memory``,
        ``fits``, ``largest_micro_batch_size``, ``mfu``, ``hfu``, ``images_per_s``, ``hours``, ``gpu_hours``, ``cost``,
        ``traffic_bytes`` (a rank sends in a step), ``checkpoint_bytes``,
        ``snapshot_bytes`` (all of a run), ``latent_set_bytes``.
    """
    loop, ema, plan = planned.train.loop, planned.train.ema, planned.plan
    batch = planned.batch(most=assumed_micro_batch(loop))
    averages = 1 + len(ema.sigma_rel)
    network = {"parameters": count.parameters, "ranks": planned.ranks, "weight_bytes": planned.weight_bytes}
    states = state_bytes(**network, num_averages=averages)
    if loop.micro_batch_size == "auto":
        batch = planned.batch(most=max(1, planned.largest_micro_batch(count, states)))
    wire = planned.ds_document.get("communication_data_type")
    gradient_bytes = planned.weight_bytes if wire is None else 4 if wire == "fp32" else 2
    flops = image_flops(count)
    time = throughput(
        flops=flops,
        budget_images=loop.budget_images,
        ranks=planned.ranks,
        peak_flops=planned.gpu.peak(weight_bytes=planned.weight_bytes, tf32=loop.tf32),
        hfu=plan.mfu,
    )
    price = plan.price_per_gpu_hour
    return {
        "parameters": count.parameters,
        "flops_per_image": flops.model,
        "flops_recomputed": count.flops_recomputed,
        "ranks": planned.ranks,
        "global_batch_size": batch.global_batch_size,
        "micro_batch_size": batch.micro_batch_size,
        "accumulation_steps": batch.gradient_accumulation_steps,
        **_memory(planned, count, batch, states),
        "mfu": time.mfu,
        "hfu": plan.mfu,
        "images_per_s": time.images_per_s,
        "hours": time.hours,
        "gpu_hours": time.gpu_hours,
        "cost": None if price is None else price * time.gpu_hours,
        "traffic_bytes": step_traffic(
            **network, gradient_bytes=gradient_bytes, accumulation_steps=batch.gradient_accumulation_steps
        ).total,
        "checkpoint_bytes": checkpoint_bytes(parameters=count.parameters, num_averages=averages),
        "snapshot_bytes": snapshot_bytes(
            parameters=count.parameters,
            num_widths=len(ema.sigma_rel),
            budget_images=loop.budget_images,
            every_images=ema.snapshot_every_images,
        ),
        "latent_set_bytes": latent_set_bytes(
            num_images=plan.num_images, latent_shape=planned.latent_shape, with_flip=planned.with_flip
        ),
    }


def _memory(planned: PlannedRun, count: NetworkCount, batch: BatchPlan, states: StateBytes) -> Summary:
    """Return the summary of a rank's memory."""
    on_gpu, device = planned.on_gpu(states), planned.gpu.memory_bytes
    activations = count.activation_bytes * batch.micro_batch_size
    memory = {**asdict(on_gpu), "buckets": planned.bucket_bytes, "activations": activations}
    # activations and bucket are gone when the gradients are joined, which takes as much again as they do
    total = on_gpu.total + max(memory["buckets"] + memory["activations"], on_gpu.gradients)
    return {
        "memory": memory,
        "states": on_gpu.total,
        "host_memory": states.total - on_gpu.total,
        "memory_total": total,
        "gpu_memory": device,
        "fits": total <= int(USABLE * device),
        "largest_micro_batch_size": planned.largest_micro_batch(count, states),
    }


def count_denoiser(planned: PlannedRun) -> NetworkCount:
    """Count U-Net and conditioner for one image."""
    schema, shape = DEFAULT_LABEL_SCHEMA, planned.latent_shape
    dtype = torch.bfloat16 if planned.weight_bytes == 2 else torch.float32
    with torch.device("meta"):
        denoiser = build.denoiser(planned.train.unet, seed=planned.seed, schema=schema, latent_shape=shape)
        denoiser = denoiser.to(dtype).train()
        if planned.train.loop.gradient_checkpointing:
            denoiser.unet.enable_gradient_checkpointing()
        return count_network(
            denoiser,
            torch.empty(1, *shape, dtype=dtype),
            torch.zeros(1, dtype=torch.int64),
            torch.zeros(1, len(schema.labels), dtype=torch.int64),
        )


def _report(planned: PlannedRun, console: Console, summary: Summary) -> None:
    plan, loop = planned.plan, planned.train.loop
    memory, ranks = summary["memory"], summary["ranks"]
    found = ", assumed: found at start" if loop.micro_batch_size == "auto" else ""
    shape = " x ".join(map(str, planned.latent_shape))
    console.table(
        f"{plan.gpu} x {ranks}",
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
        host = summary["host_memory"] * planned.ranks_per_node / GIB
        console.message(f"states offloaded to the memory of a node: {host:.2f} GiB (launch.ds_config)")
    cost = "" if summary["cost"] is None else f", {summary['cost']:,.0f} at {plan.price_per_gpu_hour} an hour"
    console.table(
        f"time, if the GPUs compute at {plan.mfu:.0%} of their peak (HFU)",
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
            *_snapshots(planned.train.ema, summary),
            (
                "latents",
                f"{summary['latent_set_bytes'] / GIB:,.1f} GiB",
                f"{plan.num_images:,} images, fp16 moments",
            ),
        ],
    )
    if not summary["fits"]:
        largest = summary["largest_micro_batch_size"]
        advice = f"train.loop.micro_batch_size={largest} fits" if largest else "not even one image fits"
        more = "" if loop.gradient_checkpointing else "; train.loop.gradient_checkpointing=true keeps a fraction of it"
        console.warning(f"{total:.1f} GiB do not fit into {USABLE:.0%} of {device:.0f} GiB: {advice}{more}")


def _snapshots(ema: DiffusionEmaConfig, summary: Summary) -> list[tuple[str, str, str]]:
    """Return the row about snapshots, for a run that writes any."""
    if not ema.sigma_rel:
        return []
    widths = ", ".join(f"{width:g}" for width in ema.sigma_rel)
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
