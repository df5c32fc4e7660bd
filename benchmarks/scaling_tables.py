"""The tables of `docs/scaling.md`: a run on 1 to 1,024 GPUs and a set of 10^4 to 10^9 images, on paper.

Everything comes from what `synfundus plan` computes, from the reading plan itself and from `benchmarks/failures.py`;
further assumptions are in `ASSUMED`. Without arguments the tables are printed; with the document as argument they are
written into it, and a test compares. ``--measure`` times what depends on the machine instead.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.failures import LLAMA_3, OPT_175B, Costs, simulate, useful_share, young_interval_h
from benchmarks.rounding import gradients, relative_error, ring_mean, tree_mean
from synfundus.config.loader import load_config
from synfundus.config.schema import RunConfig
from synfundus.photographs.near_duplicates import THUMBNAIL_PX
from synfundus.shards.shard_plan import NUM_STREAMS, ReadingPlan
from synfundus.stages.plan.estimate import work_out
from synfundus.stages.plan.planned import Counts, PlannedRun, count_networks
from synfundus.stages.prepare.plan import samples_per_shard
from synfundus.storage import documents
from synfundus.storage.manifest import ShardEntry, shard_name
from synfundus.training.checkpoints.checkpoint import copy_by_pieces
from synfundus.training.duration import COMPILED, LAUNCH_S, network_s
from synfundus.training.memory.footprint import GIB, GPUS, GpuName

PRESETS = ("fundus256", "fundus512", "fundus1024")
GPUS_A_NODE = 8
LINKS_GBIT = (100, 200, 400, 3200)
GPU: GpuName = "h100"
ASSUMED: dict[str, tuple[float, str, str]] = {
    "hfu": (
        GPUS[GPU].utilisation(weight_bytes=2, tf32=True),
        "",
        f"fraction of its peak at which a GPU ({GPU}) works (HFU)",
    ),
    "launch": (LAUNCH_S, f"{1e6 * LAUNCH_S:g} us", "at least, from one kernel to the next on the host"),
    "compiled": (COMPILED, "", "what compiling leaves of a network's launches, where a preset compiles"),
    "price": (2.0, "", "price of a GPU hour, in any currency"),
    "nvlink": (GPUS[GPU].link_bytes_per_s, "450 GB/s", "between the GPUs of a node, in one direction (data sheet)"),
    "link": (50e9, "400 Gb/s", "into and out of a node, unless the table says otherwise"),
    "gets": (5500.0, "5,500/s", "GET requests that S3 serves at least per prefix (Amazon S3 User Guide)"),
    "copy": (20e9, "20 GB/s", "from a GPU into pinned host memory"),
    "keep": (
        2.0 * GIB,
        "2.0 GiB/s",
        "from there into fresh memory, piece by piece (measured, one thread)",
    ),
    "gather": (2e9, "2 GB/s", "into rank 0 from all other ranks, over TCP"),
    "node_write": (2e9, "2 GB/s", "written by a node, to its own disk or into a store"),
    "shared_write": (20e9, "20 GB/s", "written by all nodes together into a shared file system"),
    "restart": (1 / 6, "10 min", "from a failure to the next step"),
}
"""The assumptions of the tables besides the code: value, how it is printed, meaning."""

MAX_NETWORK_SHARE = 0.2
SIMULATED_DAYS = 4000
RUNS = ((1, 256), (8, 256), (64, 256), (256, 256), (1024, 1024), (1024, 4096))
"""(GPUs, global batch)."""


def assumed(name: str) -> float:
    """Return a stated value."""
    return ASSUMED[name][0]


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Return a number with about three digits."""
    if value == 0:
        return "0"
    if value >= 99.95:
        return f"{value:,.0f}"
    decimals = max(0, 1 - math.floor(math.log10(value)))
    return f"{value:.{decimals}f}"


def power(count: int) -> str:
    """Return 10^9 for 1,000,000,000."""
    return f"10^{round(math.log10(count))}"


def preset(name: str, *settings: str) -> RunConfig:
    """Return a preset, planned with what is assumed."""
    plan = (f"plan.gpu={GPU}", f"plan.price_per_gpu_hour={assumed('price')}")
    return load_config(preset=name, file=None, settings=[*plan, *settings], flags=[]).config


@cache
def counted(name: str) -> Counts:
    """Count a preset's networks once."""
    return count_networks(PlannedRun.of(preset(name)))


@cache
def planned(name: str, *, gpus: int, batch: int, images: int = 1) -> dict[str, Any]:
    """Return what `synfundus plan` says of a preset on so many GPUs."""
    nodes, a_node = max(1, gpus // GPUS_A_NODE), min(gpus, GPUS_A_NODE)
    launch = (f"launch.nodes={nodes}", f"launch.procs_per_node={a_node}")
    config = preset(name, *launch, f"train.loop.global_batch_size={batch}", f"plan.num_images={images}")
    return work_out(PlannedRun.of(config), counted(name))


def sane_batch(gpus: int) -> int:
    """Return a global batch: the presets' 256, and at least 4 images a GPU."""
    return max(256, 4 * gpus)


def rate(name: str, gpus: int) -> float:
    """Return images a second of a run."""
    return float(planned(name, gpus=gpus, batch=sane_batch(gpus))["images_per_s"])


def image_s(summary: dict[str, Any]) -> float:
    """Return how long a GPU works on an image."""
    return float(summary["gpu_s"] * summary["ranks"] / summary["global_batch_size"])


def traffic_table() -> str:
    """ZeRO-2's bytes in a step of one backward pass, and the micro-batch for which they take a fifth of it."""
    rows = []
    for name in PRESETS:
        summary = planned(name, gpus=1024, batch=1024)
        once = image_s(summary)
        seconds = [
            network_s(summary["traffic_bytes"], gpu=GPUS[GPU], nodes=128, node_bytes_per_s=link * 1e9 / 8)
            for link in LINKS_GBIT
        ]
        needed = [math.ceil(s * (1 - MAX_NETWORK_SHARE) / MAX_NETWORK_SHARE / once) for s in seconds]
        rows.append(
            [
                name,
                f"{summary['parameters'] / 1e6:,.0f} M",
                f"{summary['traffic_bytes'] / 1e9:.2f} GB",
                " / ".join(number(1e3 * s) for s in seconds),
                number(1e3 * once),
                " / ".join(map(str, needed)),
                str(summary["largest_micro_batch_size"]),
            ]
        )
    links = " / ".join(f"{link:,}" for link in LINKS_GBIT)
    headers = ("preset", "parameters", "sent per rank and step", f"ms at {links} Gb/s a node", "GPU, ms an image")
    return table((*headers, f"micro-batch for {1 - MAX_NETWORK_SHARE:.0%} computing", "micro-batch that fits"), rows)


def run_rows(name: str) -> list[list[str]]:
    """Return what a preset's run takes on more and more GPUs, as `plan` says."""
    rows = []
    for gpus, batch in RUNS:
        summary = planned(name, gpus=gpus, batch=batch)
        step = batch / summary["images_per_s"]
        rows.append(
            [
                name,
                f"{gpus:,}",
                f"{batch:,}",
                number(batch / gpus),
                *(number(1e3 * summary[name]) for name in ("gpu_s", "launching_s", "network_s")),
                f"{summary['network_s'] / step:.0%}",
                number(summary["hours"]),
                f"{summary['gpu_hours']:,.0f}",
                f"{summary['cost']:,.0f}",
            ]
        )
    return rows


def runs_table() -> str:
    """Hours and price from 1 to 1,024 GPUs."""
    headers = ("preset", "GPUs", "global batch", "images a GPU", "GPU, ms", "launches, ms", "network, ms")
    return table(
        (*headers, "network", "hours", "GPU hours", "price"), [row for name in PRESETS for row in run_rows(name)]
    )


def copies(gpus: int) -> float:
    """Return how many nodes fetch a shard in an epoch, each for the cache its ranks share.

    Rank r reads the positions p = r (mod N), so the streams r (mod gcd(N, C)) of the C canonical ones.
    """
    shared = math.gcd(gpus, NUM_STREAMS)
    return max(1, gpus // GPUS_A_NODE) * min(shared, GPUS_A_NODE, gpus) / shared


def reading_table() -> str:
    """What a store has to deliver to keep the GPUs computing."""
    rows = []
    for name in PRESETS:
        for gpus in (8, 64, 256, 1024):
            size = float(planned(name, gpus=gpus, batch=sane_batch(gpus))["latent_set_bytes"])
            images = rate(name, gpus)
            shards = images / samples_per_shard(preset(name).prepare)
            rows.append(
                [
                    name,
                    f"{gpus:,}",
                    number(images),
                    number(images * size * min(gpus, GPUS_A_NODE) / gpus / 1e6),
                    f"{images:,.0f} ({images / assumed('gets'):.1f} x)",
                    f"{copies(gpus):.0f}",
                    number(shards * copies(gpus)),
                    number(images * size * copies(gpus) / 1e9),
                ]
            )
    headers = ("preset", "GPUs", "images/s", "MB/s a node", "GET/s sample by sample (of 5,500)")
    return table((*headers, "copies of a shard", "GET/s by shard", "GB/s from the store"), rows)


def manifest_bytes(shards: int) -> int:
    """Return the size of a manifest's list of shards."""
    entry = asdict(ShardEntry(shard_name("train", 0), "train", 10_000, 10**9, "0" * 64, "0" * 64))
    one, two = (len(documents.dump_json({"shards": [entry] * count})) for count in (1, 2))
    return one + (shards - 1) * (two - one)


def reading_plan(images: int, samples: int) -> ReadingPlan:
    """Return the order of a set in shards of so many samples, after it has planned a batch of 256."""
    sizes = [samples] * (images // samples) + ([images % samples] if images % samples else [])
    plan = ReadingPlan(shard_sizes=sizes, identity="paper", split="train", seed=0)
    plan.locate(range(256))
    return plan


def plan_bytes(plan: ReadingPlan) -> int:
    """Return the bytes of the arrays a reading plan holds."""
    epochs = [(order.shards, order.starts, order.segment_of_stream) for order in plan._epochs.values()]
    arrays = [plan._sizes, *(array for order in epochs for array in order), *plan._windows.values()]
    return sum(array.nbytes for array in arrays)


def sets_table() -> str:
    """What grows with the number of images."""
    rows, name = [], "fundus512"
    samples = samples_per_shard(preset(name).prepare)
    for images in (10**exponent for exponent in range(4, 10)):
        summary, shards = planned(name, gpus=8, batch=256, images=images), -(-images // samples)
        rows.append(
            [
                power(images),
                number(summary["latent_set_bytes"] / 1e9),
                f"{shards:,}",
                number(manifest_bytes(shards) / 1e6),
                number(plan_bytes(reading_plan(images, samples)) / 1e6),
                number(images * THUMBNAIL_PX**2 / 1e9),
                number(preset(name).train.loop.budget_images / images),
            ]
        )
    headers = (
        "images",
        "latents, GB",
        "shards",
        "manifest, MB",
        "reading plan of a rank, MB",
        "thumbnails of `prepare`, GB",
    )
    return table((*headers, "epochs in the budget"), rows)


def save_costs(name: str, gpus: int) -> tuple[float, float, float]:
    """Return (bytes of a checkpoint, seconds the loop is blocked, seconds until it is written)."""
    summary = planned(name, gpus=gpus, batch=sane_batch(gpus))
    total, model = summary["checkpoint_bytes"], 4 * summary["parameters"]
    a_node = min(gpus, GPUS_A_NODE)
    stall = (total - model) / gpus * (1 / assumed("copy") + 1 / assumed("keep"))
    gathering = (gpus - 1) / gpus * model / assumed("gather")
    fullest = model + (total - model) * a_node / gpus
    return total, stall, gathering + max(fullest / assumed("node_write"), total / assumed("shared_write"))


def checkpoint_table() -> str:
    """Bytes of a checkpoint, how long it blocks the loop, how long it is written."""
    rows = []
    for name in PRESETS:
        for gpus in (1, 8, 64, 1024):
            total, stall, behind = save_costs(name, gpus)
            every = preset(name).train.loop.checkpoint_every_images / rate(name, gpus)
            rows.append([name, f"{gpus:,}", number(total / 1e9), number(stall), number(behind), number(every / 60)])
    headers = ("preset", "GPUs", "checkpoint, GB", "loop blocked, s", "written after, s")
    return table((*headers, "the preset saves every, min"), rows)


def failures_table() -> str:
    """Failures a day, the interval that loses least, and what is lost."""
    rows, name = [], "fundus1024"
    for record in (LLAMA_3, OPT_175B):
        for gpus in (8, 64, 256, 1024):
            _, stall, behind = save_costs(name, gpus)
            costs = Costs(stall_h=stall / 3600, restart_h=assumed("restart"), behind_h=behind / 3600)
            mean = record.mean_time_h(gpus)
            best = max(young_interval_h(mean, costs.stall_h), costs.behind_h)
            met = simulate(work_h=24 * SIMULATED_DAYS, interval_h=best, mean_time_h=mean, costs=costs, seed=0)
            images = rate(name, gpus) * 3600
            own = preset(name).train.loop.checkpoint_every_images / images
            days = met.wall_h / 24
            rows.append(
                [
                    record.name.split(",")[0],
                    f"{gpus:,}",
                    number(24 / mean),
                    number(60 * best),
                    number(best * images / 1e6),
                    number(60 * met.lost_h / days),
                    number(60 * met.stalled_h / days),
                    number(60 * met.restarting_h / days),
                    f"{useful_share(best, mean, costs):.2%}",
                    f"{useful_share(max(own, costs.behind_h), mean, costs):.2%}",
                ]
            )
    headers = ("rate of", "GPUs", "failures a day", "save every, min", "million images", "lost, min a day")
    more = ("blocked, min a day", "restarting, min a day", "useful", "useful as preset")
    return table((*headers, *more), rows)


def rounding_table() -> str:
    """What adding gradients in bf16 costs by the number of ranks."""
    rows = []
    for ranks in (8, 64, 256, 1024):
        noisy, alike = gradients(ranks, spread=10.0), gradients(ranks, spread=1.0)
        errors = [relative_error(mean(of), of) for of in (noisy, alike) for mean in (ring_mean, tree_mean)]
        rows.append([f"{ranks:,}", *(f"{error:.1%}" for error in errors)])
    headers = ("ranks", "ring, spread 10", "tree, spread 10", "ring, spread 1", "tree, spread 1")
    return table(headers, rows)


def assumptions_table() -> str:
    """What is stated."""
    rows = [[printed or number(value), meaning] for value, printed, meaning in ASSUMED.values()]
    return table(("assumed", "what"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "assumed": assumptions_table,
    "traffic": traffic_table,
    "runs": runs_table,
    "rounding": rounding_table,
    "reading": reading_table,
    "sets": sets_table,
    "checkpoints": checkpoint_table,
    "failures": failures_table,
}
_PLACE = re.compile(r"<!-- table: ([a-z]+) -->\n(.*?)<!-- end -->", re.DOTALL)


def tables_in(text: str) -> dict[str, str]:
    """Return the tables of a document by name."""
    return {match[1]: match[2].strip() for match in _PLACE.finditer(text)}


def filled(text: str) -> str:
    """Return a document with its tables as they are now."""
    return _PLACE.sub(lambda match: f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->", text)


def measure() -> None:
    """Time what depends on the machine, which no test compares: planning by size of the set, copies to fresh memory."""
    for images in (10**exponent for exponent in range(4, 10)):
        began = time.perf_counter()
        reading_plan(images, samples_per_shard(preset("fundus512").prepare))
        print(f"{power(images)} images: first batch planned in {time.perf_counter() - began:.2f} s")
    torch.set_num_threads(1)
    source, stage = torch.zeros(2**28), torch.zeros(2**26)
    began = time.perf_counter()
    stage.copy_(source[: len(stage)])
    once = (time.perf_counter() - began) * len(source) / len(stage)
    began = time.perf_counter()
    copy_by_pieces(source, torch.empty(len(source)), stage, wait=lambda: None)
    second = time.perf_counter() - began - once
    print(f"a stage copied into fresh memory by one thread: {source.nbytes / second / GIB:.1f} GiB/s")


def main() -> None:
    """Print the tables, put them into a document, or measure."""
    if sys.argv[1:] == ["--measure"]:
        measure()
    elif len(sys.argv) > 1:
        document = Path(sys.argv[1])
        document.write_text(filled(document.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join(f"{name}\n\n{build()}" for name, build in TABLES.items()))


if __name__ == "__main__":
    main()
