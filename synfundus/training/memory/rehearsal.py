"""Forward and backward passes on a copy of the network before a run, to measure memory and time.

The network itself is not changed: its weights, its gradients and torch's generators stay as they were.
"""

from __future__ import annotations

import copy
import gc
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from synfundus.distributed.world import World
from synfundus.training.memory.host_memory import available_memory_bytes

N = TypeVar("N", bound=nn.Module)

GPU_RESERVE = 0.08
"""Fraction of a GPU's memory kept free: for NCCL's buffers, cuDNN's workspaces, fragmentation."""
HOST_RESERVE = 0.2
"""Fraction of the host's available memory kept free: for prefetched batches, workspaces, the allocator."""

_OUT_OF_MEMORY = (
    "ALLOC_FAILED",
    "can't allocate memory",
    "out of memory",
    "unable to find an engine to execute",  # no convolution's workspace fits (pytorch issue 108645)
)
"""Messages of cuDNN, cuBLAS, torch's host allocator and CUDA in a plain RuntimeError."""


def budget_bytes(device: torch.device, world: World) -> int:
    """Return the memory this rank may use, before it has put anything on its device. Collective.

    On a GPU: the free memory less `GPU_RESERVE` of the total. On a CPU: an equal share of what the host or a control
    group has left, less `HOST_RESERVE`.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return int(free - GPU_RESERVE * total)
    world.barrier()
    left = available_memory_bytes()
    world.barrier()  # no rank allocates while another measures
    return int((1.0 - HOST_RESERVE) * left / world.local_size)


@dataclass(kw_only=True, eq=False)
class Rehearsal(Generic[N]):
    """Runs a step on a copy of a network.

    Attributes:
        network: The network to be trained; copied before the first pass.
        make_step: Wraps it in a step module; the second argument says whether memory is NHWC.
        draw: Makes a batch of that many images on the device.
        device: Device it will be trained on.
        dtype: Working precision.
        images_seen: Images seen to pass to the step: so many that every part of the loss is active.
    """

    network: N = field(kw_only=False)
    make_step: Callable[[N, bool], nn.Module]
    draw: Callable[[int], Mapping[str, Tensor]]
    device: torch.device
    dtype: torch.dtype
    images_seen: int
    _copy: N | None = field(default=None, init=False)

    def peak_bytes(self, size: int, layouts: Sequence[bool]) -> int | None:
        """Return the peak bytes of passes over ``size`` images, without the weights; None if memory ran out.

        Args:
            size: Images.
            layouts: Whether memory is NHWC; of several the highest peak counts.
        """
        peaks: list[int] = []
        for layout in layouts:
            peak = self._peak(size, layout)
            self._tidy()
            if peak is None:
                return None
            peaks.append(peak)
        return max(peaks)

    def seconds(self, size: int, layout: bool) -> float:
        """Return the seconds of a pass over ``size`` images."""
        began = time.perf_counter()
        self._pass(size, layout)
        self._synchronize()
        return time.perf_counter() - began

    def close(self) -> None:
        """Free all memory and reset the peak, so that a run measures its own."""
        self._copy = None
        self._tidy()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _peak(self, size: int, layout: bool) -> int | None:
        try:
            network = self._working_copy()
            if self.device.type == "cuda":
                before = torch.cuda.memory_reserved(self.device)
                torch.cuda.reset_peak_memory_stats(self.device)
                self._pass(size, layout)
                self._synchronize()
                return int(torch.cuda.max_memory_reserved(self.device)) - before
            with _LiveBytes([*network.parameters(), *network.buffers()]) as live:
                self._pass(size, layout)
            return int(live.peak)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _working_copy(self) -> N:
        if self._copy is None:
            self._copy = copy.deepcopy(self.network).to(device=self.device, dtype=self.dtype)
            self._tidy()
        return self._copy

    def _pass(self, size: int, layout: bool) -> None:
        """Run one forward and backward pass; no gradient is kept."""
        network = self._working_copy()
        if self.device.type == "cuda":  # as the engine will hold the weights of convolutions
            order = torch.channels_last if layout else torch.contiguous_format
            network.to(memory_format=order)  # type: ignore[call-overload]
        # dropout draws from torch's generators
        with torch.random.fork_rng([self.device.index] if self.device.type == "cuda" else []):
            try:
                loss, _ = self.make_step(network, layout).to(self.device)(self.draw(size), self.images_seen)
                loss.backward()
            finally:
                network.zero_grad(set_to_none=True)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _tidy(self) -> None:
        """Release cached memory, so that the next peak counts from the weights alone."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live storages that operations of this thread create.

    Args:
        own: Tensors that existed before and do not count.
    """

    def __init__(self, own: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.now = self.peak = 0
        self._own = {tensor.untyped_storage()._cdata for tensor in own}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever an operation takes and returns
        """Run an operation and count its results."""
        del types
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._own or key in self._alive:
            return

        def drop(_: object) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, drop)
        self.now += size
        self.peak = max(self.peak, self.now)
