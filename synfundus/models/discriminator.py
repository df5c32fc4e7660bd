"""A patch discriminator and its hinge losses, which sharpen the autoencoder's reconstructions after a warm-up."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from synfundus.errors import ConfigError

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
