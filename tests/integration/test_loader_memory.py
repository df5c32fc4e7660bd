"""Reading for long takes no more memory and no more open files than reading a little."""

from __future__ import annotations

import gc
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tiny_sets import write_set

from synfundus.artifacts.latent_set import open_latent_sets
from synfundus.shards.loader import BatchLoader, Prefetch, RankSteps
from synfundus.shards.reader import encode_npy
from synfundus.stages.reading import latent_batches

SHAPE = (8, 64, 64)
BATCH = 64
NUM_SAMPLES = 1024


def memory_kib() -> int:
    """Return the private memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise AssertionError("no RssAnon")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_and_descriptors_are_flat_over_200000_samples(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    samples = [
        (
            f"k{number}",
            {
                "json": json.dumps({"labels": {"dr_grade": number % 5}}).encode(),
                "moments.npy": encode_npy(generator.standard_normal(SHAPE).astype(np.float16)),
            },
        )
        for number in range(NUM_SAMPLES)
    ]
    latents = write_set(
        tmp_path / "set",
        samples,
        shards={"train": [NUM_SAMPLES // 8] * 8},
        extensions=("json", "moments.npy"),
        kind="latents",
        properties={"moments_shape": list(SHAPE), "latent_mean": [0.0] * 4, "latent_std": [1.0] * 4, "flip": False},
    )
    del samples
    loader = BatchLoader(
        reader=latent_batches(open_latent_sets([latents.url]), split="train", seed=0, with_flip=False, augment=None),
        steps=RankSteps(start_images=0, global_batch_size=BATCH, rank=0, world_size=1),
        prefetch=Prefetch(batches=2, max_bytes=2**26, workers=0, stall_s=60.0),
    )
    marks = []
    for step, _ in enumerate(islice(loader, 200_000 // BATCH + 1)):
        if step * BATCH % 10_000 < BATCH:
            gc.collect()
            marks.append((memory_kib(), len(list(Path("/proc/self/fd").iterdir()))))
    loader.close()
    settled = marks[4:]
    slope_kib = np.polyfit(np.arange(len(settled)), [memory for memory, _ in settled], 1)[0]
    passed = slope_kib < 1024 and len({descriptors for _, descriptors in settled}) == 1
    print(json.dumps({"name": "loader_memory", "passed": int(passed), "of": 1, "kib_per_10000": round(slope_kib, 1)}))
    assert passed, marks
