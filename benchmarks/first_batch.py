"""Time to the first batch by size of the set: 10^3 to 10^6 samples of 64 KiB, in shards of at most 10,000.

A process is started for each measurement, as a run is; the time goes from its start to the first 256 samples in memory.
The shards of the large sets are links to one file, so that the disk has room; each is opened and read on its own. The
goal: the largest set takes less than 1.5 times as long as the smallest.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.measuring import write_random_latents
from synfundus.storage.manifest import ShardSet, load_shard_set, save_shard_set, shard_name

SHAPE = (8, 64, 64)
BATCH = 256
SHARD_SAMPLES = 10_000
SIZES = (1_000, 10_000, 100_000, 1_000_000)
REPEATS = 7


def linked_set(folder: Path, shard: ShardSet, number: int) -> ShardSet:
    """Write a set whose shards all have the content of one."""
    entry = shard.split_shards("train")[0]
    (folder / "train").mkdir(parents=True)
    entries = []
    for at in range(number):
        name = shard_name("train", at)
        for suffix in (".tar", ".idx.npz"):
            source = Path(shard.url) / entry.name.replace(".tar", suffix)
            (folder / name.replace(".tar", suffix)).hardlink_to(source)
        entries.append(replace(entry, name=name))
    return save_shard_set(replace(shard, url=str(folder), shards=tuple(entries), identity=""))


def first_batch(url: str) -> float:
    """Return the seconds this process needs inside for a first batch; the caller times the whole process."""
    began = time.perf_counter()
    from synfundus.artifacts.latent_set import open_latent_sets
    from synfundus.shards.loader import BatchLoader, Prefetch, RankSteps
    from synfundus.stages.reading import latent_batches

    imported = time.perf_counter()
    reader = latent_batches(open_latent_sets([url]), split="train", seed=0, with_flip=False, augment=None)
    loader = BatchLoader(
        reader=reader,
        steps=RankSteps(start_images=0, global_batch_size=BATCH, rank=0, world_size=1),
        prefetch=Prefetch(batches=0, max_bytes=2**28, workers=0, stall_s=60.0),
    )
    next(iter(loader))
    ended = time.perf_counter()
    loader.close()
    print(json.dumps({"import_s": imported - began, "batch_s": ended - imported}))
    return ended - began


def measured(url: str) -> tuple[float, float]:
    """Return (seconds of a process, seconds within it after the imports)."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.first_batch", url], check=True, capture_output=True, text=True
    )
    return time.perf_counter() - began, float(json.loads(done.stdout.splitlines()[-1])["batch_s"])


def main() -> None:
    """Measure all sizes in turns and report the largest against the smallest."""
    if len(sys.argv) > 1:
        first_batch(sys.argv[1])
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sets = {}
        whole = write_random_latents(folder / "shard", shape=SHAPE, sizes=[SHARD_SAMPLES], autoencoder_folder=None)
        small = write_random_latents(folder / "small", shape=SHAPE, sizes=[SIZES[0]], autoencoder_folder=None)
        for size in SIZES:
            source, number = (small, 1) if size < SHARD_SAMPLES else (whole, size // SHARD_SAMPLES)
            sets[size] = linked_set(folder / str(size), source, number).url
            load_shard_set(sets[size], kind="latents")
            measured(sets[size])
        found: dict[int, list[tuple[float, float]]] = {size: [] for size in SIZES}
        for _ in range(REPEATS):
            for size, url in sets.items():
                found[size].append(measured(url))
    medians = {size: [statistics.median(column) for column in zip(*rows, strict=True)] for size, rows in found.items()}
    for size, (process, batch) in medians.items():
        print(f"  {size:>9,} samples: {process:.3f} s from the start of the process, {batch:.3f} s after its imports")
    ours, reference = medians[SIZES[-1]][0], medians[SIZES[0]][0]
    line = {"name": "first_batch", "ours": round(ours, 4), "reference": round(reference, 4)}
    print(json.dumps({**line, "ratio": round(ours / reference, 4), "goal": 1.5}))


if __name__ == "__main__":
    main()
