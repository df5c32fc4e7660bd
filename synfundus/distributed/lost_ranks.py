"""Errors of torch that mean something to users: a rank is gone or does not answer, a GPU failed, a port is taken."""

from __future__ import annotations

import re
import socket

from synfundus.errors import DeviceFault, LaunchError, PortTaken, RelayedDefect, Stalled

_DISCONNECTED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
_TIMED_OUT = ("Timed out", "Socket Timeout", "wait timeout after")
_PORT_TAKEN = ("EADDRINUSE", "Ping failed")
"""Another program has the port: rank 0 cannot listen on it, and the other ranks get no answer of a torch store."""


_DEVICE_FAILED = re.compile(
    r"(CUDA error|Triton Error \[CUDA\]): (?!out of memory|device-side assert|no kernel image|invalid (arg|dev|conf))"
    r"|unhandled (cuda|system) error|NCCL.* internal error|uncorrectable (ECC|NVLink)"
    r"|CU(BLAS|DNN)_STATUS_EXECUTION_FAILED",
    re.IGNORECASE,
)
"""Errors of CUDA, NCCL, cuBLAS and cuDNN that another GPU may not have; an illegal access can also be a bug."""


def device_fault(error: BaseException, *, rank: int) -> DeviceFault | None:
    """Translate an error of a failed GPU, or of NCCL on it; None for every other error.

    Args:
        error: Any error.
        rank: This rank.
    """
    if not isinstance(error, RuntimeError) or isinstance(error, RelayedDefect) or not _DEVICE_FAILED.search(str(error)):
        return None
    return DeviceFault(
        f"the GPU of rank {rank} on {socket.gethostname()} failed: {str(error).partition(chr(10))[0]}",
        hint="the batch scripts queue the job again without this node; look for Xid in the node's kernel log (dmesg). "
        "If it happens on another node too, it is a fault of the program: please report it",
    )


def lost_rank_error(error: BaseException, *, hint: str) -> LaunchError | None:
    """Translate an error of a collective: another rank has ended, or (Stalled) does not answer.

    Args:
        error: Any error.
        hint: What the user can do.

    Returns:
        None for every other error.
    """
    if not isinstance(error, RuntimeError) or isinstance(error, RelayedDefect):
        return None
    if any(text in str(error) for text in _TIMED_OUT):
        return Stalled(f"another rank did not answer within launch.collective_timeout_s: {error}", hint=hint)
    if any(text in str(error) for text in _DISCONNECTED):
        return LaunchError(f"another rank has ended: {error}", hint=f"its own message says why; {hint}")
    return None


def join_error(error: Exception, *, rank: int, master: str) -> LaunchError:
    """Translate an error of the start of a job.

    Args:
        error: Of torch.
        rank: This rank.
        master: Where rank 0 is to be found.
    """
    if any(text in str(error) for text in _PORT_TAKEN):
        return PortTaken(
            f"another program uses the rendezvous port, {master}",
            hint="start the command again, with another MASTER_PORT if you set one; the jobs in slurm/ do so",
        )
    lost = lost_rank_error(error, hint="start the command again")
    return lost or LaunchError(f"rank {rank} could not join the job at {master}: {error}")
