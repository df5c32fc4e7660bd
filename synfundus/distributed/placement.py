"""Which device, which GPU and which cores of its node are a rank's own."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from synfundus.errors import LaunchError


def gpu_index(local_rank: int, local_size: int, *, visible: int) -> int:
    """Return which of the GPUs that a process sees is its own.

    A process sees all GPUs of its node's ranks and takes the one of its place, or SLURM shows it its own alone
    (``--gpus-per-task=1``, ``--gpu-bind``), as number 0.

    Raises:
        LaunchError: Several GPUs, and fewer than ranks.
    """
    if visible == 1:
        return 0
    if visible < local_size:
        raise LaunchError(
            f"{local_size} ranks of this node see {visible} GPUs: two of them would share one",
            hint="as many tasks a node as GPUs (--ntasks-per-node, --gpus-per-node), or --gpus-per-task=1",
        )
    return local_rank


def this_gpu() -> tuple[str, str]:
    """Return the node of this process and what its current GPU is known by there."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return socket.gethostname(), str(properties.uuid)


def require_own_gpus(places: Sequence[tuple[str, str]]) -> None:
    """Make sure that no two ranks compute on one GPU: NCCL refuses it at the first collective, in words of its own.

    Args:
        places: `this_gpu` of each rank.

    Raises:
        LaunchError: Two ranks have the same.
    """
    first: dict[tuple[str, str], int] = {}
    for rank, place in enumerate(places):
        other = first.setdefault(place, rank)
        if other != rank:
            node, gpu = place
            raise LaunchError(
                f"ranks {other} and {rank} have the same GPU, {gpu}",
                where=node,
                hint="give every task a GPU of its own (--gpus-per-node as many as --ntasks-per-node, or "
                "--gpus-per-task=1), and leave CUDA_VISIBLE_DEVICES alone",
            )


def require_one_device(places: Sequence[tuple[str, str]]) -> None:
    """Make sure that all ranks compute on the same kind of device: they would wait for one another in vain.

    Args:
        places: Node and device of each rank.

    Raises:
        LaunchError: A node whose driver is dead, for instance, has quietly fallen back on its CPU.
    """
    first = places[0][1]
    for rank, (node, device) in enumerate(places):
        if device != first:
            raise LaunchError(
                f"rank 0 computes on {first}, rank {rank} on {device}",
                where=node,
                hint="run `synfundus doctor` on that node, and leave it out (sbatch --exclude); with "
                "launch.device=cuda a rank without a GPU refuses to start",
            )


def own_cores(local_size: int, *, bound: int, task: int | None) -> int:
    """Return the cores a rank computes with: those SLURM gave its task, elsewhere its share of the node's.

    Args:
        local_size: Ranks of this node.
        bound: Cores this process may run on. Of SLURM's tasks each may have its own, or all those of the job.
        task: Cores of a task, as SLURM was asked for; None where it was not.
    """
    return max(1, bound // local_size if task is None else min(bound, task))
