"""How long the training loop stands still for a checkpoint written in the background, against one written in the step.

The same engine with the same state, alternately; training steps run between, while the first kind is being written. The
network is shaped like fundus256 at a quarter of its widths. The goal: below 0.10. What the writing takes from the steps
beside it on this machine is printed too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch

from benchmarks.measuring import report
from synfundus.config.loader import load_config
from synfundus.distributed.world import World, connect, disconnect, new_group, torch_device
from synfundus.stages import training_setup
from synfundus.stages.trial_step import latent_shape, random_batch, training_step
from synfundus.training.checkpoints.writer import CheckpointWriter

BATCH = 4


class Run:
    """An engine that trains on one batch, and its place in images."""

    def __init__(self, world: World) -> None:
        settings = [
            "launch.device=cpu",
            "train.loop.precision=fp32",
            f"train.loop.global_batch_size={BATCH}",
            "train.unet.block_out_channels=[48, 96, 144, 192]",
            "train.unet.attention_head_dim=48",
            "train.unet.cross_attention_dim=128",
            "train.unet.norm_num_groups=16",
        ]
        self.config = load_config(preset="fundus256", file=None, settings=settings, flags=[]).config
        config, device = self.config, torch_device(world)
        shape = latent_shape(config.train_vae.autoencoder, image_size_px=config.prepare.image_size_px)
        step = training_step(config.train, shape, device, seed=config.seed)
        self.engine = training_setup.engine(
            step,
            step.denoiser,
            loop=config.train.loop,
            optim=config.train.optim,
            launch=config.launch,
            batch=training_setup.batch_plan(config.train.loop, world.size),
            world=world,
        )
        self.ema = training_setup.ema(config.train.ema, self.engine)
        self.images_seen = 0
        self._batch = random_batch(config.train.diffusion, BATCH, shape, device)

    def step(self) -> float:
        """Train on the batch; returns seconds."""
        began = time.perf_counter()
        loss, _ = self.engine.forward(self._batch, self.images_seen)
        self.engine.backward(loss)
        self.engine.step(lr=1e-4)
        self.images_seen += BATCH
        self.ema.update(self.engine.masters(), batch_images=BATCH, images_seen=self.images_seen)
        return time.perf_counter() - began


def writer(run: Run, world: World, folder: str, *, background: bool) -> CheckpointWriter:
    """Return one that writes in the background or in the step."""
    return CheckpointWriter(
        folder,
        engine=run.engine,
        ema=run.ema,
        keep=2,
        world=world,
        background=new_group(world, timeout_s=120.0) if background else None,
        watchdog=training_setup.watchdog(run.config.train.loop, run.config.launch, world),
    )


def timed_save(saver: CheckpointWriter, run: Run) -> float:
    """Save; returns the seconds the caller stood still."""
    before = saver.stall_s
    saver.save(run.images_seen, {})
    return saver.stall_s - before


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    pairs = parser.parse_args().pairs
    world = connect(device="cpu", timeout_s=120, num_threads=0)
    run = Run(world)
    plain = [run.step() for _ in range(4)]
    parameters = sum(master.numel() for master in run.engine.masters())
    print(f"  {parameters / 1e6:.1f} M parameters, {torch.get_num_threads()} threads")
    ours, reference, beside = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        background = writer(run, world, f"{folder}/background", background=True)
        within = writer(run, world, f"{folder}/within", background=False)
        for number in range(pairs + 1):  # the first pair warms up
            stall = timed_save(background, run)
            while background.writing:
                beside.append(run.step())
            background.wait()
            plain += [run.step(), run.step()]
            ours.append(stall)
            reference.append(timed_save(within, run))
            plain += [run.step(), run.step()]
            print(f"  pair {number}: background {1e3 * ours[-1]:.0f} ms, in the step {1e3 * reference[-1]:.0f} ms")
    before, during = statistics.median(plain), statistics.median(beside)
    print(f"  a step takes {1e3 * before:.0f} ms, {1e3 * during:.0f} ms while a checkpoint is being written")
    report(
        name="checkpoint_stall",
        ours=1e3 * statistics.median(ours[1:]),
        reference=1e3 * statistics.median(reference[1:]),
        goal=0.10,
        unit="ms",
        ratios=[one / other for one, other in zip(ours[1:], reference[1:], strict=True)],
    )
    disconnect()


if __name__ == "__main__":
    main()
