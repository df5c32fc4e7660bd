"""`train` (latents from disk) against a bare PyTorch loop with latents in memory.

Same U-Net, same AdamW, same batch, same loss, one rank. The bare loop draws its noise with ``torch.randn`` and keeps no
EMA, no checkpoints, no metrics. In bf16 both hold bf16 weights with fp32 masters. The goal: at least 0.90 of it.

ZeRO-2 pays a price per parameter tensor and step, not per image, so the batch size matters: 64 images a step here;
other sizes with ``python -m benchmarks.train_step --batch 16``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import interleaved, report, write_random_latents
from synfundus.config.loader import load_config
from synfundus.config.schema import RunConfig
from synfundus.diffusion.loss import denoising_loss
from synfundus.diffusion.parametrisation import training_target
from synfundus.distributed.world import World, connect, disconnect, has_native_bf16
from synfundus.jobs import build, train
from synfundus.models.autoencoder import LatentCodec
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole

STEPS = 32
STRETCH_STEPS = 8
PAIRS = 3


def run_config(base: RunConfig, *, latents: Path, vae: Path, run_dir: Path, precision: str) -> RunConfig:
    """Return the demo's config with a budget of a few dozen steps and a row of metrics every few."""
    batch = base.loop.global_batch_size
    loop = base.loop.model_copy(
        update={
            "budget_images": STEPS * batch,
            "log_every_images": STRETCH_STEPS * batch,
            "checkpoint_every_images": 10**9,
            "preview_every_images": 0,
            "validate_every_images": 0,
            "validation_images": 1,
            "precision": precision,
        }
    )
    paths = base.train.model_copy(update={"latents": (str(latents),), "vae": str(vae), "run_dir": str(run_dir)})
    return base.model_copy(update={"loop": loop, "train": paths})


def ours_rate(config: RunConfig, world: World) -> float:
    """Train and return the median images/s of the rows after the first."""
    train.run(config, world, SilentConsole())
    rows = [json.loads(line) for line in (Path(str(config.train.run_dir)) / "metrics.jsonl").read_text().splitlines()]
    rates = [float(row["images_per_s"]) for row in rows if "images_per_s" in row]
    return statistics.median(rates[1:])


class BareLoop:
    """The loop anybody would write first."""

    def __init__(self, config: RunConfig, latents: ShardSet) -> None:
        channels, height, width = latents.properties["moments_shape"]
        shape = (channels // 2, height, width)
        self._config = config
        self._net = build.denoiser(config, schema=latents.label_schema, latent_shape=shape)
        self._masters = [p.detach().clone().requires_grad_() for p in self._net.parameters()]
        self._net.to(build.torch_dtype(config.loop.precision))
        self._optimizer = torch.optim.AdamW(self._masters, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0)
        self._schedule = build.noise_schedule(config)
        generator = torch.Generator().manual_seed(0)
        self._moments = torch.randn(2048, channels, height, width, generator=generator)
        self._states = torch.randint(0, 2, (2048, len(latents.label_schema.names)), generator=generator)

    def _step(self, rows: Tensor) -> None:
        section = self._config.diffusion
        moments, states = self._moments[rows], self._states[rows]
        x0 = LatentCodec.sample_posterior(moments, torch.randn_like(moments[:, : moments.shape[1] // 2]))
        noise = torch.randn_like(x0)
        timestep = torch.randint(0, section.num_train_timesteps, (len(rows),))
        common: dict[str, Any] = {
            "timestep": timestep,
            "schedule": self._schedule,
            "prediction_type": section.prediction_type,
        }
        target = training_target(x0=x0, noise=noise, **common)
        prediction = self._net(self._schedule.add_noise(x0, noise, timestep), timestep, states)
        _, loss = denoising_loss(
            prediction=prediction,
            target=target,
            min_snr_gamma=section.min_snr_gamma,
            weights=torch.ones(len(rows)),
            **common,
        )
        torch.autograd.backward(loss)
        parameters = list(self._net.parameters())
        for master, parameter in zip(self._masters, parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self._masters, 1.0)
        self._optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(self._masters, parameters, strict=True):
                parameter.copy_(master)

    def rate(self) -> float:
        """Return the median images/s over stretches of a few steps, the first left out."""
        batch = self._config.loop.global_batch_size
        if batch > self._config.loop.micro_batch_size:
            raise ValueError("the bare loop has no gradient accumulation: choose a batch that fits one pass")
        rates = []
        for stretch in range(STEPS // STRETCH_STEPS):
            began = time.perf_counter()
            for number in range(STRETCH_STEPS):
                first = (stretch * STRETCH_STEPS + number) * batch % (2048 - batch)
                self._step(torch.arange(first, first + batch))
            rates.append(STRETCH_STEPS * batch / (time.perf_counter() - began))
        return statistics.median(rates[1:])


def measure(base: RunConfig, world: World, precision: str) -> None:
    """Measure one precision and report."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        codec = build.codec(base.vae.codec, image_size_px=128, seed=0)
        codec.save_pretrained(folder / "vae")
        edge = 128 // codec.downsample_factor
        latents = write_random_latents(
            folder / "latents",
            shape=(2 * codec.latent_channels, edge, edge),
            sizes=(1024, 1024),
            codec_folder=folder / "vae",
        )

        def config_of(number: int) -> RunConfig:
            run_dir = folder / f"run-{number}"
            return run_config(
                base, latents=folder / "latents", vae=folder / "vae", run_dir=run_dir, precision=precision
            )

        ours, reference, _ = interleaved(
            lambda number: ours_rate(config_of(number), world),
            lambda number: BareLoop(config_of(number), latents).rate(),
            pairs=PAIRS,
        )
    report(
        name=f"train_step_{precision}_batch{base.loop.global_batch_size}",
        ours=ours,
        reference=reference,
        goal=0.90,
        unit="images/s",
    )


def main() -> None:
    """Measure fp32 and bf16."""
    world = connect(device="cpu", timeout_s=60, num_threads=0)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    batch = parser.parse_args().batch
    sizes = [f"loop.global_batch_size={batch}", f"loop.micro_batch_size={batch}", "diffusion.flip=false"]
    base = load_config(preset="demo-cpu", file=None, settings=sizes, flags=[]).config
    # where bf16 is emulated, its step takes minutes and says nothing
    for precision in ("fp32", "bf16") if has_native_bf16(world.device) else ("fp32",):
        measure(base, world, precision)
    disconnect()


if __name__ == "__main__":
    main()
