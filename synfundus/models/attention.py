"""The attention kernel of the networks: one of PyTorch's fused kernels, xformers, or plain matrix products.

The only module that imports xformers, and only if CUDA is available and both are built for the same CUDA. A kernel is
accepted only after it has run forward and backward and agrees with plain products.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from synfundus.errors import ConfigError
from synfundus.models.diffusers_classes import Attention, AutoencoderKL, UNet2DConditionModel

AttentionBackend: TypeAlias = Literal["sdpa", "cudnn", "flash", "efficient", "xformers", "math"]
"""``sdpa`` is PyTorch's own choice among cudnn, flash and efficient, call by call."""
AttentionRequest: TypeAlias = Literal["auto", AttentionBackend]
AttentionKernel: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``query [b q n e], key [b s n e], value [b s n e] -> [b q n e]``."""

INSTALL_XFORMERS = "make install-gpu ATTENTION=xformers"
_FUSED = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_PROBE_TOLERANCE = 0.05
_FASTER = 0.97
"""Only a kernel that takes less than this share of the time replaces PyTorch's own choice: below that it is noise."""
_REPEATS = 5


class AttentionShape(NamedTuple):
    """The size of an attention layer, and the number of layers of this size in a network."""

    query_tokens: int
    key_tokens: int
    heads: int
    head_dim: int
    layers: int = 1

    def __str__(self) -> str:
        return f"{self.query_tokens} x {self.key_tokens} tokens, heads of {self.head_dim}"


@dataclass(frozen=True)
class MeasuredAttention:
    """What the kernels need on one device for all attention layers, forward and backward.

    Attributes:
        ms: Milliseconds by kernel, of those that passed.
        obstacles: Why the others cannot be used, by kernel.
    """

    ms: Mapping[str, float] = field(default_factory=dict)
    obstacles: Mapping[str, str] = field(default_factory=dict)


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


def fused_attention(backend: SDPBackend) -> AttentionKernel:
    """Return `sdpa_attention` with one of PyTorch's kernels instead of its own choice."""

    def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa_attention(query, key, value)

    return kernel


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


def probe_shapes(model: UNet2DConditionModel | AutoencoderKL) -> tuple[AttentionShape, ...]:
    """Return a small shape for each width of a head in a model, ascending: to test a kernel, not to time it."""
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    widths = sorted({int(layer.to_q.out_features) // int(layer.heads) for layer in layers})
    return tuple(AttentionShape(64, 64, 2, width) for width in widths)


def choose_attention(
    *, requested: AttentionRequest, shapes: Sequence[AttentionShape], dtype: torch.dtype, device: torch.device
) -> AttentionChoice:
    """Choose a kernel without measuring.

    ``auto`` leaves the choice to PyTorch on a GPU, so that the same job gives the same bits. On a CPU it takes plain
    matrix products: with the few tokens a CPU can train on, SDPA's backward pass is the slowest part of the U-Net (a
    training step with 64 tokens a layer took 1.4 times as long).

    Args:
        requested: From the config.
        shapes: Shapes a named kernel is tested with.
        dtype: Data type of the model.
        device: Device of the model.

    Raises:
        ConfigError: The requested kernel cannot be used.
    """
    if requested == "auto" and device.type == "cpu":
        return AttentionChoice(backend="math", reason="the device is cpu")
    if requested == "auto":
        return AttentionChoice(backend="sdpa", reason="PyTorch's own choice; kernels are measured for trainings")
    if requested in ("sdpa", "math"):
        return AttentionChoice(backend=requested, reason="as configured")
    obstacle = _obstacle(requested, shapes, dtype=dtype, device=device)
    if obstacle is None:
        return AttentionChoice(
            backend=requested, reason="as configured; forward and backward agree with plain products"
        )
    mend = f"; {INSTALL_XFORMERS} installs versions that fit each other" if requested == "xformers" else ""
    raise ConfigError(
        f"attention kernel {requested} cannot be used: {obstacle}", hint=f"set launch.attention to auto{mend}"
    )


def measure_attention(
    shapes: Sequence[AttentionShape], *, batch_size: int, dtype: torch.dtype, device: torch.device
) -> MeasuredAttention:
    """Test every fused kernel on every shape, forward and backward, and time those that pass.

    Args:
        shapes: All attention layers of a network.
        batch_size: Images to time with.
        dtype: Data type of the network.
        device: A GPU.
    """
    ms: dict[str, float] = {}
    obstacles: dict[str, str] = {}
    for backend in get_args(AttentionBackend)[:-1]:
        refused = obstacles.get("sdpa", "") if backend == "cudnn" else ""  # asked again torch 2.13 ends the process
        obstacle = refused if "cuDNN" in refused else _obstacle(backend, shapes, dtype=dtype, device=device)
        if obstacle is None:
            kernel = _kernel(backend)
            ms[backend] = sum(
                shape.layers * _milliseconds(kernel, shape, batch_size=batch_size, dtype=dtype, device=device)
                for shape in shapes
            )
        else:
            obstacles[backend] = obstacle
    return MeasuredAttention(ms, obstacles)


def fastest_attention(ranks: Sequence[MeasuredAttention], *, stored: object = None) -> AttentionChoice:
    """Return the fastest kernel that passed on every rank: all ranks of a run must round alike.

    Args:
        ranks: Measurements of each rank.
        stored: The kernel the run began with, which is taken again if it passed: another one rounds otherwise.
    """
    obstacles = {name: f"{name}: {why}" for one in reversed(ranks) for name, why in one.obstacles.items()}
    mean = {name: sum(one.ms[name] for one in ranks) / len(ranks) for name in ranks[0].ms if name not in obstacles}
    best = min(mean, key=lambda name: mean[name], default="sdpa")
    if mean.get(best, math.inf) > _FASTER * mean.get("sdpa", math.inf):
        best = "sdpa"
    again = stored in mean
    times = ", ".join(f"{name} {value:.3g} ms" for name, value in sorted(mean.items(), key=lambda item: item[1]))
    reason = f"{'as this run began; ' if again else ''}forward and backward took {times or 'no fused kernel'}"
    backend = cast("AttentionBackend", stored if again else best)
    return AttentionChoice(backend, "; ".join([reason, *obstacles.values()]))


def apply_attention(model: UNet2DConditionModel | AutoencoderKL, choice: AttentionChoice) -> None:
    """Set the kernel of every attention layer of a model; the weights do not change."""
    model.set_attn_processor(KernelAttnProcessor(_kernel(choice.backend)))


def xformers_misfit(built_for: str | None, torch_cuda: str | None) -> str | None:
    """Return why an installed xformers cannot load its operators, None if it can; without importing it.

    A library built for one major version of CUDA needs that version's runtime, which torch brings.

    Args:
        built_for: CUDA version of xformers' operators (``12.8``); None if it has none.
        torch_cuda: `torch.version.cuda`; None in a CPU build.
    """
    if built_for is None:
        return "it was installed without operators for CUDA"
    if torch_cuda is None:
        return f"its operators are built for CUDA {built_for}, torch {torch.__version__} is a CPU build"
    if built_for.split(".")[0] != torch_cuda.split(".")[0]:
        return f"its operators are built for CUDA {built_for}, torch {torch.__version__} for CUDA {torch_cuda}"
    return None


def installed_xformers() -> tuple[str, str | None] | None:
    """Return the version of the installed xformers and the CUDA version of its operators; None if there is none."""
    try:
        package = importlib.metadata.distribution("xformers")
    except importlib.metadata.PackageNotFoundError:
        return None
    try:
        cuda = int(json.loads(Path(str(package.locate_file("xformers/cpp_lib.json"))).read_text())["version"]["cuda"])
    except (OSError, ValueError, KeyError, TypeError):
        return package.version, None
    return package.version, f"{cuda // 100}.{cuda % 100}"  # 1208 is 12.8


def _xformers_operator() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Import xformers' operator.

    Raises:
        ImportError: It is missing, does not fit torch, or fails to load.
    """
    installed = installed_xformers()
    if installed is None:
        raise ImportError("not installed")
    misfit = xformers_misfit(installed[1], torch.version.cuda)
    if misfit is not None:
        raise ImportError(f"xformers {installed[0]}: {misfit}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # triton's deprecations
        operator: Callable[[Tensor, Tensor, Tensor], Tensor] = importlib.import_module(
            "xformers.ops"
        ).memory_efficient_attention
    return operator


def _kernel(backend: str) -> AttentionKernel:
    if backend in _FUSED:
        return fused_attention(_FUSED[backend])
    if backend == "xformers":
        return xformers_attention(_xformers_operator())
    return sdpa_attention if backend == "sdpa" else math_attention


def _obstacle(
    backend: str, shapes: Sequence[AttentionShape], *, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Return why a kernel cannot be used, or None."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    try:
        kernel = _kernel(backend)
    except (ImportError, OSError) as error:
        return str(error)
    for shape in shapes:
        try:
            gap = probe_kernel(kernel, shape, dtype=dtype, device=device)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            return f"{shape}: {reason_of(error)}"
        if not gap <= _PROBE_TOLERANCE:
            return f"{shape}: off by {gap:.3g}"
    return None


def reason_of(error: Exception) -> str:
    """Return the reasons in a kernel's refusal: xformers indents them by four, else the first line."""
    reasons = re.findall(r"^ {4}(\S.*)$", str(error), re.MULTILINE)
    return "; ".join(dict.fromkeys(reasons)) or str(error).partition("\n")[0]


def _inputs(shape: AttentionShape, *, batch_size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Return query, key and value: smooth and fixed, without a draw from the global generator."""
    inputs = []
    for tokens, factor in ((shape.query_tokens, 3.0), (shape.key_tokens, 5.1), (shape.key_tokens, 6.9)):
        size = (batch_size, tokens, shape.heads, shape.head_dim)
        ramp = torch.linspace(-factor, factor, math.prod(size), device=device).reshape(size)
        inputs.append(torch.sin(ramp).to(dtype).requires_grad_())
    return tuple(inputs)


def probe_kernel(kernel: AttentionKernel, shape: AttentionShape, *, dtype: torch.dtype, device: torch.device) -> float:
    """Run a kernel forward and backward; return its largest deviation from :func:`math_attention`, or of gradients."""
    results: list[list[Tensor | None]] = []
    for attend in (kernel, math_attention):
        inputs = _inputs(shape._replace(heads=1), batch_size=1, dtype=dtype, device=device)
        attended = attend(*inputs)
        torch.autograd.backward(attended.float().square().sum())
        results.append([attended.detach(), *(tensor.grad for tensor in inputs)])
    return max(_gap(ours, theirs) for ours, theirs in zip(*results, strict=True))


def _gap(ours: Tensor | None, theirs: Tensor | None) -> float:
    if ours is None or theirs is None:
        return math.inf
    return float((ours.float() - theirs.float()).abs().max() / (1.0 + theirs.float().abs().max()))


def _milliseconds(
    kernel: AttentionKernel, shape: AttentionShape, *, batch_size: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Return the least time of a forward and backward pass; the first pass does not count."""
    inputs = _inputs(shape, batch_size=batch_size, dtype=dtype, device=device)
    seconds = []
    for _ in range(1 + _REPEATS):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        torch.autograd.backward(kernel(*inputs).sum())
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 1000.0 * min(seconds[1:])
