"""How the ranks of a job talk to one another.

Rank and world size are values everywhere, so rank logic can be tested in one process with `LocalWorld`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from synfundus.distributed.placement import gpu_index, own_cores, require_one_device, require_own_gpus, this_gpu
from synfundus.distributed.processor import processor_has_bf16
from synfundus.distributed.rank_info import RankInfo, integer_of, rank_info
from synfundus.errors import LaunchError, PortTaken, RelayedDefect, Stalled

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_WEEKS_S = 30.0 * 24 * 3600
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
        """Wait until every rank is here."""

    def all_gather(self, value: T) -> list[T]:
        """Return every rank's value, in rank order. For small plain values, not for tensors."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up lists of numbers over the ranks."""

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes."""

    def gather(self, vector: torch.Tensor) -> torch.Tensor | None:
        """Return the ranks' vectors ``[n]``, on the CPU and of one length, end to end on rank 0; None elsewhere."""


@dataclass(frozen=True)
class LocalWorld:
    """A world without processes: rank ``rank`` of ``size``, alone in its collectives.

    With size 1 it is the real thing; larger sizes serve tests of rank logic.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: Device = "cpu"

    def barrier(self) -> None:
        """Return at once."""

    def all_gather(self, value: T) -> list[T]:
        """Return the only value there is."""
        return [value]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the values."""
        return [float(value) for value in values]

    def any(self, flag: bool) -> bool:
        """Return the flag."""
        return flag

    def gather(self, vector: torch.Tensor) -> torch.Tensor | None:
        """Return the only vector there is; None on a rank other than 0."""
        return vector if self.rank == 0 else None


def share_of(units: Sequence[T], world: World) -> Sequence[T]:
    """Return the units of work of a rank: every W-th, so that ranks have as many as each other or one less. Pure."""
    return units[world.rank :: world.size]


class NoticeBoard(Protocol):
    """Texts that any rank can put up and read at any time, without the others taking part."""

    def post(self, name: str, text: str) -> None:
        """Put a text up.

        Raises:
            RuntimeError: The board is gone.
        """

    def read(self, name: str) -> str | None:
        """Return a text, or None while there is none.

        Raises:
            RuntimeError: The board is gone.
        """


@dataclass(frozen=True)
class OwnBoard:
    """The board of a world of one."""

    texts: dict[str, str] = field(default_factory=dict)

    def post(self, name: str, text: str) -> None:
        """Put a text up."""
        self.texts[name] = text

    def read(self, name: str) -> str | None:
        """Return a text, or None while there is none."""
        return self.texts.get(name)


@dataclass(frozen=True)
class StoreBoard:
    """A board in torch's key-value store, which rank 0 keeps."""

    store: Any

    def post(self, name: str, text: str) -> None:
        """Put a text up."""
        self.store.set(f"synfundus/{name}", text)

    def read(self, name: str) -> str | None:
        """Return a text, or None while there is none."""
        key = f"synfundus/{name}"
        return self.store.get(key).decode() if self.store.check([key]) else None


@dataclass(frozen=True)
class TorchWorld:
    """A world on torch.distributed; the host-side collectives run over gloo also when tensors use NCCL."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: Device
    group: Any

    def barrier(self) -> None:
        """Wait until every rank is here."""
        import torch.distributed as dist

        dist.barrier(group=self.group)

    def all_gather(self, value: T) -> list[T]:
        """Return every rank's value, in rank order."""
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self.group)
        return gathered

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up lists of numbers over the ranks, in float64."""
        if self.size == 1:  # asked in each step
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
        """Return the ranks' vectors end to end on rank 0, None elsewhere."""
        import torch
        import torch.distributed as dist

        if self.size == 1:
            # gloo's thread would open a second OpenMP team, and with more threads than cores libgomp stops spinning at
            # barriers, which halves the speed of every step that follows
            return vector
        whole = torch.empty(self.size * len(vector), dtype=vector.dtype) if self.rank == 0 else None
        dist.gather(vector, None if whole is None else list(torch.split(whole, len(vector))), dst=0, group=self.group)
        return whole


def resolve_device(requested: Literal["auto", "cpu", "cuda"]) -> Device:
    """Decide what to compute on.

    Raises:
        LaunchError: CUDA was asked for and is not there.
    """
    import torch

    available = torch.cuda.is_available()
    if requested == "cuda" and not available:
        raise LaunchError("device cuda was asked for, but torch sees no CUDA device", hint="run `synfundus doctor`")
    return "cuda" if available and requested != "cpu" else "cpu"


def has_native_bf16(device: Device) -> bool:
    """Whether a device has instructions for bf16: GPUs since Ampere, CPUs as `processor_has_bf16` says."""
    if device == "cpu":
        return processor_has_bf16()
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _cores(info: RankInfo) -> int:
    """Return the cores this rank computes with."""
    name = "SLURM_CPUS_PER_TASK"
    task = integer_of(os.environ, name) if info.source == "slurm" and name in os.environ else None
    return own_cores(info.local_world_size, bound=len(os.sched_getaffinity(0)), task=task)


def torch_device(world: World) -> torch.device:
    """Return what this rank computes on."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if world.device == "cuda" else torch.device("cpu")


def connect(*, device: Literal["auto", "cpu", "cuda"], timeout_s: int, num_threads: int) -> World:
    """Join the job this process belongs to and return its world.

    Collective: every process of the job calls it once. A process group exists afterwards, also for one process
    (DeepSpeed needs it; no port is opened for it).

    Args:
        device: What to compute on.
        timeout_s: Longest wait for the other ranks, in seconds.
        num_threads: CPU threads of this process; 0 takes `own_cores`.

    Raises:
        LaunchError: No such device, ranks on different devices, two on one GPU, or the other ranks do not answer.
        PortTaken: Where the ranks were to meet is somebody else.
    """
    import torch
    import torch.distributed as dist

    info = rank_info(os.environ)
    kind = resolve_device(device)
    torch.set_num_threads(num_threads or _cores(info))
    if kind == "cuda":
        torch.cuda.set_device(gpu_index(info.local_rank, info.local_world_size, visible=torch.cuda.device_count()))
    if not dist.is_initialized():
        timeout = timedelta(seconds=timeout_s)
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        if info.world_size == 1 and info.source == "single":
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        else:
            master = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            try:
                dist.init_process_group(
                    backend, init_method=master, rank=info.rank, world_size=info.world_size, timeout=timeout
                )
            except (RuntimeError, ValueError) as error:
                raise _not_joined(error, rank=info.rank, master=master) from error
    world = TorchWorld(info.rank, info.world_size, info.local_rank, info.local_world_size, kind, dist.group.WORLD)
    if world.size > 1:
        require_one_device(world.all_gather((socket.gethostname(), kind)))
    if kind == "cuda" and world.size > 1:
        require_own_gpus(world.all_gather(this_gpu()))
    return world


def _not_joined(error: Exception, *, rank: int, master: str) -> LaunchError:
    if any(text in str(error) for text in FOREIGN):
        return PortTaken(
            f"somebody else has the port of {master}, where the ranks were to meet",
            hint="start it again, with another MASTER_PORT if you give one; a job of slurm/ does so by itself",
        )
    lost = lost_rank(error, again="start it again")
    return lost or LaunchError(f"rank {rank} could not join the job at {master}: {error}")


def disconnect() -> None:
    """Leave the job; not an error when never joined."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def patient(world: World) -> World:
    """Return the same ranks on a channel that waits for weeks, as after hours in which nobody spoke. Collective.

    A rank that ends is noticed all the same: its connection does. One that does not come here is missed on the first
    channel, by that one's limit.
    """
    if isinstance(world, TorchWorld):
        world.barrier()
    return second_channel(world, timeout_s=_WEEKS_S)


def second_channel(world: World, *, timeout_s: float) -> World:
    """Return the same ranks on a channel of their own, for a thread beside the one that has the first. Collective.

    Args:
        world: The job.
        timeout_s: Longest wait for the other ranks on it, in seconds.
    """
    import torch.distributed as dist

    if not isinstance(world, TorchWorld):
        return world
    return replace(world, group=dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s)))


def notice_board(world: World) -> NoticeBoard:
    """Return where the ranks of a job leave one another notices."""
    if not isinstance(world, TorchWorld) or world.size == 1:
        return OwnBoard()
    from torch.distributed.distributed_c10d import _get_default_store

    # a connection of its own: whoever waits on it keeps nobody else from the store
    return StoreBoard(_get_default_store().clone())  # type: ignore[attr-defined]


LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
SILENT = ("Timed out", "Socket Timeout", "wait timeout after")
FOREIGN = ("EADDRINUSE", "Ping failed")
"""The port is somebody else's: rank 0 cannot listen there, the others are not answered as by a store."""


def lost_rank(error: BaseException, *, again: str) -> LaunchError | None:
    """Say what an error of a collective means: another rank has gone, or (Stalled) is there and does not answer.

    Args:
        error: Anything.
        again: What the user can do.

    Returns:
        None when it is no such error.
    """
    if not isinstance(error, RuntimeError) or isinstance(error, RelayedDefect):
        return None
    if any(text in str(error) for text in SILENT):
        return Stalled(f"another rank did not answer for launch.collective_timeout_s: {error}", hint=again)
    if any(text in str(error) for text in LOST):
        return LaunchError(f"another rank has gone: {error}", hint=f"its own message says why; {again}")
    return None
