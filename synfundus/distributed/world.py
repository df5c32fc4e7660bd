"""The ranks of a job and their collectives.

Rank and world size are values everywhere, so rank logic can be tested in one process with `LocalWorld`.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from synfundus.distributed.lost_ranks import join_error
from synfundus.distributed.rank_info import (
    RankInfo,
    gpu_index,
    integer_of,
    own_cores,
    processor_has_bf16,
    rank_info,
    require_one_device,
    require_own_gpus,
    this_gpu,
)
from synfundus.distributed.start import Facts, meet
from synfundus.errors import LaunchError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_NO_TIMEOUT_S = 30.0 * 24 * 3600
"""torch.distributed has no "never": a month stands for it."""
Device = Literal["cpu", "cuda"]


class World(Protocol):
    """Rank, size and the few collectives synfundus needs. Every method is *collective*: all ranks call it."""

    @property
    def rank(self) -> int:
        """Number of this process."""

    @property
    def size(self) -> int:
        """Number of processes."""

    @property
    def local_rank(self) -> int:
        """Number of this process on its node."""

    @property
    def local_size(self) -> int:
        """Processes on this node."""

    @property
    def device(self) -> Device:
        """What this process computes on."""

    def barrier(self) -> None:
        """Wait for all ranks."""

    def all_gather(self, value: T) -> list[T]:
        """Return every rank's value, in rank order. For small plain values, not for tensors."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum lists of numbers over the ranks."""

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes."""

    def gather(self, vector: torch.Tensor) -> torch.Tensor | None:
        """Return the concatenation of the ranks' CPU vectors ``[n]``, all of one length, on rank 0; None elsewhere."""


@dataclass(frozen=True)
class LocalWorld:
    """A world without communication: each collective sees this rank alone.

    With size 1 it is a complete world; larger sizes are for tests of rank logic.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: Device = "cpu"

    def barrier(self) -> None:
        """Return at once."""

    def all_gather(self, value: T) -> list[T]:
        """Return this rank's value alone."""
        return [value]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the values."""
        return [float(value) for value in values]

    def any(self, flag: bool) -> bool:
        """Return the flag."""
        return flag

    def gather(self, vector: torch.Tensor) -> torch.Tensor | None:
        """Return this rank's vector; None on a rank other than 0."""
        return vector if self.rank == 0 else None


def share_of(units: Sequence[T], world: World) -> Sequence[T]:
    """Return a rank's share of the work: every ``world.size``-th unit, so that shares differ by at most one. Pure."""
    return units[world.rank :: world.size]


def of_rank(work: str, world: World) -> str:
    """Name a rank's share of some work, for its progress: ``sampling (rank 0 of 8)``."""
    return work if world.size == 1 else f"{work} (rank {world.rank} of {world.size})"


class StatusStore(Protocol):
    """Texts and counts by name that any rank can set and read at any time; not collective."""

    def set(self, name: str, text: str) -> None:
        """Set a text.

        Raises:
            RuntimeError: The store is gone.
        """

    def get(self, name: str) -> str | None:
        """Return a text, None while it is not set.

        Raises:
            RuntimeError: The store is gone.
        """

    def add(self, name: str, amount: int) -> int:
        """Add to a count, which begins at 0, and return it; no other rank gets in between.

        Raises:
            RuntimeError: The store is gone.
        """


@dataclass(frozen=True)
class LocalStatusStore:
    """The store of a world of one."""

    texts: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def set(self, name: str, text: str) -> None:
        """Set a text."""
        self.texts[name] = text

    def get(self, name: str) -> str | None:
        """Return a text, None while it is not set."""
        return self.texts.get(name)

    def add(self, name: str, amount: int) -> int:
        """Add to a count and return it."""
        self.counts[name] += amount
        return self.counts[name]


@dataclass(frozen=True)
class TorchStatusStore:
    """The store of several ranks: torch's key-value store, which rank 0 hosts."""

    store: Any

    def set(self, name: str, text: str) -> None:
        """Set a text."""
        self.store.set(f"synfundus/{name}", text)

    def get(self, name: str) -> str | None:
        """Return a text, None while it is not set."""
        key = f"synfundus/{name}"
        return self.store.get(key).decode() if self.store.check([key]) else None

    def add(self, name: str, amount: int) -> int:
        """Add to a count and return it."""
        return int(self.store.add(f"synfundus/{name}", amount))


@dataclass(frozen=True)
class TorchWorld:
    """A world on torch.distributed; these collectives use gloo, also when gradients use NCCL."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: Device
    group: Any

    def barrier(self) -> None:
        """Wait for all ranks."""
        import torch.distributed as dist

        dist.barrier(group=self.group)

    def all_gather(self, value: T) -> list[T]:
        """Return every rank's value, in rank order."""
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self.group)
        return gathered

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum lists of numbers over the ranks, in float64."""
        if self.size == 1:  # called in every step
            return [float(value) for value in values]
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(tensor, group=self.group)
        return [float(value) for value in tensor.tolist()]

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes."""
        return self.sum([1.0 if flag else 0.0])[0] > 0

    def gather(self, vector: torch.Tensor) -> torch.Tensor | None:
        """Return the concatenation of the ranks' vectors on rank 0, None elsewhere."""
        import torch
        import torch.distributed as dist

        if self.size == 1:
            # gloo's thread would start a second OpenMP team; with more threads than cores libgomp no longer spins at
            # barriers, which halves the speed of all later steps
            return vector
        whole = torch.empty(self.size * len(vector), dtype=vector.dtype) if self.rank == 0 else None
        dist.gather(vector, None if whole is None else list(torch.split(whole, len(vector))), dst=0, group=self.group)
        return whole


def resolve_device(requested: Literal["auto", "cpu", "cuda"]) -> Device:
    """Choose the device to compute on.

    Raises:
        LaunchError: CUDA was requested but is not available.
    """
    import torch

    available = torch.cuda.is_available()
    if requested == "cuda" and not available:
        raise LaunchError(
            "device cuda was requested, but torch finds no CUDA device",
            hint="`synfundus doctor --device cuda` says why",
        )
    return "cuda" if available and requested != "cpu" else "cpu"


def has_native_bf16(device: Device) -> bool:
    """Whether a device has instructions for bf16: GPUs since Ampere, CPUs as `processor_has_bf16` says."""
    if device == "cpu":
        return processor_has_bf16()
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _cores(info: RankInfo) -> int:
    """Return how many cores this rank computes with."""
    name = "SLURM_CPUS_PER_TASK"
    task = integer_of(os.environ, name) if info.source == "slurm" and name in os.environ else None
    return own_cores(info.local_world_size, bound=len(os.sched_getaffinity(0)), task=task)


def torch_device(world: World) -> torch.device:
    """Return the device this rank computes on."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if world.device == "cuda" else torch.device("cpu")


def connect(
    *, device: Literal["auto", "cpu", "cuda"], timeout_s: int, num_threads: int, facts: Facts | None = None
) -> World:
    """Join the job's process group and return its world.

    Collective: every process of the job calls it once. A single process gets a process group too (DeepSpeed needs
    one); no port is opened for it.

    Args:
        device: Device to compute on.
        timeout_s: Longest wait for the other ranks, in seconds.
        num_threads: CPU threads of a process that is in no group yet; 0 takes `own_cores`.
        facts: What must be the same on all ranks.

    Raises:
        LaunchError: No such device, ranks on different devices, two on one GPU, ranks that were started with different
            things, or the other ranks do not answer.
        PortTaken: Another program uses the rendezvous port.
    """
    import torch
    import torch.distributed as dist

    info = rank_info(os.environ)
    kind = resolve_device(device)
    callers = in_process_group()
    if not callers:  # a caller that computes in a group of its own keeps its threads, and so its sums
        torch.set_num_threads(num_threads or _cores(info))
    if kind == "cuda":
        torch.cuda.set_device(gpu_index(info.local_rank, info.local_world_size, visible=torch.cuda.device_count()))
    if not callers:
        timeout = timedelta(seconds=timeout_s)
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        if info.world_size == 1 and info.source == "single":
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        else:
            try:
                store = meet(info, facts or {}, timeout_s=timeout_s)
                dist.init_process_group(
                    backend, store=store, rank=info.rank, world_size=info.world_size, timeout=timeout
                )
            except (RuntimeError, ValueError) as error:
                master = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
                raise join_error(error, rank=info.rank, master=master) from error
    world = TorchWorld(info.rank, info.world_size, info.local_rank, info.local_world_size, kind, dist.group.WORLD)
    if world.size > 1:
        require_one_device(world.all_gather((socket.gethostname(), kind)))
    if kind == "cuda" and world.size > 1:
        require_own_gpus(world.all_gather(this_gpu()))
    return world


def in_process_group() -> bool:
    """Whether this process has joined a process group."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def disconnect() -> None:
    """Leave the process group; does nothing if none was joined."""
    import torch.distributed as dist

    _new_groups.clear()
    if in_process_group():
        dist.destroy_process_group()


def without_timeout(world: World) -> World:
    """Return the same ranks in a new process group whose collectives do not time out. Collective.

    For ranks that work apart for hours. A rank that ends is still noticed, because its connection closes; one that
    never gets here runs into the first group's timeout.
    """
    if isinstance(world, TorchWorld):
        world.barrier()
    return new_group(world, timeout_s=_NO_TIMEOUT_S)


def new_group(world: World, *, timeout_s: float) -> World:
    """Return the same ranks in a new process group, so that another thread can communicate too. Collective.

    Args:
        world: The job.
        timeout_s: Timeout of the group's collectives, in seconds.
    """
    import torch.distributed as dist

    if not isinstance(world, TorchWorld):
        return world
    _new_groups.append(dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s)))
    return replace(world, group=_new_groups[-1])


_new_groups: list[Any] = []


def leave_new_groups() -> None:
    """Leave the groups of `new_group`, when nothing uses them any more. Collective.

    Each keeps a thread that wakes up again and again: a process that does many jobs leaves them after each.
    """
    import torch.distributed as dist

    while _new_groups:
        dist.destroy_process_group(_new_groups.pop())


def status_store(world: World) -> StatusStore:
    """Return the status store of a job's ranks."""
    if not isinstance(world, TorchWorld) or world.size == 1:
        return LocalStatusStore()
    from torch.distributed.distributed_c10d import _get_default_store

    # a separate connection: a thread that waits on this one blocks no other
    return TorchStatusStore(_get_default_store().clone())  # type: ignore[attr-defined]
