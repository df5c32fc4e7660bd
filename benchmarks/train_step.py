"""`train` (latents from disk) against a bare PyTorch loop with latents in memory.

The same recipe on one rank: U-Net, loss, batch, memory format, threads, fused AdamW, clipping, an average of the fp32
weights, in bf16 fp32 masters under bf16 weights (`benchmarks.bare_loop`). The bare loop draws its noise with
``torch.randn`` and keeps no checkpoints and no metrics. Both take turns within one process, a few steps each, so that
what disturbs a shared machine disturbs both. The goal: at least 0.96 of it.

ZeRO-2 pays a price per parameter and step, not per image, so the batch size matters: 64 images a step here; other
sizes with ``python -m benchmarks.train_step --batch 16``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.bare_loop import BareDiffusion
from benchmarks.measuring import report
from benchmarks.training_runs import StepConsole, changed, run_config, write_autoencoder_and_latents
from synfundus.config.loader import load_config
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World, connect, disconnect, has_native_bf16
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.stages.train import job as train
from synfundus.stages.trial_step import latent_shape

STRETCH_STEPS = 3
NUM_LATENTS = 2048


class TakeTurns:
    """Lets the bare loop run a stretch after each stretch of ours, and takes the time of both."""

    def __init__(self, config: RunConfig) -> None:
        shape = latent_shape(config.train_vae.autoencoder, image_size_px=config.prepare.image_size_px)
        generator = torch.Generator().manual_seed(0)
        self._loop = BareDiffusion(config, shape)
        self._moments = torch.randn(NUM_LATENTS, 2 * shape[0], *shape[1:], generator=generator)
        self._states = torch.randint(0, 2, (NUM_LATENTS, len(DEFAULT_LABEL_SCHEMA.names)), generator=generator)
        self._batch = config.train.loop.global_batch_size
        self._steps = self._first = 0
        self._began = time.perf_counter()
        self.ours_s: list[float] = []
        self.bare_s: list[float] = []

    def after_step(self) -> None:
        """Take over at the end of a stretch."""
        self._steps += 1
        if self._steps % STRETCH_STEPS:
            return
        now = time.perf_counter()
        self.ours_s.append((now - self._began) / STRETCH_STEPS)
        for _ in range(STRETCH_STEPS):
            rows = slice(self._first, self._first + self._batch)
            self._loop.step(self._moments[rows], self._states[rows])
            self._first = (self._first + self._batch) % (NUM_LATENTS - self._batch)
        self._began = time.perf_counter()
        self.bare_s.append((self._began - now) / STRETCH_STEPS)


def measure(base: RunConfig, world: World, precision: str, pairs: int) -> None:
    """Measure one precision and report."""
    base = changed(base, {"train": {"loop": {"precision": precision}}})
    batch = base.train.loop.global_batch_size
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_autoencoder_and_latents(base, folder, sizes=(1024, 1024))
        turns = TakeTurns(base)
        # the first stretch of both warms up
        config = run_config(base, folder, name="run", steps=(pairs + 1) * STRETCH_STEPS)
        train.run(config, world, StepConsole(turns.after_step))
    ratios = [bare / ours for ours, bare in zip(turns.ours_s[1:], turns.bare_s[1:], strict=True)]
    print("  ratios of the pairs: " + " ".join(f"{ratio:.3f}" for ratio in sorted(ratios)))
    report(
        name=f"train_step_{precision}_batch{batch}",
        ours=batch / statistics.median(turns.ours_s[1:]),
        reference=batch / statistics.median(turns.bare_s[1:]),
        goal=0.96,
        unit="images/s",
        ratios=ratios,
    )


def main() -> None:
    """Measure fp32 and bf16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--pairs", type=int, default=25)
    arguments = parser.parse_args()
    world = connect(device="cpu", timeout_s=60, num_threads=0)
    batch = arguments.batch
    sizes = [
        f"train.loop.global_batch_size={batch}",
        f"train.loop.micro_batch_size={batch}",
        "train.diffusion.flip=false",
    ]
    base = load_config(preset="demo-cpu", file=None, settings=sizes, flags=[]).config
    # where bf16 is emulated, its step takes minutes and says nothing
    for precision in ("fp32", "bf16") if has_native_bf16(world.device) else ("fp32",):
        measure(base, world, precision, arguments.pairs)
    disconnect()


if __name__ == "__main__":
    main()
