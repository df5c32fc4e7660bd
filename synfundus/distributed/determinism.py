"""What a step draws on the device, by key; GPU kernels that give the same bits every time, for those who want them.

Several of cuBLAS's, cuDNN's and torch's fastest kernels add numbers in an order that depends on timing. A CPU's do not.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.utils.deterministic

from synfundus.distributed.world import Device

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def only_deterministic_kernels(*, device: Device) -> str | None:
    """Allow no other kernels from now on, in the whole process; an operation that has none raises RuntimeError.

    Call it before the first product on a GPU: cuBLAS reads its variable then.

    Args:
        device: What the process computes on; on a CPU nothing is touched.

    Returns:
        What holds from now on, fit for a line of a log; None on a CPU.
    """
    if device != "cuda":
        return None
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    settings: Any = torch.utils.deterministic  # a module with a property, which type checkers cannot see
    settings.fill_uninitialized_memory = False  # it finds bugs, and costs a pass over each tensor
    torch.backends.cudnn.benchmark = False
    return "only kernels that give the same bits every time (train.loop.deterministic)"


def seed_kernels(seed: int, *, device: torch.device) -> None:
    """Seed what a device's kernels, such as dropout's, draw from.

    ``torch.manual_seed`` does so for every kind of device; for a kind that is not in use it copies the stack each time,
    in Python: beside a thread that reads data, 2 ms a step.

    Args:
        seed: Any whole number; its lower 63 bits count.
        device: What the process computes on.
    """
    if device.type == "cuda":
        torch.cuda.manual_seed(seed % 2**63)
    else:
        torch.default_generator.manual_seed(seed % 2**63)
