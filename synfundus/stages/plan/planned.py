"""What `plan` plans: the chain from images to a model, with all that its needs depend on, and its networks counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from synfundus.config.assets import read_ds_file
from synfundus.config.auto import working_precision
from synfundus.config.diffusion import TrainConfig
from synfundus.config.generation import EncodeLatentsConfig, SampleConfig
from synfundus.config.machine import PlanConfig
from synfundus.config.schema import RunConfig
from synfundus.config.training import Precision, TrainVaeConfig
from synfundus.distributed.ds_config import check_ds_file
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.stages import build
from synfundus.stages.trial_step import latent_shape
from synfundus.training.memory.footprint import GPUS, Gpu
from synfundus.training.step_cost import NetworkCount, Reconstruction, count_network


@dataclass(frozen=True)
class PlannedRun:
    """The chain that is planned.

    Attributes:
        plan: The plan section.
        train: The train section.
        train_vae: The train_vae section.
        encode: The encode_latents section.
        sample: The sample section.
        image_size_px: Edge of the images.
        nodes: Number of nodes.
        ranks_per_node: Ranks per node.
        ds_document: Content of the DeepSpeed file.
        seed: Seed of the run.
    """

    plan: PlanConfig
    train: TrainConfig
    train_vae: TrainVaeConfig
    encode: EncodeLatentsConfig
    sample: SampleConfig
    image_size_px: int
    nodes: int
    ranks_per_node: int
    ds_document: dict[str, Any]
    seed: int

    @classmethod
    def of(cls, config: RunConfig) -> PlannedRun:
        """Build it from a configuration."""
        launch = config.launch
        path, document = read_ds_file(launch.ds_config, device="cuda")
        return cls(
            plan=config.plan,
            train=config.train,
            train_vae=config.train_vae,
            encode=config.encode_latents,
            sample=config.sample,
            image_size_px=config.prepare.image_size_px,
            nodes=launch.nodes,
            ranks_per_node=launch.procs_per_node or launch.gpus_per_node or 1,
            ds_document=check_ds_file(document, where=str(path)),
            seed=config.seed,
        )

    @property
    def ranks(self) -> int:
        """Return the number of ranks."""
        return self.nodes * self.ranks_per_node

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return ``(c, h, w)`` of a latent."""
        return latent_shape(self.train_vae.autoencoder, image_size_px=self.image_size_px)

    @property
    def gpu(self) -> Gpu:
        """Return the GPU to plan for."""
        return GPUS[self.plan.gpu]

    @property
    def brought_autoencoder(self) -> str | None:
        """Return the autoencoder that is encoded with if it is not the one trained here."""
        vae, run = self.encode.vae, self.train_vae.run_dir
        ours = run is not None and vae is not None and f"{vae}/".startswith(f"{run.rstrip('/')}/")
        return None if ours else vae

    def weight_bytes(self, precision: Precision) -> int:
        """Return the bytes of a weight on the GPU."""
        return 2 if working_precision(precision, native_bf16=self.gpu.native_bf16) == "bf16" else 4

    def dtype(self, precision: Precision) -> torch.dtype:
        """Return the type of a weight on the GPU."""
        return torch.bfloat16 if self.weight_bytes(precision) == 2 else torch.float32

    def speed(self, *, weight_bytes: int, tf32: bool) -> tuple[float, float]:
        """Return (fraction of the peak, operations a second) to plan with: as given, else the card's."""
        hfu = self.plan.mfu or self.gpu.utilisation(weight_bytes=weight_bytes, tf32=tf32)
        return hfu, hfu * self.gpu.peak(weight_bytes=weight_bytes, tf32=tf32)


@dataclass(frozen=True)
class Counts:
    """The networks of the chain, counted for one image.

    Attributes:
        denoiser: U-Net and conditioner.
        autoencoder: The autoencoder, from image to image.
        encoder: Its encoder.
        discriminator: The discriminator of its training; None if there is none.
    """

    denoiser: NetworkCount
    autoencoder: NetworkCount
    encoder: NetworkCount
    discriminator: NetworkCount | None


def count_networks(planned: PlannedRun) -> Counts:
    """Count the networks of the chain on the meta device."""
    section, size = planned.train_vae, planned.image_size_px
    dtype = planned.dtype(section.loop.precision)
    with torch.device("meta"):
        autoencoder = build.autoencoder(section.autoencoder, image_size_px=size, seed=planned.seed).to(dtype).train()
        edge = size // autoencoder.block_size_px
        blocks = torch.empty(1, int(autoencoder.network.config.in_channels), edge, edge, dtype=dtype)
        encoder = count_network(autoencoder.network.encoder, blocks)
        if section.loop.gradient_checkpointing:
            autoencoder.network.enable_gradient_checkpointing()
        discriminator = build.discriminator(section.loss, seed=planned.seed)
        return Counts(
            denoiser=_count_denoiser(planned),
            autoencoder=count_network(Reconstruction(autoencoder), blocks),
            encoder=encoder,
            discriminator=None
            if discriminator is None
            else count_network(discriminator, torch.empty(1, 3, size, size)),
        )


def _count_denoiser(planned: PlannedRun) -> NetworkCount:
    """Count U-Net and conditioner for one image."""
    schema, shape, loop = DEFAULT_LABEL_SCHEMA, planned.latent_shape, planned.train.loop
    denoiser = build.denoiser(planned.train.unet, seed=planned.seed, schema=schema, latent_shape=shape)
    denoiser = denoiser.to(planned.dtype(loop.precision)).train()
    if loop.gradient_checkpointing:
        denoiser.unet.enable_gradient_checkpointing()
    return count_network(
        denoiser,
        torch.empty(1, *shape, dtype=planned.dtype(loop.precision)),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, len(schema.labels), dtype=torch.int64),
    )
