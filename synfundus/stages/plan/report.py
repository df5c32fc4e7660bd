"""What `plan` prints: the answers first, then what they are made of."""

from __future__ import annotations

from synfundus.stages import Summary
from synfundus.stages.plan.estimate import GOOD_EFFICIENCY, USABLE
from synfundus.stages.plan.planned import PlannedRun
from synfundus.telemetry.console import Console
from synfundus.training.duration import COMPILED, LAUNCH_S
from synfundus.training.memory.footprint import GIB

_COLUMNS = ("what", "how much", "of what")
_TRAININGS = ("train-vae", "train")
_MANY_STEPS = 0.2
"""Part of a step that launches or the network may take before a change is proposed."""


def report(planned: PlannedRun, console: Console, summary: Summary) -> None:
    """Show a plan."""
    title = f"{planned.ranks} x {planned.plan.gpu}, nodes: {planned.nodes}"
    console.table(title, _COLUMNS, _answers(planned, summary))
    for line in advice(planned, summary):
        console.message(f"to change: {line}")
    _warn(planned, console, summary)
    console.table(
        "the chain", ("stage", "hours", "GPU hours", "cost", "images/s", "HFU", "of what"), _chain(planned, summary)
    )
    console.table(
        "train on more nodes", ("nodes", "hours", "GPU hours", "cost", "network", "efficiency"), _nodes(summary)
    )
    console.table("a step of train", _COLUMNS, _step(planned, summary))
    memory, total, device = summary["memory"], summary["memory_total"] / GIB, summary["gpu_memory"] / GIB
    rows = [(name, f"{memory[name] / GIB:.2f} GiB", why) for name, why in _MEMORY.items()]
    console.table(
        "memory of a rank of train under ZeRO-2",
        _COLUMNS,
        [*rows, ("all", f"{total:.2f} GiB", f"of {device:.0f} GiB; model states {summary['states'] / GIB:.2f} GiB")],
    )
    if summary["host_memory"]:
        host = summary["host_memory"] * planned.ranks_per_node / GIB
        console.message(f"states offloaded to the memory of a node: {host:.2f} GiB (launch.ds_config)")
    console.table("on disk", _COLUMNS, _disk(planned, summary))


def _answers(planned: PlannedRun, summary: Summary) -> list[tuple[str, str, str]]:
    """Return whether it fits, how long it takes, what it costs, how many nodes are best."""
    total, price = summary["total"], planned.plan.price_per_gpu_hour
    needs = {name: summary["stages"][name] for name in _TRAININGS if name in summary["stages"]}
    memory = [
        (
            f"{name} {'fits' if one['fits'] else 'does not fit'}",
            f"{one['memory_total'] / GIB:.1f} of {one['gpu_memory'] / GIB:.0f} GiB",
            f"a GPU, with micro-batch {one['micro_batch_size']}; {one['largest_micro_batch_size']} fit",
        )
        for name, one in needs.items()
    ]
    gpu_hours = f"{total['gpu_hours']:,.0f} GPU hours"
    return [
        *memory,
        ("time", f"{total['hours']:,.1f} h", f"all stages; train alone {summary['hours']:,.1f} h"),
        (
            "cost",
            *(
                (gpu_hours, "--price makes it a price")
                if price is None
                else (_cost(total["cost"]), f"{gpu_hours} at {price:g}")
            ),
        ),
        (
            "best nodes",
            str(summary["best_nodes"]),
            f"the most on which each GPU does {GOOD_EFFICIENCY:.0%} of what it does on one, in train",
        ),
    ]


def advice(planned: PlannedRun, summary: Summary) -> list[str]:
    """Return what would make the diffusion training faster or cheaper, by the plan's own arithmetic."""
    loop, largest, lines = planned.train.loop, summary["largest_micro_batch_size"], []
    share = summary["global_batch_size"] // summary["ranks"]
    wider = min(largest, share)
    if summary["launching_s"] > summary["gpu_s"]:
        compiled = "" if loop.compile else f", or train.loop.compile=true, which leaves {COMPILED:.0%} of the launches"
        lines.append(
            f"the GPU waits for the host: {1e3 * summary['launching_s']:,.0f} ms of launches for "
            f"{1e3 * summary['gpu_s']:,.0f} ms of work a step; more images a launch "
            f"(train.loop.global_batch_size, micro_batch_size: {largest} fit){compiled}"
        )
    if summary["accumulation_steps"] > 1 and wider > summary["micro_batch_size"]:
        fits = next(size for size in range(wider, 0, -1) if share % size == 0)
        if fits > summary["micro_batch_size"]:
            lines.append(
                f"train.loop.micro_batch_size={fits} fits: {share // fits} instead of {summary['accumulation_steps']} "
                "micro-batches a step, each with its own launches and sum over ranks"
            )
    if planned.nodes > summary["best_nodes"]:
        lines.append(
            f"the network takes {_network_share(summary):.0%} of a step: {summary['best_nodes']} node(s), a larger "
            "train.loop.global_batch_size, or a faster network (plan.network_gbit)"
        )
    return lines


def _network_share(summary: Summary) -> float:
    return float(summary["network_s"] * summary["images_per_s"] / summary["global_batch_size"])


def _cost(cost: float | None) -> str:
    return "-" if cost is None else f"{cost:,.0f}"


def _chain(planned: PlannedRun, summary: Summary) -> list[tuple[str, ...]]:
    """Return a row a stage, and their sum."""
    vae = summary["stages"].get("train-vae")
    fewer = f", on {vae['ranks']} GPUs: its batch" if vae is not None and vae["ranks"] < planned.ranks else ""
    brought, flip = planned.brought_autoencoder, ", and mirrored" if planned.encode.flip else ""
    what = {
        "train-vae": f"{planned.train_vae.loop.precision}, {_tera(vae)}{fewer}",
        "encode-latents": f"{planned.encode.precision}, {_tera(summary['stages']['encode-latents'])}"
        f"{flip}{f', with {brought}' if brought else ''}",
        "train": f"{planned.train.loop.precision}, {_tera(summary)}",
    }
    rows = [
        (
            *(name, f"{one['hours']:,.1f}", f"{one['gpu_hours']:,.0f}", _cost(one["cost"])),
            *(f"{one['images_per_s']:,.0f}", f"{one['hfu']:.0%}", f"{one['images']:,} images, {what[name]}"),
        )
        for name, one in summary["stages"].items()
    ]
    total = summary["total"]
    return [*rows, ("all", f"{total['hours']:,.1f}", f"{total['gpu_hours']:,.0f}", _cost(total["cost"]), "", "", "")]


def _tera(stage: Summary | None) -> str:
    """Return the operations of an image, recomputation included."""
    return (
        ""
        if stage is None
        else f"{(stage['flops_per_image'] + stage.get('flops_recomputed', 0)) / 1e12:.2f} TFLOP each"
    )


def _nodes(summary: Summary) -> list[tuple[str, ...]]:
    return [
        (
            f"{row['nodes']}{' (best)' if row['nodes'] == summary['best_nodes'] else ''}",
            *(f"{row['hours']:,.1f}", f"{row['gpu_hours']:,.0f}", _cost(row["cost"])),
            *(f"{row['network_share']:.0%}", f"{row['efficiency']:.0%}"),
        )
        for row in summary["nodes"]
    ]


def _step(planned: PlannedRun, summary: Summary) -> list[tuple[str, str, str]]:
    """Return what a step of the diffusion training is made of."""
    plan, ranks = planned.plan, summary["ranks"]
    found = ", assumed: found at start" if planned.train.loop.micro_batch_size == "auto" else ""
    where = "inside the node" if planned.nodes == 1 else f"over {plan.network_gbit:g} Gb/s a node"
    used = "plan.mfu" if plan.mfu is not None else planned.gpu.source
    return [
        (
            "batch",
            f"{summary['global_batch_size']:,}",
            f"{ranks} ranks x {summary['accumulation_steps']} steps x {summary['micro_batch_size']} images{found}",
        ),
        ("operations", f"{summary['flops_per_image'] / 1e9:,.0f} GFLOP", "an image, forward and backward"),
        ("recomputed", f"{summary['flops_recomputed'] / 1e9:,.0f} GFLOP", "an image, by gradient checkpointing"),
        ("GPU", f"{1e3 * summary['gpu_s']:,.1f} ms", f"at {summary['hfu']:.1%} of its peak (HFU), {used}"),
        (
            "launches",
            f"{1e3 * summary['launching_s']:,.1f} ms",
            f"at least, on the host meanwhile: {summary['launches']:,.0f} a micro-batch, {1e6 * LAUNCH_S:g} us each",
        ),
        (
            "network",
            f"{1e3 * summary['network_s']:,.1f} ms",
            f"afterwards, {_network_share(summary):.0%} of the step: "
            f"{summary['traffic_bytes'] / GIB:.2f} GiB a rank {where}",
        ),
        ("rate", f"{summary['images_per_s']:,.0f} images/s", f"{summary['images_per_s'] / ranks:,.1f} a GPU"),
        ("MFU", f"{summary['mfu']:.1%}", "of the peak, in the model's own operations, over the whole step"),
    ]


def _disk(planned: PlannedRun, summary: Summary) -> list[tuple[str, str, str]]:
    """Return the sizes of what a run writes."""
    shape, sigma_rel = " x ".join(map(str, planned.latent_shape)), planned.train.ema.sigma_rel
    widths = ", ".join(f"{width:g}" for width in sigma_rel)
    snapshots = f"averages of width {widths}; all are kept"
    return [
        ("parameters", f"{summary['parameters'] / 1e6:,.1f} M", f"U-Net and conditioner, latents {shape}"),
        (
            "checkpoint",
            f"{summary['checkpoint_bytes'] / GIB:,.2f} GiB",
            f"{planned.train.loop.keep_checkpoints} are kept",
        ),
        *([("snapshots", f"{summary['snapshot_bytes'] / GIB:,.1f} GiB", snapshots)] if sigma_rel else []),
        (
            "latents",
            f"{summary['latent_set_bytes'] / GIB:,.1f} GiB",
            f"{planned.plan.num_images:,} images, fp16 moments",
        ),
    ]


def _warn(planned: PlannedRun, console: Console, summary: Summary) -> None:
    """Warn of each training that does not fit."""
    for name, section in (("train-vae", planned.train_vae), ("train", planned.train)):
        needs = summary["stages"].get(name)
        if needs is None or needs["fits"]:
            continue
        key, largest = name.replace("-", "_"), needs["largest_micro_batch_size"]
        total, device = needs["memory_total"] / GIB, needs["gpu_memory"] / GIB
        advised = f"{key}.loop.micro_batch_size={largest} fits" if largest else "not even one image fits"
        more = (
            "" if section.loop.gradient_checkpointing else f"; {key}.loop.gradient_checkpointing=true keeps a fraction"
        )
        console.warning(f"{name}: {total:.1f} GiB do not fit into {USABLE:.0%} of {device:.0f} GiB: {advised}{more}")


_MEMORY = {
    "weights": "wP, on every rank",
    "gradients": "4P/N, fp32",
    "masters": "4P/N, fp32",
    "moments": "8P/N, fp32",
    "averages": "4P/N each, fp32",
    "buckets": "reduce_bucket_size x w",
    "activations": "kept for the backward pass, with a fused attention kernel",
}
