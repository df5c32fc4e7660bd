"""What the averages cost: one with a half-life and two power-function ones, as a fraction of `train`'s step.

Both times are taken in the same steps of the same run: the update by itself, and the whole step around it. The cost
grows with the parameters, the step with parameters times images: two networks, the demo's at its 16 images a step and
the one of `benchmarks.scaling`, shaped like fundus256. The goal: below 0.02.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import scaling
from benchmarks.measuring import report
from benchmarks.training_runs import StepConsole, changed, run_config, write_autoencoder_and_latents
from synfundus.config.loader import load_config
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World, connect, disconnect
from synfundus.stages.train import job as train
from synfundus.training.ema import ShardedEma

WIDTHS = (0.05, 0.1)
BATCH = 16


def measure(name: str, base: RunConfig, world: World, steps: int) -> None:
    """Train a few dozen steps and report."""
    base = changed(base, {"train": {"ema": {"sigma_rel": WIDTHS}}})
    updates: list[float] = []
    ends = [time.perf_counter()]
    plain = ShardedEma.update

    def timed(self: ShardedEma, *values: Any, **named: Any) -> None:
        began = time.perf_counter()
        plain(self, *values, **named)
        updates.append(time.perf_counter() - began)

    with tempfile.TemporaryDirectory() as scratch, mock.patch.object(ShardedEma, "update", timed):
        write_autoencoder_and_latents(base, Path(scratch), sizes=(512,))
        config = run_config(base, Path(scratch), name="run", steps=steps + 2)
        train.run(config, world, StepConsole(lambda: ends.append(time.perf_counter())))
    whole = [after - before for before, after in pairwise(ends[2:])]
    report(
        name=f"ema_cost_{name}",
        ours=1e3 * statistics.median(updates[2:]),
        reference=1e3 * statistics.median(whole),
        goal=0.02,
        unit="ms a step",
        ratios=[part / step for part, step in zip(updates[2:], whole, strict=True)],
    )


def main() -> None:
    """Measure both networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    world = connect(device="cpu", timeout_s=60, num_threads=0)
    settings = ["train.diffusion.flip=false", "train.loop.precision=fp32"]
    measure("demo", load_config(preset="demo-cpu", file=None, settings=settings, flags=[]).config, world, steps)
    measure("fundus256_sixth", scaling.base_config(BATCH, 1), world, steps)
    disconnect()


if __name__ == "__main__":
    main()
