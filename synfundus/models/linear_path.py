"""A linear autoencoder in closed form, for training from scratch in minutes.

Principal components of image patches are the best linear code, and take a second to fit. The convolutional network
then starts from zero output and learns only what a linear code cannot express. A production run starts from pretrained
weights instead and turns this off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from synfundus.errors import CheckpointError, ConfigError, DataError

WEIGHTS_NAME = "linear_path.safetensors"
CONFIG_NAME = "linear_path.json"
_CLASS_NAME = "LinearPath"
_MIN_VARIANCE = 1e-6
_CONTEXT = 5
_DECODE_NOISE_STD = 0.05
_SPREAD_POWER = 0.5


class LinearPath(nn.Module):
    """Patch PCA in, regression out: one latent position per patch, one latent channel per principal component.

    The decoder uses a neighbourhood of latent positions, which avoids visible block edges. Over the images it was
    fitted to, channels have mean 0 and mean variance 1; the ratios of their standard deviations are the square roots of
    the ratios in the image. With equal ones the diffusion model would have to produce fine detail and layout at the
    same noise level, as if both mattered equally.

    The weights are buffers, not parameters: the network learns the residual, and the optimizer cannot change them. They
    stay float32 whatever the surrounding module is converted to, and compute in float32 under autocast.

    Args:
        patch_size_px: Edge of a patch, the autoencoder's downsample factor.
        latent_channels: Principal components kept.

    Raises:
        ConfigError: More components than a patch has values.
    """

    mean: Tensor
    encode_weight: Tensor
    decode_weight: Tensor
    decode_bias: Tensor

    def __init__(self, *, patch_size_px: int, latent_channels: int) -> None:
        super().__init__()
        size = 3 * patch_size_px**2
        if not 1 <= latent_channels <= size:
            raise ConfigError(
                f"{latent_channels} latent channels from patches of {patch_size_px} px: 1 to {size} are possible"
            )
        self.patch_size_px = patch_size_px
        self.latent_channels = latent_channels
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("encode_weight", torch.zeros(latent_channels, size))
        self.register_buffer("decode_weight", torch.zeros(size, latent_channels, _CONTEXT, _CONTEXT))
        self.register_buffer("decode_bias", torch.zeros(size))

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Project each patch onto the components."""
        with torch.autocast(pixels.device.type, enabled=False):
            patches = functional.pixel_unshuffle(pixels.float(), self.patch_size_px) - self.mean[:, None, None]
            return functional.conv2d(patches, self.encode_weight[:, :, None, None])

    def decode(self, latents: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Predict each patch from the latents at its position and around it."""
        with torch.autocast(latents.device.type, enabled=False):
            patches = functional.conv2d(
                latents.float(), self.decode_weight, bias=self.decode_bias, padding=_CONTEXT // 2
            )
            return functional.pixel_shuffle(patches, self.patch_size_px)

    @torch.no_grad()
    def fit(self, images: Iterable[Float[Tensor, "b 3 h w"]]) -> Float[Tensor, "c"]:
        """Set the weights from training images; returns the share of the image's variance in each component.

        The same images in the same order give the same weights: sums in float64, eigenvectors with a fixed sign.

        Args:
            images: Batches in [-1, 1], kept in memory during the fit; a few hundred images are enough.

        Raises:
            DataError: No images, or images without variance in as many directions as there are channels.

        Source: Jolliffe 2002, "Principal component analysis", Ch. 2 (encoder); Bishop 1995, "Training with noise is
        equivalent to Tikhonov regularization" (decoder, fitted as if the latents carried a little noise).
        """
        batches = [batch.detach().cpu() for batch in images]
        shares = self._fit_encoder(batches)
        self._fit_decoder(batches)
        return shares

    def _fit_encoder(self, batches: Sequence[Float[Tensor, "_ 3 h w"]]) -> Float[Tensor, "c"]:
        """Set mean and projection; returns each component's share of the variance."""
        size = self.mean.shape[0]
        total = torch.zeros(size, dtype=torch.float64)
        scatter = torch.zeros(size, size, dtype=torch.float64)
        count = 0
        for batch in batches:
            rows = self._patch_rows(batch)
            total += rows.sum(dim=0)
            scatter += rows.T @ rows
            count += rows.shape[0]
        if count < 2:
            raise DataError("there are no training images to fit the linear path to")
        mean = total / count
        covariance = scatter / count - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)
        order = torch.argsort(values, descending=True)[: self.latent_channels]
        variances, components = values[order], vectors[:, order]
        if float(variances[-1]) < _MIN_VARIANCE:
            raise DataError(
                f"the training images vary in fewer than {self.latent_channels} directions",
                hint="use fewer latent channels, or check the images: are they all black?",
            )
        # An eigenvector's sign is arbitrary, and LAPACK's choice differs between machines.
        largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
        components = components * largest.sign()
        spread = variances.pow(0.5 * _SPREAD_POWER)
        spread = spread / spread.square().mean().sqrt()
        self.mean.copy_(mean)
        self.encode_weight.copy_((components / variances.sqrt() * spread).T)
        share: Tensor = (variances / covariance.diagonal().sum()).float()
        return share

    def _fit_decoder(self, batches: Sequence[Float[Tensor, "_ 3 h w"]]) -> None:
        """Set the regression from each neighbourhood of latents to its central patch."""
        features = self.latent_channels * _CONTEXT**2 + 1
        gram = torch.zeros(features, features, dtype=torch.float64)
        cross = torch.zeros(features, self.mean.shape[0], dtype=torch.float64)
        count = 0
        for batch in batches:
            latents = self.encode(batch.to(self.mean.device)).cpu()
            around = functional.unfold(latents, _CONTEXT, padding=_CONTEXT // 2)
            around = around.transpose(1, 2).flatten(0, 1).double()
            around = torch.cat([around, torch.ones(len(around), 1, dtype=torch.float64)], dim=1)
            gram += around.T @ around
            cross += around.T @ self._patch_rows(batch)
            count += len(around)
        ridge = torch.full((features,), count * _DECODE_NOISE_STD**2, dtype=torch.float64)
        ridge[-1] = 0.0
        weights = torch.linalg.solve(gram + torch.diag(ridge), cross)
        self.decode_weight.copy_(weights[:-1].T.reshape(self.decode_weight.shape))
        self.decode_bias.copy_(weights[-1])

    def _patch_rows(self, batch: Float[Tensor, "b 3 h w"]) -> Tensor:
        """Return one row of values per patch, float64, patches in reading order."""
        patches = functional.pixel_unshuffle(batch.double(), self.patch_size_px)
        return patches.movedim(1, -1).reshape(-1, self.mean.shape[0])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LinearPath:
        """Follow moves between devices but not conversions: bf16 would round the code of the latents."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call, unused-ignore]
        for name, buffer in before.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``linear_path.json`` and ``linear_path.safetensors`` beside the autoencoder's files."""
        folder = Path(folder)
        config = {
            "_class_name": _CLASS_NAME,
            "patch_size_px": self.patch_size_px,
            "latent_channels": self.latent_channels,
        }
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS_NAME)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LinearPath:
        """Read what :meth:`save_pretrained` wrote.

        Raises:
            CheckpointError: Files that are missing, damaged or do not fit each other.
        """
        folder = Path(folder)
        try:
            config: dict[str, Any] = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
            path = cls(patch_size_px=config["patch_size_px"], latent_channels=config["latent_channels"])
            path.load_state_dict(load_file(folder / WEIGHTS_NAME))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"no usable linear path here: {error}", where=str(folder)) from error
        return path
