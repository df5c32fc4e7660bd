"""`encode-latents` against a bare loop of ``vae.encode`` on decoded images that already lie in memory.

Ours reads tars, checks hashes, decodes PNG, encodes, converts to fp16, gathers statistics and writes tars.
The goal: at least 0.92 of the bare loop.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import interleaved, rate, report, write_phantom_images
from benchmarks.training_runs import changed
from synfundus.config.loader import load_config
from synfundus.distributed.world import connect, disconnect
from synfundus.models.pixels import pixels_to_tensor
from synfundus.shards.reader import ShardSetReader
from synfundus.shards.source import ImageDecoder
from synfundus.stages import build
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole

NUM_IMAGES = 1024
IMAGE_SIZE_PX = 128
PAIRS = 9


def decoded_images(image_set: ShardSet) -> torch.Tensor:
    """Return all images as one tensor in [-1, 1]."""
    reader = ShardSetReader(image_set, split="train")
    decode = ImageDecoder(schema=image_set.label_schema, image_size_px=IMAGE_SIZE_PX)
    pixels = [
        decode(*reader.read(shard, sample), reader.sample_name(shard, sample))["pixels"]
        for shard, size in enumerate(reader.shard_sizes)
        for sample in range(size)
    ]
    return pixels_to_tensor(np.stack(pixels))


def main() -> None:
    """Measure and report."""
    world = connect(device="cpu", timeout_s=60, num_threads=0)
    config = load_config(preset="demo-cpu", file=None, settings=[], flags=[]).config
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        image_set = write_phantom_images(
            folder / "images", num_images=NUM_IMAGES, image_size_px=IMAGE_SIZE_PX, shard_samples=256
        )
        autoencoder = build.autoencoder(config.train_vae.autoencoder, image_size_px=IMAGE_SIZE_PX, seed=0)
        autoencoder.save_pretrained(folder / "vae")
        images = decoded_images(image_set)

        def ours(number: int) -> float:
            paths = {"data": str(folder / "images"), "vae": str(folder / "vae"), "out": str(folder / f"out-{number}")}
            # the bare loop encodes each image once
            run_config = changed(config, {"encode_latents": {**paths, "flip": False}})
            return rate(lambda: int(encode_latents.run(run_config, world, SilentConsole())["num_samples"]))

        def reference(_number: int) -> float:
            dtype = build.torch_dtype(config.encode_latents.precision)
            bare = autoencoder.eval().requires_grad_(False).to(dtype)

            def loop() -> int:
                with torch.no_grad():
                    for first in range(0, len(images), config.encode_latents.batch_size):
                        bare.encode(images[first : first + config.encode_latents.batch_size].to(dtype))
                return len(images)

            return rate(loop)

        ours_rate, reference_rate, ratios = interleaved(ours, reference, pairs=PAIRS)
    disconnect()
    report(name="encode", ours=ours_rate, reference=reference_rate, goal=0.92, unit="images/s", ratios=ratios)


if __name__ == "__main__":
    main()
