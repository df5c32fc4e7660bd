"""Two ranks of one thread against one rank of one thread, at equal images per rank and step. The goal: 1.7 times.

Real processes over gloo run `train` on latents from disk. The network has the shape of fundus256 (levels, attention,
32 x 32 latents) at a sixth of its widths: 10 M parameters. What is sent grows with the parameters and what is computed
with parameters times images, so that a wider network and a larger micro-batch, as in real use, send relatively less.

Two processes that know nothing of each other are measured too: their sum is what the machine has to give.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.measuring import report
from benchmarks.training_runs import StepConsole, last_lines, run_config, start_ranks, write_autoencoder_and_latents
from synfundus.config.loader import load_config
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import connect, disconnect
from synfundus.stages.train import job as train

GOAL = 1.7
MODULE = "benchmarks.scaling"


def base_config(per_rank: int, ranks: int) -> RunConfig:
    """Return the run of a number of ranks."""
    settings = [
        "launch.device=cpu",
        "train.loop.precision=fp32",
        "train.loop.channels_last=true",  # one and two ranks compute the same
        f"train.loop.global_batch_size={per_rank * ranks}",
        f"train.loop.micro_batch_size={per_rank}",
        "train.diffusion.flip=false",
        "train.ema.sigma_rel=[]",
        "train.unet.block_out_channels=[32, 64, 96, 128]",
        "train.unet.attention_head_dim=32",
        "train.unet.cross_attention_dim=96",
        "train.unet.norm_num_groups=16",
        # writes smaller files; only its latents' shape matters here
        "train_vae.autoencoder.block_out_channels=[8, 8, 8, 8]",
        "train_vae.autoencoder.norm_num_groups=4",
        "train_vae.autoencoder.mid_block_attention=false",
    ]
    return load_config(preset="fundus256", file=None, settings=settings, flags=[]).config


def rank_main(folder: str, name: str, per_rank: int, steps: int) -> None:
    """Train as one rank; prints the median seconds of a step."""
    world = connect(device="cpu", timeout_s=120, num_threads=1)
    moments = [time.perf_counter()]
    config = run_config(base_config(per_rank, world.size), Path(folder), name=name, steps=steps + 2)
    train.run(config, world, StepConsole(lambda: moments.append(time.perf_counter())))
    seconds = [after - before for before, after in pairwise(moments[2:])]
    print(json.dumps(statistics.median(seconds)), flush=True)
    disconnect()


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--per-rank", type=int, default=16, help="images per rank and step")
    arguments = parser.parse_args()
    per_rank, rates = arguments.per_rank, {"one": [0.0], "two": [0.0], "apart": [0.0]}
    with tempfile.TemporaryDirectory() as scratch:
        write_autoencoder_and_latents(base_config(per_rank, 1), Path(scratch), sizes=(512,))

        def words(name: str) -> list[str]:
            return ["rank", scratch, name, str(per_rank), str(arguments.steps)]

        for number in range(arguments.pairs):
            one = start_ranks(MODULE, words(f"one-{number}"), ranks=1)
            rates["one"].append(sum(per_rank / float(line) for line in last_lines(one, timeout_s=900)))
            two = start_ranks(MODULE, words(f"two-{number}"), ranks=2)
            rates["two"].append(2 * per_rank / float(last_lines(two, timeout_s=900)[0]))
            apart = [start_ranks(MODULE, words(f"apart-{number}-{side}"), ranks=1)[0] for side in range(2)]
            rates["apart"].append(sum(per_rank / float(line) for line in last_lines(apart, timeout_s=900)))
            print("  " + ", ".join(f"{name} {values[-1]:.2f}" for name, values in rates.items()) + " images/s")
    medians = {name: statistics.median(values[1:]) for name, values in rates.items()}
    print(f"  two processes apart: {medians['apart'] / medians['one']:.3f} times one, the most two ranks could reach")
    report(name="scaling_2_ranks", ours=medians["two"], reference=medians["one"], goal=GOAL, unit="images/s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank_main(*sys.argv[2:4], *(int(word) for word in sys.argv[4:6]))  # type: ignore[arg-type]
    else:
        main()
