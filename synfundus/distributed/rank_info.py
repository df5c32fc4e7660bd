"""Rank and world size of this process: the only module that reads them from the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
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
        node_rank: Index of the node.
        source: Where the values come from: ``torchrun``, ``slurm`` or ``single``.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    source: Literal["torchrun", "slurm", "single"]


def integer_of(environment: Mapping[str, str], name: str) -> int:
    """Return the integer in a variable.

    Raises:
        LaunchError: It is not an integer.
    """
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
        nodes = integer_of(environment, "SLURM_NNODES") if "SLURM_NNODES" in environment else 1
        return max(1, size // nodes)
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
        local = integer_of(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else 0
        local_size = integer_of(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else size
        node = integer_of(environment, "GROUP_RANK") if "GROUP_RANK" in environment else 0
        info = RankInfo(integer_of(environment, "RANK"), size, local, local_size, node, "torchrun")
    elif _is_task(environment):
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            raise LaunchError(
                f"this is a task of a SLURM step, but {', '.join(missing)} is not set",
                where="environment",
                hint="start through slurm/*.sh or launchers/srun.sh, which set them for all tasks",
            )
        size = integer_of(environment, "SLURM_NTASKS")
        node = integer_of(environment, "SLURM_NODEID")
        info = RankInfo(
            integer_of(environment, "SLURM_PROCID"),
            size,
            integer_of(environment, "SLURM_LOCALID"),
            _tasks_on_node(environment, node, size=size),
            node,
            "slurm",
        )
    else:
        return RankInfo(0, 1, 0, 1, 0, "single")
    if not 0 <= info.rank < info.world_size:
        raise LaunchError(f"rank {info.rank} is not below the world size {info.world_size}", where="environment")
    return info
