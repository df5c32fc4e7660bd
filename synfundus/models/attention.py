"""The attention kernel of the networks: xformers, PyTorch's SDPA, or plain matrix products.

The only module that imports xformers, and only if CUDA is available: without CUDA the package has no operators and
prints a long warning. A kernel is accepted only after it has run, forward and backward, with the head sizes and the
data type of the model.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from synfundus.errors import ConfigError

AttentionBackend: TypeAlias = Literal["xformers", "sdpa", "math"]
AttentionRequest: TypeAlias = Literal["auto", "xformers", "sdpa", "math"]
AttentionKernel: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``query [b q n e], key [b s n e], value [b s n e] -> [b q n e]``."""

_PROBE_TOKENS = 64
_PROBE_TOLERANCE = 0.05


@dataclass(frozen=True)
class AttentionChoice:
    """The kernel in use, and why.

    Attributes:
        backend: The kernel.
        reason: Why this one.
    """

    backend: AttentionBackend
    reason: str

    def __str__(self) -> str:
        return f"attention: {self.backend} ({self.reason})"


def math_attention(
    query: Float[Tensor, "b q n e"], key: Float[Tensor, "b s n e"], value: Float[Tensor, "b s n e"]
) -> Float[Tensor, "b q n e"]:
    """Attend with plain matrix products, the softmax in float32: the reference for the other kernels.

    Source: Vaswani et al. 2017, "Attention is all you need", Eq. 1.
    """
    scores = torch.einsum("bqne,bsne->bnqs", query, key) / math.sqrt(query.shape[-1])
    weights = scores.float().softmax(dim=-1).to(value.dtype)
    return torch.einsum("bnqs,bsne->bqne", weights, value)


def sdpa_attention(
    query: Float[Tensor, "b q n e"], key: Float[Tensor, "b s n e"], value: Float[Tensor, "b s n e"]
) -> Float[Tensor, "b q n e"]:
    """Attend with PyTorch's fused kernel, whose layout has the heads before the tokens."""
    attended = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    )
    return attended.transpose(1, 2)


def xformers_attention(memory_efficient_attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> AttentionKernel:
    """Wrap ``xformers.ops.memory_efficient_attention``, whose layout is the one used here.

    Args:
        memory_efficient_attention: The operator; an argument so that its layout can be tested without a GPU.
    """

    def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return memory_efficient_attention(query.contiguous(), key.contiguous(), value.contiguous())

    return kernel


class KernelAttnProcessor:
    """A diffusers attention processor with a given kernel; norms, projections and residual are diffusers' own.

    Args:
        kernel: The attention kernel.
    """

    def __init__(self, kernel: AttentionKernel) -> None:
        self.kernel = kernel

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend from ``hidden_states`` (``[b q c]``, or ``[b c h w]`` in the autoencoder) to itself or to the tokens.

        Raises:
            ConfigError: There is an attention mask; synfundus' networks have none.
        """
        if attention_mask is not None:
            raise ConfigError("this attention processor takes no mask")
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        shape = hidden_states.shape
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            source = attn.norm_encoder_hidden_states(source)
        query = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1))
        key = attn.to_k(source).unflatten(-1, (attn.heads, -1))
        value = attn.to_v(source).unflatten(-1, (attn.heads, -1))
        attended = self.kernel(query, key, value).flatten(2).to(query.dtype)
        attended = attn.to_out[1](attn.to_out[0](attended))
        if len(shape) == 4:
            attended = attended.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            attended = attended + residual
        return attended / attn.rescale_output_factor  # type: ignore[no-any-return]


def head_dims(model: UNet2DConditionModel | AutoencoderKL) -> tuple[int, ...]:
    """Return the distinct widths of one head over all attention layers of a model, ascending."""
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    return tuple(sorted({int(layer.to_q.out_features) // int(layer.heads) for layer in layers}))


def choose_attention(
    *,
    requested: AttentionRequest,
    head_dims: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    import_module: Callable[[str], Any] = importlib.import_module,
) -> AttentionChoice:
    """Choose a kernel.

    ``auto`` takes xformers if it is installed, the device is CUDA and a probe of each head size passes; else SDPA. On a
    CPU it takes plain matrix products: with the few tokens a CPU can train on, SDPA's backward pass is the slowest part
    of the U-Net (a training step with 64 tokens a layer took 1.4 times as long).

    Args:
        requested: From the config.
        head_dims: Widths of the model's heads.
        dtype: Data type of the model.
        device: Device of the model.
        import_module: Imports a module; an argument for tests.

    Raises:
        ConfigError: An unknown name, or ``xformers`` was requested and cannot be used.
    """
    if requested not in get_args(AttentionRequest):
        raise ConfigError(
            f"unknown attention backend {requested!r}", hint=f"one of {', '.join(get_args(AttentionRequest))}"
        )
    if requested in ("sdpa", "math"):
        return AttentionChoice(backend=requested, reason="as configured")
    if requested == "auto" and device.type == "cpu":
        return AttentionChoice(backend="math", reason="the device is cpu")
    obstacle = _xformers_obstacle(head_dims=head_dims, dtype=dtype, device=device, import_module=import_module)
    if obstacle is None:
        widths = ", ".join(str(width) for width in head_dims)
        return AttentionChoice(
            backend="xformers", reason=f"probe passed forward and backward, heads of {widths}, {dtype}"
        )
    if requested == "xformers":
        raise ConfigError(
            f"attention backend xformers cannot be used: {obstacle}",
            hint="set it to auto or sdpa, or install the gpu extra",
        )
    return AttentionChoice(backend="sdpa", reason=f"no xformers: {obstacle}")


def agreed_attention(choices: Sequence[AttentionChoice]) -> AttentionChoice:
    """Return the kernel of all ranks: rank 0's if all chose the same, else the one that every rank has.

    All ranks of a run must round alike, and a node with a broken xformers must not go unnoticed.

    Args:
        choices: Of each rank.
    """
    first, order = choices[0], get_args(AttentionBackend)
    odd = next(((rank, one) for rank, one in enumerate(choices) if one.backend != first.backend), None)
    if odd is None:
        return first
    rank, other = odd
    weakest: AttentionBackend = max((one.backend for one in choices), key=order.index)
    ranks = f"rank 0 has {first.backend} ({first.reason}), rank {rank} {other.backend} ({other.reason})"
    return AttentionChoice(backend=weakest, reason=f"ranks differ: {ranks}")


def apply_attention(model: UNet2DConditionModel | AutoencoderKL, choice: AttentionChoice) -> None:
    """Set the kernel of every attention layer of a model; the weights do not change."""
    if choice.backend == "xformers":
        kernel = xformers_attention(importlib.import_module("xformers.ops").memory_efficient_attention)
    else:
        kernel = sdpa_attention if choice.backend == "sdpa" else math_attention
    model.set_attn_processor(KernelAttnProcessor(kernel))


def _xformers_obstacle(
    *, head_dims: Sequence[int], dtype: torch.dtype, device: torch.device, import_module: Callable[[str], Any]
) -> str | None:
    """Return why xformers cannot be used, or None."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    try:
        ops = import_module("xformers.ops")
    except (ImportError, OSError) as error:
        return f"import failed: {error}"
    kernel = xformers_attention(ops.memory_efficient_attention)
    for width in head_dims:
        try:
            gap = probe_kernel(kernel, head_dim=width, dtype=dtype, device=device)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            return f"probe with heads of {width} failed: {str(error).splitlines()[0]}"
        if not gap <= _PROBE_TOLERANCE:
            return f"probe with heads of {width} is off by {gap:.3g}"
    return None


def probe_kernel(kernel: AttentionKernel, *, head_dim: int, dtype: torch.dtype, device: torch.device) -> float:
    """Run a kernel forward and backward; return its largest deviation from :func:`math_attention`, or of gradients."""
    results = []
    for attend in (kernel, math_attention):
        # fixed smooth inputs: no draw from the global generator
        ramp = torch.linspace(-3.0, 3.0, 2 * _PROBE_TOKENS * 2 * head_dim, device=device).reshape(
            2, _PROBE_TOKENS, 2, head_dim
        )
        query, key, value = (torch.sin(ramp * factor).to(dtype).requires_grad_() for factor in (1.0, 1.7, 2.3))
        attended = attend(query, key, value)
        torch.autograd.backward(attended.float().square().sum())
        results.append([attended, query.grad, key.grad, value.grad])
    gaps = [
        float(
            (ours.detach().float() - theirs.detach().float()).abs().max() / (1.0 + theirs.detach().float().abs().max())
        )
        for ours, theirs in zip(*results, strict=True)
        if ours is not None and theirs is not None
    ]
    return max(gaps)
