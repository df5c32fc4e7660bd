"""Our loader from a real S3 server with a cold cache, against plain webdataset through an s3fs handler.

A whole epoch is timed from the first request on, nothing is left out as warm-up: ours downloads each shard once into an
empty cache, checks every hash and reads samples while that goes on; webdataset streams the shards one after the other
through a shuffle buffer. Server and clients share this machine. The goal: at least 1.5 times webdataset.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import s3fs
import webdataset

from benchmarks.loader import BATCH, SHAPE, SHUFFLE_BUFFER
from benchmarks.measuring import report, write_random_latents
from synfundus.artifacts.latent_set import open_latent_sets
from synfundus.shards.loader import BatchLoader, Prefetch, RankSteps
from synfundus.stages.reading import latent_batches
from synfundus.storage import filesystem
from synfundus.storage.filesystem import StoreSettings
from synfundus.storage.manifest import ShardSet, load_shard_set

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from s3_server import BUCKET, S3Server, s3_environment

NUM_SAMPLES = 20_000
NUM_SHARDS = 10
PAIRS = 5


def epoch_rate(batches: Iterator[Any]) -> float:
    """Return samples/s over all whole batches of an epoch."""
    began = time.perf_counter()
    count = sum(BATCH for _ in islice(batches, NUM_SAMPLES // BATCH))
    return count / (time.perf_counter() - began)


def ours(url: str, cache: Path) -> float:
    """Return our samples/s with an empty cache."""
    filesystem.configure(
        StoreSettings(
            deadline_s=300, connect_timeout_s=10, read_timeout_s=30, cache_dir=str(cache), cache_max_bytes=2**34
        )
    )
    reader = latent_batches(open_latent_sets([url]), split="train", seed=0, with_flip=False, augment=None)
    loader = BatchLoader(
        reader=reader,
        steps=RankSteps(start_images=0, global_batch_size=BATCH, rank=0, world_size=1),
        prefetch=Prefetch(batches=0, max_bytes=2**28, workers=0, stall_s=60.0),
    )
    try:
        return epoch_rate(iter(loader))
    finally:
        loader.close()


def plain_webdataset(latents: ShardSet) -> float:
    """Return webdataset's samples/s through s3fs."""
    store = s3fs.S3FileSystem(skip_instance_cache=True)
    webdataset.gopen_schemes["s3"] = lambda url, mode="rb", bufsize=8192: store.open(url, mode)
    urls = [latents.shard_url(shard) for shard in latents.split_shards("train")]
    data = (
        webdataset.WebDataset(urls, shardshuffle=len(urls))
        .shuffle(SHUFFLE_BUFFER)
        .decode(only=["moments.npy", "json"])
        .to_tuple("moments.npy", "json")
        .batched(BATCH)
    )
    return epoch_rate(iter(data))


def main() -> None:
    """Measure in pairs and report."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        server = S3Server.at(folder / "server")
        os.environ.update(s3_environment(server.endpoint))
        try:
            sizes = [NUM_SAMPLES // NUM_SHARDS] * NUM_SHARDS
            write_random_latents(folder / "latents", shape=SHAPE, sizes=sizes, autoencoder_folder=None)
            url = f"s3://{BUCKET}/latents"
            filesystem.upload_folder(folder / "latents", url, last=["manifest.json"])
            latents = load_shard_set(url, kind="latents")
            pairs = []
            for number in range(PAIRS):
                os.sync()  # what was written before should not be written while we measure
                mine = ours(url, folder / f"cache{number}")
                pairs.append((mine, plain_webdataset(latents)))
                print(f"  pair {number + 1}: ours {pairs[-1][0]:.0f}, reference {pairs[-1][1]:.0f}")
        finally:
            server.stop()
    report(
        name="loader_s3_cold_cache",
        ours=statistics.median(pair[0] for pair in pairs),
        reference=statistics.median(pair[1] for pair in pairs),
        goal=1.5,
        unit="samples/s",
    )


if __name__ == "__main__":
    main()
