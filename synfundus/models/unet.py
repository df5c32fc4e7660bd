"""The conditional denoiser: a stock ``UNet2DConditionModel`` and the label conditioner in one module.

diffusers supplies the network (ADR-0001), so that every export opens with ``from_pretrained``. Labels enter twice: as
one token each through cross-attention, where a position can attend to the lesion it should draw, and pooled through the
time embedding, where they reach every residual block, also at levels without attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from synfundus.errors import ConfigError
from synfundus.models.conditioner import LabelConditioner
from synfundus.models.diffusers_classes import UNet2DConditionModel


def build_unet(
    *,
    sample_size: int,
    latent_channels: int,
    block_out_channels: Sequence[int],
    layers_per_block: int,
    attention_levels: Sequence[bool],
    attention_head_dim: int,
    cross_attention_dim: int,
    pooled_dim: int,
    norm_num_groups: int,
    transformer_layers_per_block: int,
    dropout: float,
    scale_shift_norm: bool,
) -> UNet2DConditionModel:
    """Build the U-Net of the diffusion model.

    Args:
        sample_size: Latent height and width.
        latent_channels: Channels of the latents, in and out.
        block_out_channels: Width of each resolution level, finest first.
        layers_per_block: Residual blocks per level on the way down (one more on the way up).
        attention_levels: For each level, whether its blocks have self-attention and attend to the labels. The middle
            block does if the coarsest level does.
        attention_head_dim: Width of one head; a level has ``channels / attention_head_dim`` heads.
        cross_attention_dim: Width of a label token.
        pooled_dim: Width of the pooled condition, given to the model as ``class_labels``.
        norm_num_groups: Groups of every group norm.
        transformer_layers_per_block: Transformer layers after each residual block of an attending level.
        dropout: Dropout inside residual and transformer blocks.
        scale_shift_norm: Condition residual blocks by adaptive group norm (Dhariwal and Nichol 2021, Sec. 3).

    Raises:
        ConfigError: Widths, levels, heads, groups or latent size do not fit together.
    """
    _check_unet(sample_size, block_out_channels, attention_levels, attention_head_dim, norm_num_groups)
    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attention_levels)
    up = tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention_levels))
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=down,
        mid_block_type="UNetMidBlock2DCrossAttn" if attention_levels[-1] else "UNetMidBlock2D",
        up_block_types=up,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        # diffusers' parameter of this name has always been the number of heads (huggingface/diffusers issue 2011).
        attention_head_dim=tuple(max(width // attention_head_dim, 1) for width in block_out_channels),
        cross_attention_dim=cross_attention_dim,
        transformer_layers_per_block=transformer_layers_per_block,
        norm_num_groups=norm_num_groups,
        dropout=dropout,
        resnet_time_scale_shift="scale_shift" if scale_shift_norm else "default",
        class_embed_type="projection",
        projection_class_embeddings_input_dim=pooled_dim,
        use_linear_projection=True,
    )


def _check_unet(
    sample_size: int,
    block_out_channels: Sequence[int],
    attention_levels: Sequence[bool],
    attention_head_dim: int,
    norm_num_groups: int,
) -> None:
    """Refuse, with a clear message, what diffusers would refuse deep inside a constructor or not at all."""
    if not block_out_channels:
        raise ConfigError("block_out_channels is empty: the U-Net needs at least one level")
    if len(attention_levels) != len(block_out_channels):
        raise ConfigError(
            f"attention_levels has {len(attention_levels)} entries, block_out_channels {len(block_out_channels)}",
            hint="give one true/false per level",
        )
    shrink = 2 ** (len(block_out_channels) - 1)
    if sample_size % shrink:
        raise ConfigError(
            f"latents of {sample_size} x {sample_size} cannot be halved {len(block_out_channels) - 1} times",
            hint="use fewer levels, or an image size that is a multiple of a higher power of two",
        )
    for width, attends in zip(block_out_channels, attention_levels, strict=True):
        if width % norm_num_groups:
            raise ConfigError(f"a level of {width} channels cannot be split into {norm_num_groups} norm groups")
        if attends and width % attention_head_dim:
            raise ConfigError(f"a level of {width} channels cannot be split into heads of {attention_head_dim}")


class ConditionalDenoiser(nn.Module):
    """The trained network: U-Net (``unet.*``) and conditioner (``conditioner.*``).

    Args:
        unet: A U-Net of :func:`build_unet`, or any with tokens and a projected ``class_labels``.
        conditioner: Embeds the labels; its widths must be the U-Net's.

    Raises:
        ConfigError: The token or pooled widths of the two differ.
    """

    def __init__(self, *, unet: UNet2DConditionModel, conditioner: LabelConditioner) -> None:
        super().__init__()
        wanted = (unet.config.cross_attention_dim, unet.config.projection_class_embeddings_input_dim)
        given = (conditioner.token_dim, conditioner.pooled_dim)
        if wanted != given:
            raise ConfigError(
                f"the U-Net takes tokens of {wanted[0]} and a pooled vector of {wanted[1]}; "
                f"the conditioner gives {given[0]} and {given[1]}"
            )
        self.unet = unet
        self.conditioner = conditioner

    def forward(
        self,
        x_t: Float[Tensor, "b c lh lw"],
        timestep: Int[Tensor, "b"] | Float[Tensor, "b"],
        states: Int[Tensor, "b k"],
    ) -> Float[Tensor, "b c lh lw"]:
        """Predict noise, velocity or sample, depending on the run.

        Args:
            x_t: Noisy, normalised latents.
            timestep: Index into the noise schedule; a fraction if a sampler is between two indices.
            states: Label states, 0 = UNKNOWN.
        """
        return self.predict(x_t, timestep, *self.conditioner(states))

    def predict(self, x_t: Tensor, timestep: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
        """Predict as `forward`, for what the conditioner made of labels."""
        prediction: Tensor = self.unet(
            x_t.to(tokens.dtype), timestep, encoder_hidden_states=tokens, class_labels=pooled, return_dict=False
        )[0]
        return prediction


def same_architecture(denoiser: ConditionalDenoiser) -> ConditionalDenoiser:
    """Return a network of the same architecture for `replace_weights`: of its U-Net only the shapes, on meta."""
    conditioner = denoiser.conditioner
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):  # to draw weights that are replaced takes seconds
            unet = UNet2DConditionModel.from_config(denoiser.unet.config)
        return ConditionalDenoiser(
            unet=unet,
            conditioner=LabelConditioner(
                num_values=conditioner.num_values,
                ordinal=conditioner.ordinal,
                token_dim=conditioner.token_dim,
                pooled_dim=conditioner.pooled_dim,
            ),
        )
