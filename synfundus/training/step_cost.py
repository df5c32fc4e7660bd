"""Operations per training image, counted on the network itself: for the utilisation a run reports."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synfundus.distributed.world import World
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.counting import NetworkCount, count_network, meta_copy
from synfundus.models.unet import ConditionalDenoiser
from synfundus.training.memory.footprint import GPUS, ImageFlops, find_gpu
from synfundus.training.progress import StepCost

BACKWARD = 2.0
"""Operations of a backward pass as a multiple of a forward pass."""


@dataclass(frozen=True)
class Kernels:
    """How a step is computed.

    Attributes:
        bf16: bf16 instead of fp32.
        tf32: fp32 products on a GPU use tensor cores.
        gradient_checkpointing: The backward pass recomputes activations.
    """

    bf16: bool
    tf32: bool
    gradient_checkpointing: bool


class _Reconstruction(nn.Module):
    """The autoencoder's network from input to output; a linear path is left out, as its cost is negligible."""

    def __init__(self, autoencoder: LatentAutoencoder) -> None:
        super().__init__()
        self.network = autoencoder.network

    def forward(self, blocks: Tensor) -> Tensor:
        """Return the reconstruction."""
        encoded = self.network.encode(blocks)
        # AutoencoderDC has no posterior
        latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latent
        restored: Tensor = self.network.decode(latents, return_dict=False)[0]
        return restored


def denoiser_cost(
    denoiser: ConditionalDenoiser,
    *,
    latent_shape: tuple[int, int, int],
    num_labels: int,
    kernels: Kernels,
    world: World,
) -> StepCost | None:
    """Count U-Net and conditioner on rank 0; None elsewhere.

    Args:
        denoiser: As built: before attention kernels are chosen and the engine wraps it.
        latent_shape: ``(c, lh, lw)``.
        num_labels: Labels of the schema.
        kernels: How the step is computed.
        world: The job.
    """
    if world.rank > 0:
        return None
    with torch.device("meta"):
        inputs = (
            torch.empty(1, *latent_shape),
            torch.zeros(1, dtype=torch.int64),
            torch.zeros(1, num_labels, dtype=torch.int64),
        )
    shadow = meta_copy(denoiser)
    if kernels.gradient_checkpointing:
        shadow.unet.enable_gradient_checkpointing()
    return _cost(count_network(shadow, *inputs), kernels, world)


def autoencoder_cost(
    autoencoder: LatentAutoencoder, *, image_size_px: int, kernels: Kernels, world: World
) -> StepCost | None:
    """Count the autoencoder on rank 0, without a discriminator; None elsewhere.

    Args:
        autoencoder: As built, see `denoiser_cost`.
        image_size_px: Edge of the images.
        kernels: How the step is computed.
        world: The job.
    """
    if world.rank > 0:
        return None
    edge = image_size_px // autoencoder.block_size_px
    blocks = torch.empty(1, int(autoencoder.network.config.in_channels), edge, edge, device="meta")
    shadow = meta_copy(_Reconstruction(autoencoder))
    if kernels.gradient_checkpointing:
        shadow.network.enable_gradient_checkpointing()
    return _cost(count_network(shadow, blocks), kernels, world)


def image_flops(count: NetworkCount) -> ImageFlops:
    """Return the operations of a training image from those of its forward pass and its recomputation."""
    model = count.flops_forward * (1.0 + BACKWARD)
    return ImageFlops(model=model, hardware=model + count.flops_recomputed)


def _cost(count: NetworkCount, kernels: Kernels, world: World) -> StepCost:
    flops = image_flops(count)
    return StepCost(
        flops_per_image=flops.model,
        recomputed=flops.hardware / flops.model,
        peak_flops=_peak_flops(kernels, world),
    )


def _peak_flops(kernels: Kernels, world: World) -> float | None:
    """Return the peak of this rank's GPU in the precision of the run, None if unknown."""
    if world.device != "cuda":
        return None
    gpu = find_gpu(torch.cuda.get_device_name())
    return None if gpu is None else GPUS[gpu].peak(weight_bytes=2 if kernels.bf16 else 4, tf32=kernels.tf32)
