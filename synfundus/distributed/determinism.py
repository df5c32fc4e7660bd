"""Keyed seeds for draws on the device; on request, GPU kernels that give the same bits every time.

Several of the fastest kernels of cuBLAS, cuDNN and torch sum numbers in an order that depends on timing; those of a CPU
do not.
"""

from __future__ import annotations

import os
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
