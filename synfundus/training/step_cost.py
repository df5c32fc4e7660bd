"""Parameters, operations, activations and kernel launches of a network, counted on the meta device."""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from synfundus.distributed.engine import MOST_BUNDLED, plan_bundles
from synfundus.distributed.world import World
from synfundus.models.attention import AttentionShape
from synfundus.models.autoencoder import LatentAutoencoder
from synfundus.models.unet import ConditionalDenoiser
from synfundus.training.memory.footprint import GPUS, find_gpu
from synfundus.training.progress import StepCost

BACKWARD = 2.0
"""Operations of a backward pass as a multiple of a forward pass (Kaplan et al. 2020, arXiv 2001.08361)."""

_LAUNCHES = {torch.ops.aten.convolution: 3, torch.ops.aten.native_group_norm: 3}
"""Kernels of an operation on CUDA; of others one, of views none (counted with torch 2.13's CUDA build)."""
_NO_KERNEL = (
    *(torch.ops.aten.detach, torch.ops.aten._unsafe_view, torch.ops.aten.empty, torch.ops.aten.empty_like),
    *(torch.ops.aten.bernoulli_, torch.ops.aten.div_),  # dropout is one kernel on CUDA
)


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


class Reconstruction(nn.Module):
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
    shadow = meta_copy(Reconstruction(autoencoder))
    if kernels.gradient_checkpointing:
        shadow.network.enable_gradient_checkpointing()
    return _cost(count_network(shadow, blocks), kernels, world)


def _cost(count: NetworkCount, kernels: Kernels, world: World) -> StepCost:
    return StepCost(
        flops_per_image=count.flops_model,
        recomputed=count.flops_hardware / count.flops_model,
        peak_flops=_peak_flops(kernels, world),
        attention=count.attention,
    )


_LONG_DAYS = 30.0


def long_run(*, images: int, flops_per_image: float, flops_per_s: float) -> str | None:
    """Return what to tell of a run on processors that takes more than a month, at the least; None if it does not."""
    days = images * flops_per_image / flops_per_s / 86400.0
    if days < _LONG_DAYS:
        return None
    took = f"{days:,.0f} days" if days < 730 else f"{days / 365.25:,.0f} years"
    return (
        f"{images:,} images of this network take at least {took} on these processors ({flops_per_image / 1e9:,.0f} "
        f"GFLOP each, {flops_per_s / 1e9:,.0f} GFLOP/s measured). --preset demo-cpu is made for processors; "
        "`synfundus plan` says what GPUs need"
    )


def product_flops_per_s(dtype: torch.dtype, *, edge: int = 512, tries: int = 5) -> float:
    """Return the operations a second of square products on this process's cores, the best of some tries."""
    matrix = torch.ones(edge, edge, dtype=dtype)
    best = math.inf
    for _ in range(tries):
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - began)
    return 2.0 * edge**3 / max(best, 1e-9)


def _peak_flops(kernels: Kernels, world: World) -> float | None:
    """Return the peak of this rank's GPU in the precision of the run, None if unknown."""
    if world.device != "cuda":
        return None
    gpu = find_gpu(torch.cuda.get_device_name())
    return None if gpu is None else GPUS[gpu].peak(weight_bytes=2 if kernels.bf16 else 4, tf32=kernels.tf32)


Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class NetworkCount:
    """What a network needs for one forward and backward pass.

    Attributes:
        parameters: Number of trainable parameters.
        flops_forward: Operations of the forward pass; a multiply-add counts as two.
        flops_recomputed: Operations the backward pass repeats because of gradient checkpointing; 0 without it. Whole
            blocks are counted, although torch stops at the last tensor it needs.
        activation_bytes: Tensors saved for the backward pass, without parameters, in the network's precision.
        launches_forward: Kernels that the host launches in the forward pass, whatever the batch.
        launches_recomputed: Those that the backward pass repeats.
        bundles: Flat parameters that the engine makes of its parameters.
        attention: Its attention layers.
    """

    parameters: int
    flops_forward: int
    flops_recomputed: int
    activation_bytes: int
    launches_forward: int
    launches_recomputed: int
    bundles: int
    attention: tuple[AttentionShape, ...] = ()

    @property
    def flops_model(self) -> float:
        """Return the operations of a forward and a backward pass without recomputation: what the MFU counts."""
        return self.flops_forward * (1.0 + BACKWARD)

    @property
    def flops_hardware(self) -> float:
        """Return them with the recomputation of gradient checkpointing: what the HFU counts."""
        return self.flops_model + self.flops_recomputed


class _FusedAttention(torch.autograd.Function):
    """Saves what a fused attention kernel saves: its inputs and its output, not the attention weights."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ANN401 - torch's own
        """Return an output of the right shape."""
        output = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
        context.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        """Return gradients of the right shapes."""
        del gradients
        return tuple(torch.empty_like(tensor) for tensor in context.saved_tensors[:3])


class _CountAttention(TorchFunctionMode):
    """Replaces ``scaled_dot_product_attention``: on the meta device torch has only the unfused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.layers: Counter[tuple[int, int, int, int]] = Counter()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        """Count attention; run everything else unchanged."""
        del types
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs or {})
        query, key, value = named["query"], named["key"], named["value"]
        pairs = query.shape[:-1].numel() * key.shape[-2]
        self.layers[query.shape[-2], key.shape[-2], query.shape[-3], query.shape[-1]] += 1
        self.flops += 2 * pairs * (query.shape[-1] + value.shape[-1])
        return _FusedAttention.apply(query, key, value)  # type: ignore[no-untyped-call, unused-ignore]


class _CountLaunches(TorchDispatchMode):
    """Counts the kernels that a GPU's host would launch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Count an operation and run it."""
        del types
        if not func.is_view and func.overloadpacket not in _NO_KERNEL:
            self.launches += _LAUNCHES.get(func.overloadpacket, 1)
        return func(*args, **(kwargs or {}))


class _CountCheckpoints:
    """Counts what is done under `torch.utils.checkpoint`, which the backward pass repeats.

    What a nested checkpoint does counts twice, as it is repeated twice.

    Args:
        so_far: Returns the (operations, launches) counted so far.
    """

    def __init__(self, so_far: Callable[[], tuple[int, int]]) -> None:
        self.so_far = so_far
        self.flops = self.launches = 0
        self._checkpoint = torch.utils.checkpoint.checkpoint

    def _counted(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the function returns
        flops, launches = self.so_far()
        result = self._checkpoint(*args, **kwargs)
        after = self.so_far()
        self.flops += after[0] - flops
        self.launches += after[1] - launches
        return result

    def __enter__(self) -> None:
        torch.utils.checkpoint.checkpoint = self._counted  # networks look it up there at each call

    def __exit__(self, *_: object) -> None:
        torch.utils.checkpoint.checkpoint = self._checkpoint


def meta_copy(network: Network) -> Network:
    """Return a copy of a network on the meta device, without copying its weights."""
    tensors: dict[int, Tensor] = {
        id(own): nn.Parameter(torch.empty_like(own, device="meta"), requires_grad=own.requires_grad)
        for own in network.parameters()
    }
    tensors |= {id(own): torch.empty_like(own, device="meta") for own in network.buffers()}
    return copy.deepcopy(network, tensors)


def count_network(network: nn.Module, *inputs: Tensor) -> NetworkCount:
    """Count a network on the meta device.

    Args:
        network: On the meta device, in the precision of the run.
        inputs: Its arguments, also on the meta device.
    """
    own = {tensor.untyped_storage()._cdata for tensor in network.parameters()}
    kept: dict[int, int] = {}
    alive: list[Any] = []  # a freed storage's address would be reused

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    counter, attention, launched = FlopCounterMode(display=False), _CountAttention(), _CountLaunches()
    checkpoints = _CountCheckpoints(lambda: (int(counter.get_total_flops()) + attention.flops, launched.launches))
    with (
        checkpoints,
        counter,
        launched,
        attention,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        output = network(*inputs)
    alive.append(output)
    sizes = [parameter.numel() for parameter in network.parameters() if parameter.requires_grad]
    flops, launches = checkpoints.so_far()
    return NetworkCount(
        parameters=sum(sizes),
        flops_forward=flops,
        flops_recomputed=checkpoints.flops,
        activation_bytes=sum(kept.values()),
        launches_forward=launches,
        launches_recomputed=checkpoints.launches,
        bundles=len(plan_bundles(sizes, max_elements=MOST_BUNDLED)),
        attention=tuple(AttentionShape(*size, layers) for size, layers in attention.layers.items()),
    )
