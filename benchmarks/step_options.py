"""What `train.loop.channels_last: auto` chooses against the layout it did not choose: images/s through a U-Net.

The choice is made as a run makes it, on a few pairs of steps; afterwards both layouts are timed in turns for longer.
The goal: what was chosen is not slower than the other by more than the gain that a choice needs.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.measuring import interleaved, rate, report
from benchmarks.training_runs import changed
from synfundus.config.loader import load_config
from synfundus.distributed.world import Device, has_native_bf16
from synfundus.stages import build
from synfundus.stages.trial_step import latent_shape, random_batch, training_step
from synfundus.training.memory.measuring import LEAST_GAIN, measure_format
from synfundus.training.memory.rehearsal import Rehearsal


def measure(precision: str, batch: int, pairs: int, device: torch.device) -> None:
    """Measure one precision and report."""
    settings = [
        f"train.loop.global_batch_size={batch}",
        f"train.loop.micro_batch_size={batch}",
        f"train.loop.precision={precision}",
    ]
    config = load_config(preset="demo-cpu", file=None, settings=settings, flags=[]).config
    shape = latent_shape(config.train_vae.autoencoder, image_size_px=config.prepare.image_size_px)
    steps = {
        layout: training_step(
            changed(config, {"train": {"loop": {"channels_last": layout}}}).train, shape, device, seed=config.seed
        )
        for layout in (False, True)
    }
    rehearsal = Rehearsal(
        torch.nn.ModuleList(steps.values()),
        make_step=lambda both, layout: both[int(layout)],
        draw=lambda size: random_batch(config.train.diffusion, size, shape, device),
        device=device,
        dtype=build.torch_dtype(config.train.loop.precision),
        images_seen=0,
    )
    choice = measure_format(lambda layout: rehearsal.seconds(batch, layout))
    print(f"  {precision}: {choice.describe()}")

    def images(layout: bool) -> float:
        def work() -> int:
            rehearsal.seconds(batch, layout)
            return batch

        return rate(work)

    ours, reference, ratios = interleaved(
        lambda _: images(choice.channels_last), lambda _: images(not choice.channels_last), pairs=pairs
    )
    report(
        name=f"channels_last_auto_{precision}",
        ours=ours,
        reference=reference,
        goal=1.0 - LEAST_GAIN,
        unit="images/s",
        ratios=ratios,
    )


def main() -> None:
    """Measure fp32 and, where the device has instructions for it, bf16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--pairs", type=int, default=40)
    arguments = parser.parse_args()
    kind: Device = "cuda" if torch.cuda.is_available() else "cpu"
    for precision in ("fp32", "bf16") if has_native_bf16(kind) else ("fp32",):
        measure(precision, arguments.batch, arguments.pairs, torch.device(kind, 0))


if __name__ == "__main__":
    main()
