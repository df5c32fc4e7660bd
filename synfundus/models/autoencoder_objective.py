"""The training objective of the autoencoder: L1, SSIM, a small KL term and, after a warm-up, a patch discriminator."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from synfundus.errors import ConfigError
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.reconstruction_metrics import ssim_map

_PIXEL_RANGE = 2.0
_DISCRIMINATOR_SCALE = 2.0**-7
"""Of the discriminator's loss where it is added: AdamW divides it out again, a clip norm over all that is trained sees
next to nothing of it, and the autoencoder is clipped by its own gradient. A power of two rounds nothing."""


class AutoencoderObjective(nn.Module):
    """Autoencoder, optional discriminator and their joint loss: one module for one engine.

    Generator and discriminator losses are summed, the latter scaled down so that clipping hardly sees it. Each reaches
    only its own parameters: the generator's uses detached discriminator parameters, the discriminator's a detached
    reconstruction.

    Args:
        autoencoder: To be trained.
        discriminator: None = no adversarial term.
        l1_weight: Weight of the mean absolute error.
        structural_weight: Weight of ``1 - SSIM``.
        kl_weight: Weight of the KL divergence from a standard normal, nats per latent value; no effect on exact codes.
        adversarial_weight: Weight of the generator's hinge loss.
        adversarial_start_images: Images seen before the discriminator is used.

    Source: Rombach et al. 2022, "High-resolution image synthesis with latent diffusion models", Eq. 25.
    """

    def __init__(
        self,
        *,
        autoencoder: LatentAutoencoder,
        discriminator: PatchDiscriminator | None,
        l1_weight: float,
        structural_weight: float,
        kl_weight: float,
        adversarial_weight: float,
        adversarial_start_images: int,
    ) -> None:
        super().__init__()
        self.codec = autoencoder  # the prefix of its weights in checkpoints
        self.discriminator = discriminator
        self.l1_weight = l1_weight
        self.structural_weight = structural_weight
        self.kl_weight = kl_weight
        self.adversarial_weight = adversarial_weight
        self.adversarial_start_images = adversarial_start_images

    def forward(
        self,
        pixels: Float[Tensor, "b 3 h w"],
        *,
        posterior_noise: Float[Tensor, "b c lh lw"],
        images_seen: int,
        weights: Float[Tensor, "b"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss, and its parts, detached, each the mean over samples.

        The loss divides by the number of slots, so that its mean over micro-batches and ranks is the mean over the
        global batch, however it is split.

        Args:
            pixels: Images in [-1, 1].
            posterior_noise: Keyed standard normal draws.
            images_seen: Images trained on; decides whether the discriminator is used.
            weights: Weight of each sample, 0 for a slot without one; None = all 1.
        """
        moments = self.codec.encode(pixels)
        latents = LatentAutoencoder.sample_posterior(moments, posterior_noise.to(moments.dtype))
        reconstruction = self.codec.decode(latents).float()
        target = pixels.float()
        parts = {
            "l1": (reconstruction - target).abs().flatten(1).mean(dim=1),
            "structural": 1.0 - ssim_map(reconstruction, target, data_range=_PIXEL_RANGE).flatten(1).mean(dim=1),
            # an exact code is a point: its divergence is infinite and has no gradient
            "kl": torch.zeros_like(target[:, 0, 0, 0]) if self.codec.is_exact else kl_divergence(moments),
        }
        loss = (
            self.l1_weight * parts["l1"] + self.structural_weight * parts["structural"] + self.kl_weight * parts["kl"]
        )
        if self.discriminator is not None and images_seen >= self.adversarial_start_images:
            parts["generator"] = generator_hinge_loss(self.discriminator, reconstruction)
            parts["discriminator"] = discriminator_hinge_loss(self.discriminator, target, reconstruction)
            loss = loss + self.adversarial_weight * parts["generator"] + _DISCRIMINATOR_SCALE * parts["discriminator"]
        parts["mean_squared_error"] = (reconstruction - target).square().flatten(1).mean(dim=1)
        return _mean_over_slots(loss, weights), {
            name: _weighted_mean(part.detach(), weights) for name, part in parts.items()
        }


def kl_divergence(moments: Float[Tensor, "b c2 lh lw"]) -> Float[Tensor, "b"]:
    """Return the KL divergence of each posterior from a standard normal, nats per latent value.

    Source: Kingma and Welling 2014, "Auto-encoding variational Bayes", App. B.
    """
    mean, logvar = LatentAutoencoder.split(moments.float())
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).flatten(1).mean(dim=1)


def _mean_over_slots(values: Float[Tensor, "b"], weights: Float[Tensor, "b"] | None) -> Float[Tensor, ""]:
    """Return the weighted sum divided by the number of slots, those of weight 0 included."""
    if weights is None:
        return values.mean()
    # a tensor divides: on a GPU a number would multiply by its inverse, and older runs end with other bits
    return (values * weights.to(values)).sum() / values.new_full((), len(values))


def _weighted_mean(values: Float[Tensor, "b"], weights: Float[Tensor, "b"] | None) -> Float[Tensor, ""]:
    """Return the weighted mean, exactly 0 if all weights are 0."""
    if weights is None:
        return values.mean()
    weights = weights.to(values)
    total = weights.sum()
    return (values * weights).sum() / torch.where(total > 0, total, torch.ones_like(total))


_SLOPE = 0.2


class PatchDiscriminator(nn.Module):
    """Scores for each patch whether it is from a photograph or from the decoder.

    It has group norm instead of the original's batch norm: a sample's score must not depend on its batch or rank.

    Args:
        base_channels: Width after the first convolution; doubled by each further one, up to a factor of eight.
        num_layers: Convolutions of stride 2; with 3 a patch is 70 px.
        norm_num_groups: Groups of the group norms.

    Raises:
        ConfigError: Fewer than one layer, or a width that is not a multiple of the groups.

    Source: Isola et al. 2017, "Image-to-image translation with conditional adversarial networks", Sec. 3.2.2.
    """

    def __init__(self, *, base_channels: int, num_layers: int, norm_num_groups: int) -> None:
        super().__init__()
        if num_layers < 1 or base_channels % norm_num_groups:
            raise ConfigError(
                f"a discriminator of {num_layers} layers, {base_channels} channels and {norm_num_groups} norm groups "
                "cannot be built"
            )
        widths = [base_channels * min(2**level, 8) for level in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        for level in range(1, num_layers + 1):
            layers += [
                nn.Conv2d(
                    widths[level - 1], widths[level], 4, stride=2 if level < num_layers else 1, padding=1, bias=False
                ),
                nn.GroupNorm(norm_num_groups, widths[level]),
                nn.LeakyReLU(_SLOPE),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 _h _w"]:
        """Return one score per patch; high means photograph."""
        scores: Tensor = self.layers(pixels.to(next(self.parameters()).dtype))
        return scores


def generator_hinge_loss(discriminator: nn.Module, reconstruction: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Return how far each reconstruction is from passing as a photograph.

    The gradient reaches the reconstruction but not the discriminator, whose parameters are detached, so that one engine
    and one backward pass can train both.

    Source: Lim and Ye 2017, "Geometric GAN", Eq. 14.
    """
    frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    scores: Tensor = functional_call(discriminator, frozen, (reconstruction,))
    return -scores.float().flatten(1).mean(dim=1)


def discriminator_hinge_loss(
    discriminator: nn.Module, photograph: Float[Tensor, "b 3 h w"], reconstruction: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b"]:
    """Return how badly photographs and reconstructions are told apart; the reconstruction gets no gradient.

    Source: Lim and Ye 2017, "Geometric GAN", Eq. 13.
    """
    real, fake = (
        discriminator(torch.cat([photograph.to(reconstruction.dtype), reconstruction.detach()])).float().chunk(2)
    )
    margins = 0.5 * (functional.relu(1.0 - real) + functional.relu(1.0 + fake))
    return margins.flatten(1).mean(dim=1)
