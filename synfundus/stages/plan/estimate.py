"""The needs of the planned chain: memory, time, network, price. Pure arithmetic on counted networks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from synfundus.config.auto import assumed_compile, assumed_micro_batch
from synfundus.config.training import LoopConfig
from synfundus.distributed.ds_config import plan_batch
from synfundus.errors import ConfigError
from synfundus.stages import Summary
from synfundus.stages.build import sampler_settings
from synfundus.stages.plan.planned import Counts, PlannedRun
from synfundus.training.duration import LAUNCH_S, network_s, stage_time, step_launches, step_s
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
    training = _Training(train.loop, counts.denoiser, averages=1 + len(ema.sigma_rel))
    summary = _training(planned, training)
    stages = {"encode-latents": _encoding(planned, counts.encoder), "train": summary}
    if not planned.brought_autoencoder:
        stages = {"train-vae": _autoencoder(planned, counts), **stages}
    if planned.sample.num_images is not None:
        stages["sample"] = _sampling(planned, counts, num_images=planned.sample.num_images)
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


def _autoencoder(planned: PlannedRun, counts: Counts) -> Summary:
    """Return the needs of the autoencoder's training, on the most of the nodes over which its batch can be split.

    The discriminator counts for the part of the budget that it sees.
    """
    section, batch = planned.train_vae, planned.train_vae.loop.global_batch_size
    nodes = (nodes for nodes in range(planned.nodes, 0, -1) if batch % (nodes * planned.ranks_per_node) == 0)
    seen = max(0.0, 1 - section.loss.adversarial_start_images / section.loop.budget_images)
    more = _ADVERSARIAL_PASSES * seen * counts.discriminator.flops_forward if counts.discriminator else 0.0
    training = _Training(section.loop, counts.autoencoder, averages=1, more_flops=more)
    return _training(replace(planned, nodes=next(nodes, planned.nodes)), training)


def _training(planned: PlannedRun, training: _Training) -> Summary:
    """Return the needs of a training."""
    loop, count, width = training.loop, training.count, planned.weight_bytes(training.loop.precision)
    network = {"parameters": count.parameters, "ranks": planned.ranks, "weight_bytes": width}
    states = state_bytes(**network, num_averages=training.averages)
    zero = planned.ds_document["zero_optimization"]
    offloaded = zero.get("offload_optimizer", {}).get("device") == "cpu"
    on_gpu = StateBytes(states.weights, gradients=0, masters=0, moments=0, averages=0) if offloaded else states
    bucket = int(zero["reduce_bucket_size"]) * width
    free = int(USABLE * planned.gpu.memory_bytes) - on_gpu.total - bucket
    largest = max(0, free // count.activation_bytes)
    most = max(1, largest) if loop.micro_batch_size == "auto" else assumed_micro_batch(loop)
    batch = plan_batch(global_batch_size=loop.global_batch_size, max_micro_batch_size=most, world_size=planned.ranks)
    steps, activations = batch.gradient_accumulation_steps, count.activation_bytes * batch.micro_batch_size
    wire = planned.ds_document.get("communication_data_type")
    gradient_bytes = width if wire is None else 4 if wire == "fp32" else 2
    traffic = step_traffic(
        **network,
        gradient_bytes=gradient_bytes,
        accumulation_steps=steps,
        to_owners=not zero.get("use_multi_rank_bucket_allreduce", True),
    ).total
    micro_batch_launches, launches = step_launches(
        forward=count.launches_forward,
        recomputed=count.launches_recomputed,
        bundles=count.bundles,
        accumulation_steps=steps,
        ranks=planned.ranks,
        compiled=assumed_compile(loop, device="cuda"),
    )
    hfu, speed = planned.speed(weight_bytes=width, tf32=loop.tf32)
    flops, share = count.flops_model + training.more_flops, loop.global_batch_size / planned.ranks
    times = {
        "gpu_s": share * (flops + count.flops_recomputed) / speed,
        "launching_s": launches * LAUNCH_S,
        "network_s": network_s(
            traffic, gpu=planned.gpu, nodes=planned.nodes, node_bytes_per_s=planned.plan.network_gbit * 1e9 / 8
        ),
    }
    rate = loop.global_batch_size / step_s(**times)
    price = planned.plan.price_per_gpu_hour
    return {
        "parameters": count.parameters,
        "flops_per_image": flops,
        "flops_recomputed": count.flops_recomputed,
        "ranks": planned.ranks,
        "global_batch_size": batch.global_batch_size,
        "micro_batch_size": batch.micro_batch_size,
        "accumulation_steps": steps,
        **_memory(on_gpu, bucket=bucket, activations=activations, device=planned.gpu.memory_bytes),
        "host_memory": states.total - on_gpu.total,
        "largest_micro_batch_size": largest,
        "precision": loop.precision,
        "hfu": hfu,
        "mfu": flops * rate * hfu / (planned.ranks * speed),
        "launches": micro_batch_launches,
        **times,
        **stage_time(images=loop.budget_images, images_per_s=rate, gpus=planned.ranks, price=price),
        "traffic_bytes": traffic,
        "checkpoint_bytes": checkpoint_bytes(parameters=count.parameters, num_averages=training.averages),
    }


def _encoding(planned: PlannedRun, count: NetworkCount) -> Summary:
    """Return the needs of encoding all images, in fp32 without TF32 unless configured otherwise."""
    section, plan = planned.encode, planned.plan
    hfu, speed = planned.speed(weight_bytes=planned.weight_bytes(section.precision), tf32=section.tf32)
    image_s = max(count.flops_forward / speed, count.launches_forward * LAUNCH_S / section.batch_size)
    images, price = plan.num_images * (1 + section.flip), plan.price_per_gpu_hour
    return {
        "flops_per_image": count.flops_forward,
        "flops_recomputed": 0,
        "precision": section.precision,
        "hfu": hfu,
        **stage_time(images=images, images_per_s=planned.ranks / image_s, gpus=planned.ranks, price=price),
    }


def _sampling(planned: PlannedRun, counts: Counts, *, num_images: int) -> Summary:
    """Return the needs of drawing images: the denoiser in its precision, the decoder in fp32 with TF32."""
    section, settings = planned.sample, sampler_settings(planned.sample)
    calls = 2 * settings.num_steps - 1 if settings.sampler == "heun" else settings.num_steps
    first, last = settings.guidance_interval
    # a guided call computes a second row for each image, and one more for each label with a weight of its own
    rows = [
        settings.guidance_scale != 1,
        *(weight != settings.guidance_scale for weight in planned.sample.guidance_weight.values()),
    ]
    guided = (last - first) * sum(rows)
    denoising = calls * (1 + guided) * counts.denoiser.flops_forward
    decoding = counts.autoencoder.flops_forward - counts.encoder.flops_forward
    hfu, speed = planned.speed(weight_bytes=planned.weight_bytes(section.precision), tf32=True)
    _, decoding_speed = planned.speed(weight_bytes=4, tf32=True)
    launches = calls * counts.denoiser.launches_forward / section.batch_size
    image_s = max(denoising / speed + decoding / decoding_speed, launches * LAUNCH_S)
    price = planned.plan.price_per_gpu_hour
    return {
        "flops_per_image": denoising + decoding,
        "flops_recomputed": 0,
        "precision": section.precision,
        "hfu": hfu,
        "calls": calls,
        **stage_time(images=num_images, images_per_s=planned.ranks / image_s, gpus=planned.ranks, price=price),
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


def _memory(on_gpu: StateBytes, *, bucket: int, activations: int, device: int) -> Summary:
    """Return the summary of a rank's memory."""
    # activations and bucket are gone when the gradients are joined, which takes as much again as they do
    total = on_gpu.total + max(bucket + activations, on_gpu.gradients)
    return {
        "memory": {**asdict(on_gpu), "buckets": bucket, "activations": activations},
        "states": on_gpu.total,
        "memory_total": total,
        "gpu_memory": device,
        "fits": total <= int(USABLE * device),
    }
