"""The autoencoder between pixels and latents: a network of diffusers, optionally beside a linear path.

Its files are a stock folder of its class. Where the linear path is on, two more files lie beside them, and what
``AutoencoderKL.from_pretrained`` opens is the network alone, which then holds only the residual.

``AutoencoderDC`` has no posterior: an image has one code. Its moments are that code and the lowest log-variance, which
makes the posterior practically a point: its standard deviation is 3e-7.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from synfundus.errors import CheckpointError, ConfigError
from synfundus.models import linear_path as linear_path_files
from synfundus.models.diffusers_classes import AutoencoderDC, AutoencoderKL
from synfundus.models.linear_path import LinearPath
from synfundus.models.weight_files import CONFIG_NAME, WEIGHTS_NAME, find_weights, hash_network, read_config

LOGVAR_RANGE = (-30.0, 20.0)
"""The posterior's log-variance is clamped to this range, as in diffusers; the lower end means an exact code."""

_INITIAL_LOGVAR = -6.0
"""Initial log-variance of the posterior with a linear path: latents of unit variance, 5 % noise."""

_CLASSES: dict[str, type[AutoencoderKL] | type[AutoencoderDC]] = {
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderDC": AutoencoderDC,
}
_KIND = "autoencoder"
_ORIGIN = "_name_or_path"


class LatentAutoencoder(nn.Module):
    """Encode images to posterior moments, decode latents to images.

    With a linear path, both directions are its output plus the network's, whose last convolutions start at zero. A
    network of ``3 r^2`` channels instead of 3 sees and draws images as blocks of ``r x r`` pixels.

    Args:
        network: The network of diffusers.
        linear_path: Fitted or to be fitted; None = the stock autoencoder, exactly.
        config_document: The config it was loaded with, written unchanged when it is saved; None = diffusers' own. A
            config of another diffusers version lacks keys, so diffusers' own would change the fingerprint of a copy.

    Raises:
        ConfigError: Patch size or channels of the linear path are not the network's.
    """

    def __init__(
        self,
        *,
        network: AutoencoderKL | AutoencoderDC,
        linear_path: LinearPath | None,
        config_document: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.autoencoder = network  # the prefix of its weights in checkpoints
        self.linear_path = linear_path
        self._config_document = None if config_document is None else dict(config_document)
        if linear_path is not None:
            wanted = (self.downsample_factor, self.latent_channels)
            given = (linear_path.patch_size_px, linear_path.latent_channels)
            if wanted != given:
                raise ConfigError(
                    f"the autoencoder shrinks by {wanted[0]} to {wanted[1]} channels, "
                    f"the linear path by {given[0]} to {given[1]}"
                )

    @property
    def network(self) -> AutoencoderKL | AutoencoderDC:
        """The network of diffusers."""
        return self.autoencoder

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(self.network.config.latent_channels)

    @property
    def downsample_factor(self) -> int:
        """Image size over latent size."""
        if isinstance(self.network, AutoencoderDC):
            return int(self.network.spatial_compression_ratio)
        return self.block_size_px * int(2 ** (len(self.network.config.block_out_channels) - 1))

    @property
    def block_size_px(self) -> int:
        """Edge of the pixel blocks the network works on; 1 for a stock one."""
        return math.isqrt(int(self.network.config.in_channels) // 3)

    @property
    def is_exact(self) -> bool:
        """Whether an image has one code instead of a posterior."""
        return isinstance(self.network, AutoencoderDC)

    @property
    def class_name(self) -> str:
        """The diffusers class that opens the folder."""
        return type(self.network).__name__

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c2 lh lw"]:
        """Return the posterior's mean and clamped log-variance, raw.

        Args:
            pixels: Images in [-1, 1]; height and width multiples of the downsample factor.

        Raises:
            ConfigError: Another size.
        """
        if pixels.shape[-1] % self.downsample_factor or pixels.shape[-2] % self.downsample_factor:
            raise ConfigError(
                f"images of {pixels.shape[-2]} x {pixels.shape[-1]} px cannot be encoded by an autoencoder that "
                f"shrinks by {self.downsample_factor}",
                hint=f"use an image size that is a multiple of {self.downsample_factor}",
            )
        blocks = functional.pixel_unshuffle(pixels.to(self._dtype), self.block_size_px)
        mean, logvar = self._moments(blocks)
        if self.linear_path is not None:
            mean = self.linear_path.encode(pixels) + mean
        return torch.cat([mean, logvar.to(mean.dtype)], dim=1)

    def _moments(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's mean and log-variance."""
        if isinstance(self.network, AutoencoderDC):
            code: Tensor = self.network.encode(blocks, return_dict=False)[0]
            return code, torch.full_like(code, LOGVAR_RANGE[0])
        posterior = self.network.encode(blocks).latent_dist
        return posterior.mean, posterior.logvar

    def decode(self, latents: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Return pixels, not clipped.

        Args:
            latents: Un-normalised: on the scale :meth:`encode` gives.
        """
        blocks = self.network.decode(latents.to(self._dtype), return_dict=False)[0]
        pixels = functional.pixel_shuffle(blocks, self.block_size_px)
        if self.linear_path is not None:
            pixels = self.linear_path.decode(latents) + pixels
        return pixels

    @staticmethod
    def split(moments: Float[Tensor, "b c2 lh lw"]) -> tuple[Float[Tensor, "b c lh lw"], Float[Tensor, "b c lh lw"]]:
        """Return mean and log-variance."""
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar

    @staticmethod
    def sample_posterior(
        moments: Float[Tensor, "b c2 lh lw"], noise: Float[Tensor, "b c lh lw"]
    ) -> Float[Tensor, "b c lh lw"]:
        """Return the sample of the posterior that this noise gives.

        Source: Kingma and Welling 2014, "Auto-encoding variational Bayes", Eq. 10.
        """
        mean, logvar = LatentAutoencoder.split(moments)
        return mean + torch.exp(0.5 * logvar) * noise

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.network.parameters()).dtype
        return dtype

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a diffusers folder of the network, and the linear path's two files beside it if there is one."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.network.save_pretrained(folder, safe_serialization=True)
        if self._config_document is not None:
            text = json.dumps(self._config_document, indent=2, sort_keys=True) + "\n"
            (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
        if self.linear_path is not None:
            self.linear_path.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LatentAutoencoder:
        """Open a folder written by :meth:`save_pretrained`, or any local folder of an autoencoder with safetensors.

        Half-precision and sharded weights are read too; the result is in fp32. ``scaling_factor`` and ``shift_factor``
        of the config are not applied: moments are raw (ADR-0003).

        Raises:
            CheckpointError: No such folder, no autoencoder of a supported class, weights that do not match the config,
                or only pickled weights.
        """
        folder = Path(folder)
        config = check_autoencoder_folder(folder)
        network = _open_stock(folder, _CLASSES[config["_class_name"]])
        with_path = (folder / linear_path_files.CONFIG_NAME).exists()
        return cls(
            network=network,
            linear_path=LinearPath.from_pretrained(folder) if with_path else None,
            config_document={key: value for key, value in config.items() if key != _ORIGIN},
        )


def _open_stock(folder: Path, kind: type[AutoencoderKL] | type[AutoencoderDC]) -> AutoencoderKL | AutoencoderDC:
    """Open a network of diffusers in fp32; missing weights, which diffusers would draw at random, are refused.

    Raises:
        CheckpointError: Damaged files, or weights that do not match the config.
    """
    bar = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        network, info = kind.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            variant=find_weights(folder, kind=_KIND).variant,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"no usable {kind.__name__} here: {error}", where=str(folder)) from error
    finally:
        if bar:
            diffusers_logging.enable_progress_bar()
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise CheckpointError(
            f"no usable {kind.__name__} here: {len(wrong)} weights do not match the config, first {wrong[0]}",
            where=str(folder),
        )
    return network.float()


def build_autoencoder(
    *,
    image_size_px: int,
    block_size_px: int,
    latent_channels: int,
    block_out_channels: Sequence[int],
    layers_per_block: int,
    norm_num_groups: int,
    mid_block_attention: bool,
    linear_path: bool,
) -> LatentAutoencoder:
    """Build an autoencoder with random weights.

    Args:
        image_size_px: Image height and width.
        block_size_px: 1 = the network sees pixels, as every stock one does. ``r`` = it sees blocks of ``r x r`` pixels
            as ``3 r^2`` channels and shrinks images by a further ``r``: no work at full resolution, for a CPU.
        latent_channels: Channels of the latents.
        block_out_channels: Width of each level, finest first; ``n`` levels shrink by ``2 ** (n - 1)``.
        layers_per_block: Residual blocks per level of the encoder (one more in the decoder).
        norm_num_groups: Groups of every group norm.
        mid_block_attention: Whether the middle block has self-attention: quadratic in latent positions.
        linear_path: Add a patch-PCA path, to be fitted with ``autoencoder.linear_path.fit`` before training.

    Raises:
        ConfigError: Widths, groups or sizes that do not fit together.
    """
    if not block_out_channels:
        raise ConfigError("block_out_channels is empty: the autoencoder needs at least one level")
    if block_size_px < 1:
        raise ConfigError(f"block_size_px {block_size_px} must be at least 1")
    factor = block_size_px * 2 ** (len(block_out_channels) - 1)
    if image_size_px % factor:
        raise ConfigError(
            f"images of {image_size_px} px cannot be shrunk by {factor} ({len(block_out_channels)} levels)"
        )
    for width in block_out_channels:
        if width % norm_num_groups:
            raise ConfigError(f"a level of {width} channels cannot be split into {norm_num_groups} norm groups")
    levels = len(block_out_channels)
    network = AutoencoderKL(
        in_channels=3 * block_size_px**2,
        out_channels=3 * block_size_px**2,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        latent_channels=latent_channels,
        norm_num_groups=norm_num_groups,
        sample_size=image_size_px // block_size_px,
        # The training step normalises latents per channel (ADR-0003): no factor in the file.
        scaling_factor=1.0,
        mid_block_add_attention=mid_block_attention,
    )
    path = LinearPath(patch_size_px=factor, latent_channels=latent_channels) if linear_path else None
    if path is not None:
        _start_from_zero(network)
    return LatentAutoencoder(network=network, linear_path=path)


@torch.no_grad()
def _start_from_zero(network: AutoencoderKL) -> None:
    """Make mean and pixels zero and the log-variance small: at first only the linear path has an output."""
    channels = int(network.config.latent_channels)
    last_in, last_out = network.quant_conv, network.decoder.conv_out
    for layer in (last_in, last_out):
        layer.weight.zero_()
        layer.bias.zero_()
    last_in.bias[channels:] = _INITIAL_LOGVAR


def fingerprint(autoencoder: LatentAutoencoder | str | Path) -> str:
    """Return the SHA-256 of weights and configs: the identity that a latent set records.

    The same for an autoencoder, the folder it was saved to, and what is loaded from there. Config keys that begin with
    an underscore (library version, origin) do not count.

    Args:
        autoencoder: An autoencoder, or a local folder with one.

    Raises:
        CheckpointError: The folder holds no autoencoder.
    """
    if isinstance(autoencoder, LatentAutoencoder):
        with tempfile.TemporaryDirectory() as scratch:
            autoencoder.save_pretrained(scratch)
            return fingerprint(scratch)
    folder = Path(autoencoder)
    check_autoencoder_folder(folder)
    digest = hashlib.sha256()
    hash_network(folder, digest)
    return digest.hexdigest()


def identity(autoencoder: LatentAutoencoder, folder: Path) -> str:
    """Return the fingerprint of an autoencoder that was loaded from a folder; all its copies have the same.

    A folder of pretrained weights may hold them in half precision, in shards, under old names, or twice. Then a copy
    has other files, and the fingerprint is that of the copy.

    Args:
        autoencoder: The loaded autoencoder.
        folder: The folder it was loaded from.

    Raises:
        CheckpointError: The folder holds no autoencoder.
    """
    return fingerprint(folder) if _is_as_saved(autoencoder, folder) else fingerprint(autoencoder)


def _is_as_saved(autoencoder: LatentAutoencoder, folder: Path) -> bool:
    """Whether the folder holds exactly what :meth:`LatentAutoencoder.save_pretrained` writes."""
    wanted = {CONFIG_NAME, WEIGHTS_NAME}
    if autoencoder.linear_path is not None:
        wanted |= {linear_path_files.CONFIG_NAME, linear_path_files.WEIGHTS_NAME}
    if {path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors")} != wanted:
        return False
    names = autoencoder.network.state_dict().keys()
    with safe_open(folder / WEIGHTS_NAME, framework="pt") as weights:
        if weights.metadata() != {"format": "pt"} or weights.offset_keys() != sorted(names):
            return False
        return all(weights.get_slice(name).get_dtype() == "F32" for name in names)


def check_autoencoder_folder(folder: Path) -> dict[str, Any]:
    """Return the config of an autoencoder folder; refuse other folders before diffusers does at length.

    Raises:
        CheckpointError: No config, no safetensors, another class, or a network that does not work on RGB images.
    """
    find_weights(folder, kind=_KIND)
    config = read_config(folder, classes=tuple(_CLASSES), kind=_KIND)
    channels = config.get("in_channels", 3)
    if not isinstance(channels, int) or channels < 3 or 3 * math.isqrt(channels // 3) ** 2 != channels:
        raise CheckpointError(f"the autoencoder works on {channels!r} channels, not on RGB images", where=str(folder))
    if config["_class_name"] != "AutoencoderKL" and (folder / linear_path_files.CONFIG_NAME).exists():
        raise CheckpointError(f"a linear path beside an {config['_class_name']}", where=str(folder))
    return config
