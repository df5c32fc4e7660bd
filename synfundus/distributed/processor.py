"""This machine's processor, read without torch: its instructions, and which cores a rank gets."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from synfundus.errors import LaunchError

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
                hint="run `synfundus doctor` on that node, or exclude it (sbatch --exclude); with "
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
