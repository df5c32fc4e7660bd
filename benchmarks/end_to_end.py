"""`train` on precomputed latents against the usual text-to-image loop, which encodes each image in the step.

The reference is written in the manner of diffusers' text-to-image example: PNGs through a DataLoader, a frozen
``AutoencoderKL`` encodes in the step without gradients, then noise, U-Net, AdamW, clipping and an average of the
weights. With ``--accelerate`` (pip install accelerate) its ``Accelerator`` prepares network and loader; without, torch
is called directly, as accelerate does in the end on one process in fp32.

Same networks, images (`phantoms` and `prepare`), batch, precision (fp32) and machine. Both networks have the shape of
fundus256 at a quarter of its widths and 128 px, their operations are printed for both. The two take turns step by step
in one process. Encoding once is counted apart: after how many epochs it has paid for itself. The goal: 1.4 times.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.bare_loop import BareDiffusion
from benchmarks.measuring import report
from benchmarks.training_runs import StepConsole, changed, run_config
from synfundus.config.loader import load_config
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World, connect, disconnect
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.shards.reader import ShardSetReader, decode_json
from synfundus.stages import build
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.stages.phantoms import job as phantoms
from synfundus.stages.prepare import job as prepare
from synfundus.stages.train import job as train
from synfundus.stages.trial_step import latent_shape
from synfundus.storage.manifest import load_shard_set
from synfundus.telemetry.console import SilentConsole
from synfundus.training.step_cost import count_network

SCALED = (
    "launch.device=cpu",
    "train.loop.precision=fp32",
    "train.loop.channels_last=true",
    "encode_latents.precision=fp32",
    "train.diffusion.flip=false",
    "train.ema.sigma_rel=[]",  # one average, as the reference has
    "prepare.image_size_px=128",
    "train_vae.autoencoder.block_out_channels=[32, 64, 128, 128]",
    "train.unet.block_out_channels=[48, 96, 144, 192]",
    "train.unet.attention_head_dim=48",
    "train.unet.cross_attention_dim=128",
    "train.unet.norm_num_groups=16",
)


class Photographs(Dataset[tuple[Tensor, Tensor]]):
    """The set's PNGs and label states, as a folder of files would give them."""

    def __init__(self, folder: Path) -> None:
        image_set = load_shard_set(str(folder), kind="images")
        reader = ShardSetReader(image_set, split="train")
        self._samples: list[tuple[bytes, np.ndarray[Any, Any]]] = []
        for shard, size in enumerate(reader.shard_sizes):
            for sample in range(size):
                members = reader.read(shard, sample)[1]
                labels = decode_json(members["json"], where="")["labels"]
                self._samples.append((bytes(members["png"]), np.asarray(image_set.label_schema.encode(labels))))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._samples)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """Return pixels in [-1, 1] ``[3, h, w]`` and label states."""
        png, states = self._samples[number]
        pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB")))
        return pixels.permute(2, 0, 1).float() / 127.5 - 1.0, torch.from_numpy(states).long()


class OnTheFly:
    """The loop that encodes in the step; one step after each of ours."""

    def __init__(self, config: RunConfig, folder: Path, *, workers: int, accelerate: bool) -> None:
        shape = latent_shape(config.train_vae.autoencoder, image_size_px=config.prepare.image_size_px)
        self._encoder = (
            AutoencoderKL.from_pretrained(folder / "vae", low_cpu_mem_usage=False).eval().requires_grad_(False)
        )
        self._loop = BareDiffusion(config, shape)
        loader: Any = DataLoader(
            Photographs(folder / "images"),
            batch_size=config.train.loop.global_batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        if accelerate:
            from accelerate import Accelerator

            accelerator = Accelerator(cpu=True)
            self._loop.network, loader = accelerator.prepare(self._loop.network, loader)
        self._batches = self._endless(loader)
        self._began = time.perf_counter()
        self.ours_s: list[float] = []
        self.reference_s: list[float] = []

    @staticmethod
    def _endless(loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    def after_step(self) -> None:
        """Take the time of our step and train one of the other kind."""
        now = time.perf_counter()
        self.ours_s.append(now - self._began)
        pixels, states = next(self._batches)
        with torch.no_grad():
            moments = self._encoder.encode(pixels).latent_dist.parameters
        self._loop.step(moments, states)
        self._began = time.perf_counter()
        self.reference_s.append(self._began - now)


def gflops(config: RunConfig) -> tuple[float, float]:
    """Return the GFLOPs of encoding an image, and of its forward and backward pass through the U-Net."""
    size = config.prepare.image_size_px
    shape = latent_shape(config.train_vae.autoencoder, image_size_px=size)
    with torch.device("meta"):
        encoder = build.autoencoder(config.train_vae.autoencoder, image_size_px=size, seed=0).network.encoder
        network = build.denoiser(config.train.unet, seed=config.seed, schema=DEFAULT_LABEL_SCHEMA, latent_shape=shape)
        pixels, latents = torch.empty(1, 3, size, size), torch.empty(1, *shape)
        place = torch.zeros(1, dtype=torch.int64)
        states = torch.zeros(1, len(DEFAULT_LABEL_SCHEMA.labels), dtype=torch.int64)
    encode = count_network(encoder, pixels).flops_forward
    return encode / 1e9, 3 * count_network(network, latents, place, states).flops_forward / 1e9


def write_sets(base: RunConfig, folder: Path, world: World, num_images: int) -> float:
    """Draw, prepare and encode; returns the seconds encoding took for an image."""
    size = base.prepare.image_size_px
    source, images, latents = str(folder / "photographs"), str(folder / "images"), str(folder / "latents")
    changes = {
        "phantoms": {"out": source, "num_images": num_images, "image_size_px": size + 16},
        "prepare": {"source": source, "labels": f"{source}/labels.csv", "out": images},
        "encode_latents": {"data": images, "vae": str(folder / "vae"), "out": latents},
    }
    config = changed(base, changes)
    build.autoencoder(base.train_vae.autoencoder, image_size_px=size, seed=0).save_pretrained(folder / "vae")
    phantoms.run(config, world, SilentConsole())
    prepare.run(config, world, SilentConsole())
    began = time.perf_counter()
    encoded = int(encode_latents.run(config, world, SilentConsole())["num_samples"])
    return (time.perf_counter() - began) / encoded


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, default=0, help="of the reference's DataLoader; 0 as in the example")
    parser.add_argument("--accelerate", action="store_true", help="run the reference under accelerate")
    arguments = parser.parse_args()
    world, batch = connect(device="cpu", timeout_s=60, num_threads=0), arguments.batch
    sizes = [f"train.loop.global_batch_size={batch}", f"train.loop.micro_batch_size={batch}"]
    base = load_config(preset="fundus256", file=None, settings=[*SCALED, *sizes], flags=[]).config
    for name, config in (
        ("fundus256", load_config(preset="fundus256", file=None, settings=[], flags=[]).config),
        ("here", base),
    ):
        encode, step = gflops(config)
        print(f"  {name}: encoding {encode:.1f} GFLOPs an image, U-Net step {step:.1f}, ratio {encode / step:.2f}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        encode_s = write_sets(base, folder, world, arguments.images)
        pair = OnTheFly(base, folder, workers=arguments.workers, accelerate=arguments.accelerate)
        config = run_config(base, folder, name="run", steps=arguments.steps + 2)
        train.run(config, world, StepConsole(pair.after_step))
    ours, reference = (statistics.median(seconds[2:]) / batch for seconds in (pair.ours_s, pair.reference_s))
    print(
        f"  encoding once: {1e3 * encode_s:.1f} ms an image; paid for after {encode_s / (reference - ours):.2f} epochs"
    )
    report(
        name="end_to_end",
        ours=1 / ours,
        reference=1 / reference,
        goal=1.4,
        unit="images/s",
        ratios=[other / one for one, other in zip(pair.ours_s[2:], pair.reference_s[2:], strict=True)],
    )
    disconnect()


if __name__ == "__main__":
    main()
