"""One rank of a job that only reads: appends what each step delivered to a file, until it is done or killed.

Arguments: latents, file to append to, rank, world size, workers, first image, steps, global batch size.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import islice

from synfundus.artifacts.latent_set import open_latent_sets
from synfundus.shards.loader import BatchLoader, Prefetch, RankSteps
from synfundus.stages.reading import latent_batches


def main() -> None:
    latents, out = sys.argv[1:3]
    rank, world, workers, start, steps, batch = map(int, sys.argv[3:])
    reader = latent_batches(open_latent_sets(latents.split(",")), split="train", seed=7, with_flip=False, augment=None)
    loader = BatchLoader(
        reader=reader,
        steps=RankSteps(start_images=start, global_batch_size=batch, rank=rank, world_size=world),
        prefetch=Prefetch(batches=2, max_bytes=2**20, workers=workers, stall_s=60.0),
    )
    with open(out, "ab", buffering=0) as stream:
        for taken in islice(loader, steps):
            row = {
                "positions": taken.positions.tolist(),
                "sets": taken.sets.tolist(),
                "epochs": taken.epochs.tolist(),
                "numbers": [int(value) for value in taken.arrays["moments"][:, 0, 0, 0]],
                "weights": taken.weights.tolist(),
            }
            stream.write(json.dumps(row).encode() + b"\n")
            os.fsync(stream.fileno())
            time.sleep(0.02)  # a step takes time, so that a kill meets the job at work
    loader.close()


if __name__ == "__main__":
    main()
