"""Our loader against plain webdataset, litdata and a raw sequential read: shuffled, decoded, batched samples a second.

One latent set of 64 KiB moments (512 px images at factor 8, four channels); every sample's crc32 is checked by ours and
by nobody else. webdataset runs with a shuffle buffer and ``only=`` decoding, litdata with its own optimised chunks and
shuffling. The goals: at least 5 times webdataset at equal workers, 1.5 times litdata.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from torch.utils.data import DataLoader

from benchmarks.measuring import report, write_random_latents
from synfundus.artifacts.latent_set import open_latent_sets
from synfundus.shards.loader import BatchLoader, Prefetch, RankSteps
from synfundus.stages.reading import latent_batches
from synfundus.storage.manifest import ShardSet

SHAPE = (8, 64, 64)
BATCH = 64
NUM_SHARDS = 10
SHUFFLE_BUFFER = 1000
PAIRS = 3
WARMUP_BATCHES = 4


def rate_of(batches: Iterator[Any], total: int) -> float:
    """Return samples/s over ``total`` samples; the first batches (starting processes, opening files) do not count."""
    for _ in islice(batches, WARMUP_BATCHES):
        pass
    began = time.perf_counter()
    count = 0
    for _ in islice(batches, total // BATCH - 2 * WARMUP_BATCHES):
        count += BATCH
    return count / (time.perf_counter() - began)


def ours(latents: ShardSet, workers: int) -> float:
    """Return our samples/s."""
    sets = open_latent_sets([latents.url])
    reader = latent_batches(sets, split="train", seed=0, with_flip=False, augment=None)
    loader = BatchLoader(
        reader=reader,
        steps=RankSteps(start_images=0, global_batch_size=BATCH, rank=0, world_size=1),
        prefetch=Prefetch(batches=4 * workers, max_bytes=2**28, workers=workers, stall_s=60.0),
    )
    try:
        return rate_of(iter(loader), latents.num_samples("train"))
    finally:
        loader.close()


def plain_webdataset(latents: ShardSet, workers: int) -> float:
    """Return webdataset's samples/s."""
    urls = [latents.shard_url(shard) for shard in latents.split_shards("train")]
    data = (
        webdataset.WebDataset(urls, shardshuffle=len(urls))
        .shuffle(SHUFFLE_BUFFER)
        .decode(only=["moments.npy", "json"])
        .to_tuple("moments.npy", "json")
        .batched(BATCH)
    )
    loader = DataLoader(data, batch_size=None, num_workers=workers) if workers else data
    return rate_of(iter(loader), latents.num_samples("train"))


def litdata_rate(latents: ShardSet, folder: Path, workers: int) -> float:
    """Return litdata's samples/s over the same arrays in its own format."""
    import litdata

    data = litdata.StreamingDataset(str(folder), shuffle=True, seed=0)
    loader = litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=workers)
    return rate_of(iter(loader), latents.num_samples("train"))


def raw_rate(latents: ShardSet) -> float:
    """Return samples/s of a sequential read of the tars, 4 MiB at a time, nothing decoded."""
    buffer = bytearray(4 * 2**20)
    began = time.perf_counter()
    for shard in latents.split_shards("train"):
        with open(latents.shard_url(shard), "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return latents.num_samples("train") / (time.perf_counter() - began)


def write_litdata(latents: ShardSet, folder: Path) -> None:
    """Write the same samples as litdata chunks."""
    from litdata.streaming import Cache

    reader = latent_batches(open_latent_sets([latents.url]), split="train", seed=0, with_flip=False, augment=None)
    cache = Cache(str(folder), chunk_bytes="64MB")
    for first in range(0, latents.num_samples("train"), BATCH):
        batch = reader.read(np.arange(first, min(first + BATCH, latents.num_samples("train"))))
        for row in range(len(batch.positions)):
            cache[first + row] = {name: array[row] for name, array in batch.arrays.items()}
    cache.done()
    cache.merge()
    reader.close()


def measure(name: str, mine: Callable[[], float], reference: Callable[[], float], goal: float) -> None:
    """Measure in pairs and report."""
    pairs = []
    for number in range(PAIRS):
        pairs.append((mine(), reference()) if number % 2 == 0 else tuple(reversed((reference(), mine()))))
        print(f"  pair {number + 1}: ours {pairs[-1][0]:.0f}, reference {pairs[-1][1]:.0f}")
    report(
        name=name,
        ours=statistics.median(pair[0] for pair in pairs),
        reference=statistics.median(pair[1] for pair in pairs),
        goal=goal,
        unit="samples/s",
    )


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--litdata", action="store_true", help="also measure litdata (pip install litdata)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sizes = [arguments.samples // NUM_SHARDS] * NUM_SHARDS
        latents = write_random_latents(folder / "latents", shape=SHAPE, sizes=sizes, autoencoder_folder=None)
        raw = statistics.median(raw_rate(latents) for _ in range(PAIRS))
        print(f"  raw sequential read: {raw:.0f} samples/s")
        for workers in arguments.workers:
            measure(
                f"loader_vs_webdataset_workers{workers}",
                partial(ours, latents, workers),
                partial(plain_webdataset, latents, workers),
                goal=5.0,
            )
        if arguments.litdata:
            write_litdata(latents, folder / "litdata")
            for workers in arguments.workers:
                measure(
                    f"loader_vs_litdata_workers{workers}",
                    partial(ours, latents, workers),
                    partial(litdata_rate, latents, folder / "litdata", workers),
                    goal=1.5,
                )
    print(
        json.dumps({"name": "loader_raw_read", "ours": None, "reference": round(raw, 1), "ratio": None, "goal": None})
    )


if __name__ == "__main__":
    main()
