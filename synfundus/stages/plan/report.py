"""What `plan` prints: the answers first, then what they are made of."""

from __future__ import annotations

from synfundus.config.auto import assumed_compile
from synfundus.stages import Summary
from synfundus.stages.plan.estimate import GOOD_EFFICIENCY, USABLE
from synfundus.stages.plan.planned import PlannedRun
from synfundus.stages.rehearsal import has_autoencoder
from synfundus.storage import filesystem
from synfundus.telemetry.console import Console
from synfundus.training.duration import COMPILED, LAUNCH_S
from synfundus.training.memory.footprint import GIB

_COLUMNS = ("what", "how much", "of what")
_COSTS = ("hours", "GPU hours", "cost")
_TRAININGS = ("train-vae", "train")
Row = tuple[str, ...]


def report(planned: PlannedRun, console: Console, summary: Summary) -> None:
    """Show a plan."""
    console.table(f"{planned.ranks} x {planned.plan.gpu}, nodes: {planned.nodes}", _COLUMNS, _answers(planned, summary))
    for line in advice(planned, summary):
        console.message(f"to change: {line}")
    _warn(planned, console, summary)
    console.table("the chain", ("stage", *_COSTS, "images/s", "HFU", "of what"), _chain(planned, summary))
    best = summary["best_nodes"]
    nodes = [
        (
            *(f"{row['nodes']}{' (best)' if row['nodes'] == best else ''}", *_costs(row)),
            *(f"{row['network_share']:.0%}", f"{row['efficiency']:.0%}"),
        )
        for row in summary["nodes"]
    ]
    console.table("train on more nodes", ("nodes", *_COSTS, "network", "efficiency"), nodes)
    console.table("a step of train", _COLUMNS, _step(planned, summary))
    rows = [(name, _gib(summary["memory"][name]), why) for name, why in _MEMORY.items()]
    whole = f"of {_gib(summary['gpu_memory'])}; model states {_gib(summary['states'])}"
    console.table(
        "memory of a rank of train under ZeRO-2", _COLUMNS, [*rows, ("all", _gib(summary["memory_total"]), whole)]
    )
    if summary["host_memory"]:
        host = _gib(summary["host_memory"] * planned.ranks_per_node)
        console.message(f"states offloaded to the memory of a node: {host} (launch.ds_config)")
    console.table("on disk", _COLUMNS, _disk(planned, summary))


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms"


def _costs(stage: Summary) -> Row:
    """Return hours, GPU hours and cost."""
    cost = stage["cost"]
    return f"{stage['hours']:,.1f}", f"{stage['gpu_hours']:,.0f}", "-" if cost is None else f"{cost:,.0f}"


def _network_share(summary: Summary) -> str:
    return f"{summary['network_s'] * summary['images_per_s'] / summary['global_batch_size']:.0%}"


def _answers(planned: PlannedRun, summary: Summary) -> list[Row]:
    """Return whether it fits, how long it takes, what it costs, how many nodes are best."""
    hours, gpu_hours, cost = _costs(summary["total"])
    price = planned.plan.price_per_gpu_hour
    needs = {name: summary["stages"][name] for name in _TRAININGS if name in summary["stages"]}
    memory = [
        (
            f"{name} {'fits' if one['fits'] else 'does not fit'}",
            f"{one['memory_total'] / GIB:.1f} of {one['gpu_memory'] / GIB:.0f} GiB",
            f"a GPU, with micro-batch {one['micro_batch_size']}; {one['largest_micro_batch_size']} fit",
        )
        for name, one in needs.items()
    ]
    paid = "(--price makes it a price)" if price is None else f"{gpu_hours} GPU hours at {price:g}"
    rule = f"the most on which a GPU of train does {GOOD_EFFICIENCY:.0%} of what it does on one"
    return [
        *memory,
        ("time", f"{hours} h", f"all stages; train alone {summary['hours']:,.1f} h"),
        ("cost", f"{gpu_hours} GPU hours" if price is None else cost, paid),
        ("best nodes", str(summary["best_nodes"]), rule),
    ]


def advice(planned: PlannedRun, summary: Summary) -> list[str]:
    """Return what would make the diffusion training faster or cheaper, by the plan's own arithmetic."""
    loop, largest, lines = planned.train.loop, summary["largest_micro_batch_size"], []
    share, steps = summary["global_batch_size"] // summary["ranks"], summary["accumulation_steps"]
    if summary["launching_s"] > summary["gpu_s"]:
        compiles = assumed_compile(loop, device="cuda")
        compiled = "" if compiles else f", or train.loop.compile=true, which leaves {COMPILED:.0%} of the launches"
        lines.append(
            f"the GPU waits for the host: {_ms(summary['launching_s'])} of launches for {_ms(summary['gpu_s'])} of "
            f"work a step; larger train.loop.micro_batch_size, global_batch_size ({largest} images fit a GPU){compiled}"
        )
    fits = next(size for size in range(max(1, min(largest, share)), 0, -1) if share % size == 0)
    if share // fits < steps:
        lines.append(
            f"train.loop.micro_batch_size={fits} fits: {share // fits} instead of {steps} micro-batches a step, each "
            "with its own launches and sum over ranks"
        )
    if planned.nodes > summary["best_nodes"]:
        lines.append(
            f"the network takes {_network_share(summary)} of a step: {summary['best_nodes']} node(s), a larger "
            "train.loop.global_batch_size, or a faster network (plan.network_gbit)"
        )
    return lines


def _chain(planned: PlannedRun, summary: Summary) -> list[Row]:
    """Return a row a stage, and their sum."""
    stages, brought = summary["stages"], planned.brought_autoencoder
    fewer = stages.get("train-vae", summary)["ranks"] < planned.ranks
    more = {
        "train-vae": f", on {stages['train-vae']['ranks']} GPUs: its batch" if fewer else "",
        "sample": f", {stages['sample']['calls']} calls of the network" if "sample" in stages else "",
        "encode-latents": f"{', also mirrored' * planned.encode.flip}{f', with {brought}' if brought else ''}",
    }
    rows = [
        (
            *(name, *_costs(one), f"{one['images_per_s']:,.0f}", f"{one['hfu']:.0%}"),
            f"{one['images']:,} images, {one['precision']}, "
            f"{(one['flops_per_image'] + one['flops_recomputed']) / 1e12:.2f} TFLOP each{more.get(name, '')}",
        )
        for name, one in stages.items()
    ]
    return [*rows, ("all", *_costs(summary["total"]), "", "", "")]


def _step(planned: PlannedRun, summary: Summary) -> list[Row]:
    """Return what a step of the diffusion training is made of."""
    plan, ranks, again = planned.plan, summary["ranks"], summary["flops_recomputed"] / 1e9
    repeated = f", and {again:,.0f} recomputed (gradient checkpointing)" if again else ""
    found = ", assumed: found at start" if planned.train.loop.micro_batch_size == "auto" else ""
    spread = f"{ranks} ranks x {summary['accumulation_steps']} steps x {summary['micro_batch_size']} images{found}"
    used = planned.gpu.source if plan.mfu is None else "plan.mfu"
    launches = f"{summary['launches']:,.0f} a micro-batch, {1e6 * LAUNCH_S:g} us each"
    where = "inside the node" if planned.nodes == 1 else f"over {plan.network_gbit:g} Gb/s a node"
    sent = f"{_network_share(summary)} of the step: {_gib(summary['traffic_bytes'])} a rank {where}"
    return [
        ("batch", f"{summary['global_batch_size']:,}", spread),
        ("operations", f"{summary['flops_per_image'] / 1e9:,.0f} GFLOP", f"an image, forward and backward{repeated}"),
        ("GPU", _ms(summary["gpu_s"]), f"at {summary['hfu']:.1%} of its peak (HFU), {used}"),
        ("launches", _ms(summary["launching_s"]), f"at least, on the host at the same time: {launches}"),
        ("network", _ms(summary["network_s"]), f"after both, {sent}"),
        ("rate", f"{summary['images_per_s']:,.0f} images/s", f"{summary['images_per_s'] / ranks:,.1f} a GPU"),
        ("MFU", f"{summary['mfu']:.1%}", "of the peak, in the model's own operations, over the whole step"),
    ]


def _disk(planned: PlannedRun, summary: Summary) -> list[Row]:
    """Return the sizes of what a run writes."""
    shape, widths = " x ".join(map(str, planned.latent_shape)), planned.train.ema.sigma_rel
    kept = f"averages of width {', '.join(f'{width:g}' for width in widths)}; all are kept"
    return [
        ("parameters", f"{summary['parameters'] / 1e6:,.1f} M", f"U-Net and conditioner, latents {shape}"),
        ("checkpoint", _gib(summary["checkpoint_bytes"]), f"{planned.train.loop.keep_checkpoints} are kept"),
        *([("snapshots", _gib(summary["snapshot_bytes"]), kept)] if widths else []),
        ("latents", _gib(summary["latent_set_bytes"]), f"{planned.plan.num_images:,} images, fp16 moments"),
    ]


def _warn(planned: PlannedRun, console: Console, summary: Summary) -> None:
    """Warn of each training that does not fit, of a precision that the GPU does not have, and of a missing autoencoder.

    The plan may be made on another machine than the one that has the autoencoder: it is not refused.
    """
    brought = planned.brought_autoencoder
    if brought and filesystem.is_local(brought) and not has_autoencoder(brought):
        console.warning(f"there is no autoencoder in {brought} here; its training is left out of the plan all the same")
    loops = (planned.train_vae.loop, planned.train.loop)
    if not planned.gpu.native_bf16 and any(loop.precision == "bf16" for loop in loops):
        console.warning(
            f"{planned.plan.gpu} has no instructions for bf16, which is planned at the speed of fp32: "
            "set train_vae.loop.precision and train.loop.precision to fp32"
        )
    for name, settings in zip(_TRAININGS, loops, strict=True):
        needs = summary["stages"].get(name, summary)
        if needs["fits"]:
            continue
        loop, largest = f"{name.replace('-', '_')}.loop", needs["largest_micro_batch_size"]
        advised = f"{loop}.micro_batch_size={largest} fits" if largest else "not even one image fits"
        more = "" if settings.gradient_checkpointing else f"; {loop}.gradient_checkpointing=true keeps a fraction"
        total, device = _gib(needs["memory_total"]), _gib(needs["gpu_memory"])
        console.warning(f"{name}: {total} do not fit into {USABLE:.0%} of {device}: {advised}{more}")


_MEMORY = {
    "weights": "of the network that computes, whole on every rank",
    "gradients": "fp32, 4 bytes a parameter, shared out over the ranks",
    "masters": "fp32 weights that are updated, 4 bytes a parameter, shared out",
    "moments": "two of AdamW, fp32, 8 bytes a parameter, shared out",
    "averages": "fp32, 4 bytes a parameter each, shared out",
    "buckets": "gradients on their way: reduce_bucket_size of the DeepSpeed file",
    "activations": "kept for the backward pass, with a fused attention kernel",
}
