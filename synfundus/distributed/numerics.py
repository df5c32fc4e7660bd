"""How a device computes: keyed seeds of its draws, tensor cores, and on request kernels that give the same bits.

Several of the fastest kernels of cuBLAS, cuDNN and torch sum numbers in an order that depends on timing; those of a CPU
do not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

from synfundus.distributed.world import Device

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def only_deterministic_kernels(*, device: Device) -> str | None:
    """Allow only deterministic kernels in this process; an operation without one raises RuntimeError.

    Call it before the first matrix product on a GPU: cuBLAS reads its variable then.

    Args:
        device: Device the process computes on; on a CPU nothing is changed.

    Returns:
        The new setting, for a log line; None on a CPU.
    """
    if device != "cuda":
        return None
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    settings: Any = torch.utils.deterministic  # a module with a property, which type checkers cannot see
    settings.fill_uninitialized_memory = False  # helps to find bugs, but costs a pass over each tensor
    torch.backends.cudnn.benchmark = False
    return "only kernels that give the same bits every time (deterministic=true)"


def seed_kernels(seed: int, *, device: torch.device) -> None:
    """Seed the generator that a device's kernels, such as dropout, draw from.

    ``torch.manual_seed`` seeds every kind of device; for one that is not in use it copies the Python stack each time:
    2 ms a step beside a thread that reads data.

    Args:
        seed: Any integer; its lower 63 bits count.
        device: Device the process computes on.
    """
    if device.type == "cuda":
        torch.cuda.manual_seed(seed % 2**63)
    else:
        torch.default_generator.manual_seed(seed % 2**63)


_FIRST_GENERATION = 8
"""Compute capability of the first GPUs with TF32 (Ampere)."""


def set_tf32(wanted: bool, *, device: Device, option: str = "") -> str | None:
    """Let fp32 matrix products and convolutions use TF32, or forbid it, for the whole process.

    Args:
        wanted: Whether to allow TF32.
        option: The option it comes from, for the log.
        device: Device the process computes on; on a CPU nothing is changed.

    Returns:
        The new setting, for a log line; None on a CPU.
    """
    if device != "cuda":
        return None
    by = f" ({option})" if option else ""
    # set by torch's newer names (fp32_precision), what reads these raises: max-autotune, profilers
    torch.backends.cuda.matmul.allow_tf32 = wanted
    torch.backends.cudnn.allow_tf32 = wanted
    if not wanted:
        return f"fp32 products are fp32, not TF32{by}"
    major, minor = torch.cuda.get_device_capability()
    if major < _FIRST_GENERATION:
        return f"fp32 products are fp32: this GPU (compute capability {major}.{minor}) has no TF32"
    return f"fp32 products run in TF32 on the tensor cores{by}"


@contextmanager
def reproducible_threads(*, device: Device) -> Iterator[None]:
    """Compute with a power of two of threads on a CPU: some kernels round otherwise where work is not cut evenly.

    More processes use the other cores.
    """
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1 << (threads.bit_length() - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
