"""Who am I among how many, and how do I talk to the others.

The only module that reads ranks from the environment. Rank and world size are values everywhere else, so rank
logic can be tested in one process with `LocalWorld`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from synfundus.distributed.placement import gpu_index, own_cores, require_own_gpus, this_gpu
from synfundus.distributed.processor import processor_has_bf16
from synfundus.errors import LaunchError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class RankInfo:
    """Place of a process in the job.

    Attributes:
        rank: 0 .. world_size - 1.
        world_size: Number of processes.
        local_rank: Number of this process on its node.
        local_world_size: Processes on this node.
        node_rank: Number of the node.
        source: Which variables said so: ``torchrun``, ``slurm`` or ``single``.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    source: Literal["torchrun", "slurm", "single"]


def _integer(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    try:
        return int(text)
    except ValueError as error:
        raise LaunchError(f"{name}={text!r} is not an integer", where="environment") from error


def _tasks_on_node(environment: Mapping[str, str], node: int, *, size: int) -> int:
    """Return how many tasks of a SLURM step are on a node; ``SLURM_STEP_TASKS_PER_NODE`` is like ``4(x2),3``.

    Raises:
        LaunchError: The variable is not of that form.
    """
    text = environment.get("SLURM_STEP_TASKS_PER_NODE")
    if text is None:
        nodes = _integer(environment, "SLURM_NNODES") if "SLURM_NNODES" in environment else 1
        return max(1, size // nodes)
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise LaunchError(f"SLURM_STEP_TASKS_PER_NODE={text!r} is not a list of counts", where="environment")
        counts.extend([int(match[1])] * int(match[2] or 1))
    if node >= len(counts):
        raise LaunchError(
            f"SLURM_NODEID={node}, but SLURM_STEP_TASKS_PER_NODE={text!r} is about {len(counts)}", where="environment"
        )
    return counts[node]


def rank_info(environment: Mapping[str, str]) -> RankInfo:
    """Read the place of this process from torchrun's or srun's variables; without either, a world of one.

    Raises:
        LaunchError: Variables that are incomplete or contradict one another.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            raise LaunchError(f"RANK/WORLD_SIZE are set but {', '.join(missing)} is not", where="environment")
        size = _integer(environment, "WORLD_SIZE")
        local = _integer(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else 0
        local_size = _integer(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else size
        node = _integer(environment, "GROUP_RANK") if "GROUP_RANK" in environment else 0
        info = RankInfo(_integer(environment, "RANK"), size, local, local_size, node, "torchrun")
    elif "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment and "SLURM_NTASKS" in environment:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            raise LaunchError(
                f"this is a task of a SLURM step, but {', '.join(missing)} is not set",
                where="environment",
                hint="start through slurm/*.sh or launchers/srun.sh, which set them for all tasks",
            )
        size = _integer(environment, "SLURM_NTASKS")
        node = _integer(environment, "SLURM_NODEID")
        info = RankInfo(
            _integer(environment, "SLURM_PROCID"),
            size,
            _integer(environment, "SLURM_LOCALID"),
            _tasks_on_node(environment, node, size=size),
            node,
            "slurm",
        )
    else:
        return RankInfo(0, 1, 0, 1, 0, "single")
    if not 0 <= info.rank < info.world_size:
        raise LaunchError(f"rank {info.rank} is not below the world size {info.world_size}", where="environment")
    return info


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
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(tensor, group=self.group)
        return [float(value) for value in tensor.tolist()]

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes."""
        return self.sum([1.0 if flag else 0.0])[0] > 0


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
    task = _integer(os.environ, name) if info.source == "slurm" and name in os.environ else None
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
        LaunchError: No such device, two ranks on one GPU, or the other ranks do not answer.
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
                raise LaunchError(f"rank {info.rank} could not join the job at {master}: {error}") from error
    world = TorchWorld(info.rank, info.world_size, info.local_rank, info.local_world_size, kind, dist.group.WORLD)
    if kind == "cuda" and world.size > 1:
        require_own_gpus(world.all_gather(this_gpu()))
    return world


def disconnect() -> None:
    """Leave the job; not an error when never joined."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


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


LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "Timed out")


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error of a collective says that another rank has gone, or does not answer."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in LOST)
