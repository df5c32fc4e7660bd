"""Forward and backward passes before a run, on a copy of what it trains: how much memory they take, and how long.

The network itself is never touched: its weights, its gradients, torch's generators and the optimizer, which does not
exist yet, are after a rehearsal what they were before.
"""

from __future__ import annotations

import copy
import gc
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from synfundus.distributed.world import World
from synfundus.training.memory.host_memory import available_memory_bytes

N = TypeVar("N", bound=nn.Module)

GPU_RESERVE = 0.08
"""Part of a GPU's memory that is left alone: NCCL's buffers, cuDNN's workspaces, fragments."""
HOST_RESERVE = 0.2
"""Part of what is left of the host that is left alone: prefetched batches, libraries' workspaces, the allocator."""

_OUT_OF_MEMORY = (
    "ALLOC_FAILED",
    "can't allocate memory",
    "out of memory",
    "unable to find an engine to execute",  # no convolution's workspace fits (pytorch issue 108645)
)
"""How cuDNN, cuBLAS, torch's host allocator and CUDA say it where torch raises a plain RuntimeError."""


def budget_bytes(device: torch.device, world: World) -> int:
    """Return what this rank may use, before it has put anything on its device. Collective.

    On a GPU: what is free now, less `GPU_RESERVE` of all. On a CPU: a share of what the host or a control group has
    left, less `HOST_RESERVE`; the ranks of a node get equal shares.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return int(free - GPU_RESERVE * total)
    world.barrier()
    left = available_memory_bytes()
    world.barrier()  # nobody takes memory while another looks
    return int((1.0 - HOST_RESERVE) * left / world.local_size)


class Rehearsal(Generic[N]):
    """Runs a step on a copy of a network.

    Args:
        network: What will be trained; copied when the first pass is made.
        make_step: Wraps it in a step module; the second argument says whether memory is NHWC.
        draw: Makes a batch of so many images on the device.
        device: Where it will be trained.
        dtype: Working precision.
        images_seen: Place in the run to rehearse: where everything takes part that ever will.
    """

    def __init__(
        self,
        network: N,
        *,
        make_step: Callable[[N, bool], nn.Module],
        draw: Callable[[int], Mapping[str, Tensor]],
        device: torch.device,
        dtype: torch.dtype,
        images_seen: int,
    ) -> None:
        self._network = network
        self._copy: N | None = None
        self._make_step = make_step
        self._draw = draw
        self._device = device
        self._dtype = dtype
        self._images_seen = images_seen

    def peak_bytes(self, size: int, layouts: Sequence[bool]) -> int | None:
        """Return the most bytes that passes over ``size`` images take besides the weights; None if memory ran out.

        Args:
            size: Images.
            layouts: NHWC or not; the greater peak counts.
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
        """Return how long a pass over ``size`` images takes."""
        began = time.perf_counter()
        self._pass(size, layout)
        self._synchronize()
        return time.perf_counter() - began

    def close(self) -> None:
        """Let all memory go; figures of a run's peak begin after this."""
        self._copy = None
        self._tidy()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def _peak(self, size: int, layout: bool) -> int | None:
        try:
            network = self._working_copy()
            if self._device.type == "cuda":
                before = torch.cuda.memory_reserved(self._device)
                torch.cuda.reset_peak_memory_stats(self._device)
                self._pass(size, layout)
                self._synchronize()
                return int(torch.cuda.max_memory_reserved(self._device)) - before
            with _LiveBytes([*network.parameters(), *network.buffers()]) as live:
                self._pass(size, layout)
            return int(live.peak)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _working_copy(self) -> N:
        if self._copy is None:
            self._copy = copy.deepcopy(self._network).to(device=self._device, dtype=self._dtype)
            self._tidy()
        return self._copy

    def _pass(self, size: int, layout: bool) -> None:
        """Go there and back once; no gradient stays."""
        network = self._working_copy()
        with _keyed_nowhere(self._device):
            try:
                loss, _ = self._make_step(network, layout).to(self._device)(self._draw(size), self._images_seen)
                loss.backward()
            finally:
                network.zero_grad(set_to_none=True)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _tidy(self) -> None:
        """Give back what is cached, so that the next peak is counted from the weights alone."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


@contextmanager
def _keyed_nowhere(device: torch.device) -> Iterator[None]:
    """Let dropout draw, and put torch's generators back."""
    devices = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operations make, while they live; only of this thread.

    Args:
        own: Tensors that were there before and do not count.
    """

    def __init__(self, own: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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
        """Run an operation and count what it made."""
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
