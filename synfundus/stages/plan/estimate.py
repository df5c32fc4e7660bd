"""The needs of the planned chain: memory, time, network, price. Pure arithmetic on counted networks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from synfundus.config.auto import assumed_micro_batch
from synfundus.config.training import LoopConfig
from synfundus.distributed.ds_config import BatchPlan
from synfundus.errors import ConfigError
from synfundus.stages import Summary
from synfundus.stages.plan.planned import Counts, PlannedRun, weight_bytes
from synfundus.training.duration import LAUNCH_S, StepTime, duration, network_s, step_launches
from synfundus.training.memory.footprint import (
    StateBytes,
    checkpoint_bytes,
    latent_set_bytes,
    snapshot_bytes,
    state_bytes,
    step_traffic,
)
from synfundus.training.step_cost import NetworkCount

USABLE = 0.9
"""Usable fraction of a GPU's memory: CUDA's context, NCCL's buffers and fragmentation take the rest."""
GOOD_EFFICIENCY = 0.8
"""The best number of nodes is the largest whose GPUs each do this fraction of what they do on one node."""
MOST_NODES = 64
_ADVERSARIAL_PASSES = 8
"""Forward passes of a discriminator that its part in a step is worth: one and its gradient for the generator, then two
images forward and, at twice that, backward."""


@dataclass(frozen=True)
class _Training:
    """A training of the chain: its loop, its network, the averages of its weights, further operations an image."""

    loop: LoopConfig
    count: NetworkCount
    averages: int
    more_flops: float = 0.0

    @property
    def weight_bytes(self) -> int:
        return weight_bytes(self.loop.precision)


def work_out(planned: PlannedRun, counts: Counts) -> Summary:
    """Return the needs of a chain. Pure.

    A micro-batch of `auto` is assumed to be the largest that fits by this arithmetic.

    Args:
        planned: The chain.
        counts: Its networks, from `count_networks`.

    Returns:
        Of the diffusion training: ``parameters``, ``flops_per_image`` (the model's), ``flops_recomputed``, ``ranks``,
        ``global_batch_size``, ``micro_batch_size``, ``accumulation_steps``, ``memory`` (bytes on the GPU by kind),
        ``states`` (bytes of the model's among them), ``host_memory`` (of a rank's states that are offloaded),
        ``memory_total``, ``gpu_memory``, ``fits``, ``largest_micro_batch_size``, ``hfu`` (while the GPU computes),
        ``mfu`` (of the whole step), ``launches`` (of a micro-batch), ``gpu_s``, ``launching_s``, ``network_s`` (of a
        step), ``images``, ``images_per_s``, ``hours``, ``gpu_hours``, ``cost``, ``traffic_bytes`` (a rank sends in a
        step), ``checkpoint_bytes``; besides ``snapshot_bytes`` (all of a run), ``latent_set_bytes``, ``stages``
        (``hours``, ``gpu_hours``, ``cost`` and more of each), ``total`` (of all stages), ``nodes`` (the training on
        1, 2, 4 .. of them), ``best_nodes``.
    """
    train, plan, ema = planned.train, planned.plan, planned.train.ema
    vae_nodes = replace(planned, nodes=_splitting_nodes(planned, planned.train_vae.loop.global_batch_size))
    training = _Training(train.loop, counts.denoiser, averages=1 + len(ema.sigma_rel))
    summary = _training(planned, training)
    autoencoder = (
        {} if planned.brought_autoencoder else {"train-vae": _training(vae_nodes, _autoencoder(planned, counts))}
    )
    stages = {**autoencoder, "encode-latents": _encoding(planned, counts.encoder), "train": summary}
    nodes = _nodes(planned, training)
    return {
        **summary,
        "snapshot_bytes": snapshot_bytes(
            parameters=counts.denoiser.parameters,
            num_widths=len(ema.sigma_rel),
            budget_images=train.loop.budget_images,
            every_images=ema.snapshot_every_images,
        ),
        "latent_set_bytes": latent_set_bytes(
            num_images=plan.num_images, latent_shape=planned.latent_shape, with_flip=planned.encode.flip
        ),
        "stages": stages,
        "total": {
            key: None if plan.price_per_gpu_hour is None and key == "cost" else sum(one[key] for one in stages.values())
            for key in ("hours", "gpu_hours", "cost")
        },
        "nodes": nodes,
        "best_nodes": max((row["nodes"] for row in nodes if row["efficiency"] >= GOOD_EFFICIENCY), default=1),
    }


def _splitting_nodes(planned: PlannedRun, global_batch_size: int) -> int:
    """Return the most of the planned nodes over which a batch can be split; all if there is no such number."""
    fewer = range(planned.nodes, 0, -1)
    return next((nodes for nodes in fewer if global_batch_size % (nodes * planned.ranks_per_node) == 0), planned.nodes)


def _autoencoder(planned: PlannedRun, counts: Counts) -> _Training:
    """Return the autoencoder's training; the discriminator counts for the part of the budget that it sees."""
    section = planned.train_vae
    budget, start = section.loop.budget_images, section.loss.adversarial_start_images
    share = max(0.0, 1 - start / budget)
    more = 0.0 if counts.discriminator is None else _ADVERSARIAL_PASSES * counts.discriminator.flops_forward * share
    return _Training(section.loop, counts.autoencoder, averages=1, more_flops=more)


def _training(planned: PlannedRun, training: _Training) -> Summary:
    """Return the needs of a training."""
    loop, count = training.loop, training.count
    network = {"parameters": count.parameters, "ranks": planned.ranks, "weight_bytes": training.weight_bytes}
    states = state_bytes(**network, num_averages=training.averages)
    largest = _largest_micro_batch(planned, training, states)
    most = max(1, largest) if loop.micro_batch_size == "auto" else assumed_micro_batch(loop)
    batch = planned.batch(loop, most=most)
    wire = planned.ds_document.get("communication_data_type")
    traffic = step_traffic(
        **network,
        gradient_bytes=training.weight_bytes if wire is None else 4 if wire == "fp32" else 2,
        accumulation_steps=batch.gradient_accumulation_steps,
    ).total
    launches, step = _step(planned, training, batch, traffic)
    rate = loop.global_batch_size / step.total_s
    flops = count.flops_model + training.more_flops
    peak = planned.gpu.peak(weight_bytes=training.weight_bytes, tf32=loop.tf32)
    price = planned.plan.price_per_gpu_hour
    return {
        "parameters": count.parameters,
        "flops_per_image": flops,
        "flops_recomputed": count.flops_recomputed,
        "ranks": planned.ranks,
        "global_batch_size": batch.global_batch_size,
        "micro_batch_size": batch.micro_batch_size,
        "accumulation_steps": batch.gradient_accumulation_steps,
        **_memory(planned, training, batch, states),
        "largest_micro_batch_size": largest,
        "hfu": planned.hfu(training.weight_bytes, tf32=loop.tf32),
        "mfu": flops * rate / (planned.ranks * peak),
        "launches": launches,
        "gpu_s": step.gpu_s,
        "launching_s": step.launching_s,
        "network_s": step.network_s,
        **asdict(duration(images=loop.budget_images, images_per_s=rate, gpus=planned.ranks, price=price)),
        "traffic_bytes": traffic,
        "checkpoint_bytes": checkpoint_bytes(parameters=count.parameters, num_averages=training.averages),
    }


def _step(planned: PlannedRun, training: _Training, batch: BatchPlan, traffic: int) -> tuple[float, StepTime]:
    """Return (launches of a micro-batch, the time of a step)."""
    loop, count = training.loop, training.count
    micro_batch, step = step_launches(
        forward=count.launches_forward,
        recomputed=count.launches_recomputed,
        bundles=count.bundles,
        accumulation_steps=batch.gradient_accumulation_steps,
        ranks=planned.ranks,
        compiled=loop.compile,
    )
    images = loop.global_batch_size / planned.ranks
    flops = (count.flops_hardware + training.more_flops) * images
    return micro_batch, StepTime(
        gpu_s=flops / planned.flops_per_s(training.weight_bytes, tf32=loop.tf32),
        launching_s=step * LAUNCH_S,
        network_s=network_s(
            traffic,
            gpu=planned.gpu,
            nodes=planned.nodes,
            node_bytes_per_s=planned.plan.network_gbit * 1e9 / 8,
        ),
    )


def _encoding(planned: PlannedRun, count: NetworkCount) -> Summary:
    """Return the needs of encoding all images, in fp32 without TF32 unless configured otherwise."""
    section, plan = planned.encode, planned.plan
    weight = weight_bytes(section.precision)
    speed = planned.flops_per_s(weight, tf32=False)
    image_s = max(count.flops_forward / speed, count.launches_forward * LAUNCH_S / section.batch_size)
    images, price = plan.num_images * (1 + section.flip), plan.price_per_gpu_hour
    return {
        "flops_per_image": count.flops_forward,
        "hfu": planned.hfu(weight, tf32=False),
        **asdict(duration(images=images, images_per_s=planned.ranks / image_s, gpus=planned.ranks, price=price)),
    }


def _nodes(planned: PlannedRun, training: _Training) -> list[Summary]:
    """Return the training on 1, 2, 4 .. nodes and on those planned, as far as the batch can be split."""
    rows, one = [], None
    for nodes in sorted({2**power for power in range(MOST_NODES.bit_length())} | {planned.nodes}):
        try:
            needs = _training(replace(planned, nodes=nodes), training)
        except ConfigError:  # not a multiple of the ranks
            continue
        a_gpu = needs["images_per_s"] / needs["ranks"]
        one = one or a_gpu
        row = {key: needs[key] for key in ("hours", "gpu_hours", "cost", "micro_batch_size", "accumulation_steps")}
        step_s = needs["global_batch_size"] / needs["images_per_s"]
        rows.append({"nodes": nodes, **row, "network_share": needs["network_s"] / step_s, "efficiency": a_gpu / one})
    return rows


def _on_gpu(planned: PlannedRun, states: StateBytes) -> StateBytes:
    """Return the states on the GPU: with the optimizer on the CPU only the weights."""
    if planned.ds_document["zero_optimization"].get("offload_optimizer", {}).get("device") != "cpu":
        return states
    return StateBytes(weights=states.weights, gradients=0, masters=0, moments=0, averages=0)


def _bucket_bytes(planned: PlannedRun, training: _Training) -> int:
    """Return the size of the buffer for gradients before their reduction."""
    return int(planned.ds_document["zero_optimization"]["reduce_bucket_size"]) * training.weight_bytes


def _largest_micro_batch(planned: PlannedRun, training: _Training, states: StateBytes) -> int:
    """Return the largest micro-batch whose activations fit beside the states."""
    fixed = _on_gpu(planned, states).total + _bucket_bytes(planned, training)
    return max(0, (int(USABLE * planned.gpu.memory_bytes) - fixed) // training.count.activation_bytes)


def _memory(planned: PlannedRun, training: _Training, batch: BatchPlan, states: StateBytes) -> Summary:
    """Return the summary of a rank's memory."""
    on_gpu, device = _on_gpu(planned, states), planned.gpu.memory_bytes
    activations = training.count.activation_bytes * batch.micro_batch_size
    memory = {**asdict(on_gpu), "buckets": _bucket_bytes(planned, training), "activations": activations}
    # activations and bucket are gone when the gradients are joined, which takes as much again as they do
    total = on_gpu.total + max(memory["buckets"] + memory["activations"], on_gpu.gradients)
    return {
        "memory": memory,
        "states": on_gpu.total,
        "host_memory": states.total - on_gpu.total,
        "memory_total": total,
        "gpu_memory": device,
        "fits": total <= int(USABLE * device),
    }
