"""Where a rank is, read without torch: its rank and the world size, its GPU and cores, its processor's instructions.

The only module that reads rank and world size from the environment.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from synfundus.errors import LaunchError

_INTERACTIVE_STEP = str(0xFFFF_FFFA)
"""SLURM_STEP_ID in a salloc shell that the cluster starts on a compute node (LaunchParameters=use_interactive_step)."""


@dataclass(frozen=True)
class RankInfo:
    """Place of a process in the job.

    Attributes:
        rank: 0 .. world_size - 1.
        world_size: Number of processes.
        local_rank: Index of this process on its node.
        local_world_size: Processes on this node.
        source: Where the values come from: ``torchrun``, ``slurm`` or ``single``.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    source: Literal["torchrun", "slurm", "single"]


def integer_of(environment: Mapping[str, str], name: str, *, default: int | None = None) -> int:
    """Return the integer in a variable, or the default where there is one and the variable is not set.

    Raises:
        LaunchError: It is not an integer.
    """
    if default is not None and name not in environment:
        return default
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
        return max(1, size // integer_of(environment, "SLURM_NNODES", default=1))
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise LaunchError(f"SLURM_STEP_TASKS_PER_NODE={text!r} is not a list of counts", where="environment")
        counts.extend([int(match[1])] * int(match[2] or 1))
    if node >= len(counts):
        raise LaunchError(
            f"SLURM_NODEID={node}, but SLURM_STEP_TASKS_PER_NODE={text!r} lists {len(counts)}", where="environment"
        )
    return counts[node]


def _is_task(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process as a rank, not as an interactive shell or a batch script."""
    if not {"SLURM_PROCID", "SLURM_STEP_ID", "SLURM_NTASKS"} <= set(environment):
        return False
    shell = environment["SLURM_NTASKS"] == "1" and "MASTER_ADDR" not in environment  # srun --pty bash
    return not shell and environment["SLURM_STEP_ID"] != _INTERACTIVE_STEP


def rank_info(environment: Mapping[str, str]) -> RankInfo:
    """Read the place of this process from torchrun's or srun's variables; without either, a world of one.

    Raises:
        LaunchError: Variables that are incomplete or contradict one another.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            raise LaunchError(f"RANK or WORLD_SIZE is set, but {', '.join(missing)} is not", where="environment")
        size = integer_of(environment, "WORLD_SIZE")
        local = integer_of(environment, "LOCAL_RANK", default=0)
        local_size = integer_of(environment, "LOCAL_WORLD_SIZE", default=size)
        info = RankInfo(integer_of(environment, "RANK"), size, local, local_size, "torchrun")
    elif _is_task(environment):
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            raise LaunchError(
                f"this is a task of a SLURM step, but {', '.join(missing)} is not set",
                where="environment",
                hint="start through slurm/*.sh or launchers/srun.sh, which set them for all tasks",
            )
        size = integer_of(environment, "SLURM_NTASKS")
        info = RankInfo(
            integer_of(environment, "SLURM_PROCID"),
            size,
            integer_of(environment, "SLURM_LOCALID"),
            _tasks_on_node(environment, integer_of(environment, "SLURM_NODEID"), size=size),
            "slurm",
        )
    else:
        return RankInfo(0, 1, 0, 1, "single")
    if not 0 <= info.rank < info.world_size:
        raise LaunchError(f"rank {info.rank} is not below the world size {info.world_size}", where="environment")
    return info


_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""As Linux names them: Intel since Cooper Lake and Sapphire Rapids, AMD since Zen 4."""


def processor_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the processor has instructions for bf16 matrix products; False if Linux does not say.

    On other processors oneDNN computes bf16 with fp32 instructions and conversions around them. With AVX-512
    alone (Skylake to Ice Lake) a training step in bf16 took 2.2 times as long as in fp32, with AVX2 alone sixty times.

    Args:
        cpuinfo: Linux's table of processors.
    """
    try:
        table = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return any(line.startswith("flags") and not _BF16_FLAGS.isdisjoint(line.split()) for line in table.splitlines())


def gpu_index(local_rank: int, local_size: int, *, visible: int) -> int:
    """Return the index of this rank's GPU among those visible to the process.

    The process sees the GPUs of all ranks of its node and takes the one of its local rank, or SLURM shows it one GPU
    (``--gpus-per-task=1``, ``--gpu-bind``), number 0.

    Raises:
        LaunchError: More than one GPU, but fewer than ranks.
    """
    if visible == 1:
        return 0
    if visible < local_size:
        raise LaunchError(
            f"{local_size} ranks of this node see {visible} GPUs: two of them would share one",
            hint="start one task per GPU (--ntasks-per-node equal to --gpus-per-node), or use --gpus-per-task=1",
        )
    return local_rank


def this_gpu() -> tuple[str, str]:
    """Return the host name of this process and the UUID of its current GPU."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return socket.gethostname(), str(properties.uuid)


def require_own_gpus(places: Sequence[tuple[str, str]]) -> None:
    """Check that no two ranks share a GPU: NCCL refuses that at the first collective, with an unclear message.

    Args:
        places: `this_gpu` of each rank.

    Raises:
        LaunchError: Two ranks share one.
    """
    first: dict[tuple[str, str], int] = {}
    for rank, place in enumerate(places):
        other = first.setdefault(place, rank)
        if other != rank:
            node, gpu = place
            raise LaunchError(
                f"ranks {other} and {rank} use the same GPU, {gpu}",
                where=node,
                hint="start one task per GPU (--ntasks-per-node equal to --gpus-per-node, or --gpus-per-task=1), and "
                "do not set CUDA_VISIBLE_DEVICES",
            )


def require_one_device(places: Sequence[tuple[str, str]]) -> None:
    """Check that all ranks compute on the same kind of device: others would wait for each other forever.

    Args:
        places: Node and device of each rank.

    Raises:
        LaunchError: They do not; a node with a broken driver, for instance, has silently fallen back to its CPU.
    """
    first = places[0][1]
    for rank, (node, device) in enumerate(places):
        if device != first:
            raise LaunchError(
                f"rank 0 computes on {first}, rank {rank} on {device}",
                where=node,
                hint="run `synfundus doctor --device cuda` on that node, or exclude it (sbatch --exclude); with "
                "launch.device=cuda a rank without a GPU refuses to start",
            )


def own_cores(local_size: int, *, bound: int, task: int | None) -> int:
    """Return how many cores a rank computes with: those of its SLURM task, else its share of the node's.

    Args:
        local_size: Ranks of this node.
        bound: Cores this process may run on. Under SLURM they may be those of the task or those of the whole job.
        task: Cores per task requested from SLURM; None if not requested.
    """
    return max(1, bound // local_size if task is None else min(bound, task))
