"""A pretrained U-Net as the start of a run: architecture and weights are kept, labels replace its conditioning.

Only this changes:

- text tokens become label tokens of the same width, so that every attention weight fits;
- the class embedding becomes a projection of the pooled labels whose last layer is zero: labels affect the time
  embedding only once the run has learned to use them;
- the first and last convolution get the channels of the latents, see :func:`widen_input` and :func:`widen_output`;
- SDXL's added condition (pooled text and image sizes) becomes a constant in the bias of that projection: its value for
  an empty text at the network's own size. So the start computes what the pretrained network computes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from synfundus.errors import CheckpointError, ConfigError
from synfundus.models.diffusers_classes import TimestepEmbedding, Timesteps, UNet2DConditionModel

CLASS_NAME = "UNet2DConditionModel"
_BLOCKS = frozenset({"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"})
_MIDDLES = frozenset({"UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None})
_PLAIN = {
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "attention_type": "default",
    "dual_cross_attention": False,
    "class_embeddings_concat": False,
    "num_attention_heads": None,
}
"""Keys that must have diffusers' default: other values need a condition that label tokens cannot replace."""
_REPLACED = ("class_embedding.", "add_embedding.", "time_embedding.cond_proj.")
"""Conditions of a pretrained network that labels replace."""
_NEW = "class_embedding."
_SDXL_IDS = 6
_PIXELS_PER_LATENT = 8


@dataclass
class Adaptation:
    """What happened to the weights of a pretrained network, by name.

    Attributes:
        taken: Taken over unchanged: number of parameters.
        adapted: Changed: how.
        new: Not in the pretrained network: number of parameters.
        unused: In the pretrained network only: number of parameters.
        notes: What else the user should know.
    """

    taken: dict[str, int] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    new: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def adapted_config(config: Mapping[str, Any], *, latent_shape: tuple[int, int, int], dropout: float) -> dict[str, Any]:
    """Return the config of the network a run trains when it starts from a pretrained one.

    Args:
        config: Content of the pretrained ``config.json``; missing keys have diffusers' defaults.
        latent_shape: ``(c, lh, lw)`` of the latents.
        dropout: Dropout of the run.

    Raises:
        ConfigError: An architecture that label tokens cannot condition, or that does not fit the latents' size.
    """
    given = _with_defaults(config)
    _check_supported(given)
    channels, height, width = latent_shape
    halvings = len(given["block_out_channels"]) - 1
    if height != width or height % 2**halvings:
        raise ConfigError(
            f"latents of {height} x {width} cannot be halved {halvings} times, as this U-Net does",
            hint="use another image size, or an autoencoder that shrinks less",
        )
    tokens = _token_width(given)
    return {
        **given,
        "sample_size": height,
        "in_channels": channels,
        "out_channels": channels,
        "cross_attention_dim": tokens,
        "dropout": dropout,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": tokens,
        "num_class_embeds": None,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "time_cond_proj_dim": None,
    }


def adapt_unet(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, latent_shape: tuple[int, int, int], dropout: float
) -> tuple[UNet2DConditionModel, Adaptation]:
    """Build the network a run trains and load a pretrained network's weights into it.

    New weights are drawn from the global generator: seed it.

    Args:
        config: Content of the pretrained ``config.json``.
        tensors: The pretrained weights, fp32; those that fit are taken over, not copied.
        latent_shape: ``(c, lh, lw)`` of the latents.
        dropout: Dropout of the run.

    Raises:
        ConfigError: See :func:`adapted_config`.
        CheckpointError: The weights do not match the config.
    """
    wanted, given = adapted_config(config, latent_shape=latent_shape, dropout=dropout), _with_defaults(config)
    try:
        with torch.device("meta"):  # nearly all initial weights are replaced
            unet = UNet2DConditionModel.from_config(wanted)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"no U-Net can be built from this config: {error}") from error
    report = Adaptation()
    made = _convolutions(given, tensors, channels=latent_shape[0], report=report)
    made |= _silent_labels(unet, given, tensors, report)
    state, wrong = {}, []
    for name, ours in unet.state_dict().items():
        found = made.get(name, tensors.get(name))
        if found is None or found.shape != ours.shape:
            wrong.append(f"{name} {'is missing' if found is None else _change(found, ours)}")
            continue
        state[name] = found
        if name not in report.adapted:
            (report.new if name.startswith(_NEW) else report.taken)[name] = ours.numel()
    left = [name for name in tensors if name not in report.taken and name not in report.adapted]
    report.unused.update({name: tensors[name].numel() for name in left if name.startswith(_REPLACED)})
    wrong += [f"{name} has no place" for name in left if name not in report.unused and name not in unet.state_dict()]
    if wrong:
        raise CheckpointError(f"{len(wrong)} weights do not match the config: {'; '.join(wrong[:3])}")
    unet.load_state_dict(state, assign=True)
    return unet, report


def widen_input(weight: Float[Tensor, "o c kh kw"], channels: int) -> Float[Tensor, "o d kh kw"]:
    """Return the first convolution for another number of channels.

    New channel j copies old channel ``j mod c``, divided by the square root of the number of copies; with fewer
    channels the first ones are kept and scaled up by the square root of the ratio. Latents have unit variance and
    little correlation, so the output has the variance the next layer was trained with.
    """
    old = weight.shape[1]
    index = torch.arange(channels) % old
    copies = torch.bincount(index, minlength=old).clamp(min=1)
    scale = copies[index].to(weight.dtype).rsqrt() * math.sqrt(max(old / channels, 1.0))
    return weight[:, index] * scale[None, :, None, None]


def widen_output(tensor: Float[Tensor, "c ..."], channels: int) -> Float[Tensor, "d ..."]:
    """Return the last convolution's weight or bias for another number of channels: new channel j is old ``j mod c``."""
    return tensor[torch.arange(channels) % tensor.shape[0]]


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments: from the config, else diffusers' defaults; other keys are dropped."""
    parameters = inspect.signature(UNet2DConditionModel.__init__).parameters
    return {name: config.get(name, one.default) for name, one in parameters.items() if name != "self"}


def _check_supported(given: Mapping[str, Any]) -> None:
    """Refuse architectures with a condition that tokens cannot replace.

    Raises:
        ConfigError: Names the condition and its value.
    """
    problems = [f"{name} is {given[name]!r}" for name, plain in _PLAIN.items() if given[name] != plain]
    blocks = {*given["down_block_types"], *given["up_block_types"]} - _BLOCKS
    problems += [f"it has blocks of type {name}" for name in sorted(map(str, blocks))]
    if given["mid_block_type"] not in _MIDDLES:
        problems.append(f"mid_block_type is {given['mid_block_type']!r}")
    if given["addition_embed_type"] not in (None, "text_time"):
        problems.append(f"addition_embed_type is {given['addition_embed_type']!r}")
    if problems:
        raise ConfigError(
            f"this U-Net cannot be conditioned by labels: {'; '.join(problems)}",
            hint="use a U-Net with the layout of Stable Diffusion 1.x, 2.x or XL",
        )


def _token_width(given: Mapping[str, Any]) -> int:
    """Return the width of a token.

    Raises:
        ConfigError: Levels with tokens of different widths.
    """
    width = given["cross_attention_dim"]
    widths = set(width) if isinstance(width, (list, tuple)) else {width}
    if len(widths) != 1 or not all(isinstance(one, int) and one > 0 for one in widths):
        raise ConfigError(f"the U-Net's levels take tokens of different widths: {width}")
    return int(widths.pop())


def _convolutions(
    given: Mapping[str, Any], tensors: Mapping[str, Tensor], *, channels: int, report: Adaptation
) -> dict[str, Tensor]:
    """Return the first and last convolution with the latents' channels; changes go into the report."""
    theirs_in, theirs_out = int(given["in_channels"]), int(given["out_channels"])
    latents = min(theirs_in, theirs_out)
    if theirs_in > latents:
        report.notes.append(f"of {theirs_in} input channels the last {theirs_in - latents} hold no latents: left out")
    if theirs_out > latents:
        report.notes.append(f"of {theirs_out} output channels the last {theirs_out - latents} are left out")
    if (theirs_in, theirs_out) == (channels, channels):
        return {}
    made: dict[str, Tensor] = {}
    for name in ("conv_in.weight", "conv_out.weight", "conv_out.bias"):
        old, axis = tensors.get(name), 1 if name == "conv_in.weight" else 0
        if old is None or old.shape[axis] != (theirs_in, theirs_out)[1 - axis]:
            continue  # reported by the comparison with the config
        kept = old.narrow(axis, 0, latents)
        new = widen_input(kept, channels) if axis else widen_output(kept, channels)
        if new.shape != old.shape or not torch.equal(new, old):
            made[name] = new
            how = f"first {channels}" if channels <= latents else "repeated"
            report.adapted[name] = f"{_change(old, new)}, {how}{', rescaled' if axis else ''}"
    return made


def _change(old: Tensor, new: Tensor) -> str:
    return f"{list(old.shape)} -> {list(new.shape)}"


@torch.no_grad()
def _silent_labels(
    unet: UNet2DConditionModel, given: Mapping[str, Any], tensors: Mapping[str, Tensor], report: Adaptation
) -> dict[str, Tensor]:
    """Return a projection of the pooled labels with the same output for all labels: zero, or SDXL's constant."""
    shape = unet.class_embedding
    fresh = TimestepEmbedding(shape.linear_1.in_features, shape.linear_1.out_features)
    fresh.linear_2.weight.zero_()
    fresh.linear_2.bias.zero_()
    if given["addition_embed_type"] == "text_time":
        constant = _empty_condition(given, tensors)
        if constant.shape == fresh.linear_2.bias.shape:
            fresh.linear_2.bias.copy_(constant)
        report.notes.append("the added condition (text_time) is kept as a constant: empty text, the network's own size")
    if given["class_embed_type"] is not None or given["num_class_embeds"] is not None:
        report.notes.append("its class embedding is left out: the network starts as if no class were given")
    return {f"{_NEW}{name}": tensor for name, tensor in fresh.state_dict().items()}


def _empty_condition(given: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    """Return what SDXL adds to the time embedding for an empty text and an uncropped image of its own size, ``[e]``.

    Raises:
        CheckpointError: These weights are missing or have another shape.

    Source: Podell et al. 2023, "SDXL", Sec. 2.2; its pipeline's unconditional branch has a pooled text of zeros.
    """
    try:
        width, total = int(given["addition_time_embed_dim"]), int(given["projection_class_embeddings_input_dim"])
        embed = TimestepEmbedding(total, len(tensors["add_embedding.linear_1.bias"]))
        embed.load_state_dict(
            {name.removeprefix("add_embedding."): one for name, one in tensors.items() if name.startswith("add_emb")}
        )
        edge = float(_PIXELS_PER_LATENT * int(given["sample_size"]))
        ids = Timesteps(width, given["flip_sin_to_cos"], given["freq_shift"])(
            torch.tensor([edge, edge, 0.0, 0.0, edge, edge])
        )
        text = torch.zeros(total - _SDXL_IDS * width)
        constant: Tensor = embed(torch.cat([text, ids.flatten()])[None])[0]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the weights of the added condition do not fit the config: {error}") from error
    return constant
