"""Whether fp32 products of a GPU may run on its tensor cores, in TF32: 10 bits of mantissa instead of 23, far faster.

Only the switches of cuBLAS and cuDNN are turned, never the ones that a CPU's kernels read. By torch's newer names
alone: the older ones (`allow_tf32`, `set_float32_matmul_precision`) must not be mixed with them, and the last of these
changes what oneDNN does on a CPU, too.
"""

from __future__ import annotations

from typing import Any

import torch

from synfundus.distributed.world import Device

_FIRST_GENERATION = 8
"""Compute capability of the first GPUs with TF32 (Ampere)."""


def set_tf32(wanted: bool, *, device: Device, option: str = "") -> str | None:
    """Let fp32 matrix products and convolutions use TF32, or forbid it, for the whole process.

    Args:
        wanted: `train.loop.tf32` in training.
        option: Which option said so, for the log.
        device: What the process computes on; on a CPU nothing is touched.

    Returns:
        What holds from now on, fit for a line of a log; None on a CPU.
    """
    if device != "cuda":
        return None
    by = f" ({option})" if option else ""
    precision = "tf32" if wanted else "ieee"
    # recurrent kernels are not used; set all the same, since torch refuses to answer for a cuDNN that is half set
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn  # torch's type stubs do not know these yet
    for backend in (cuda.matmul, cudnn.conv, cudnn.rnn):
        backend.fp32_precision = precision
    if not wanted:
        return f"fp32 products are fp32, not TF32{by}"
    major, minor = torch.cuda.get_device_capability()
    if major < _FIRST_GENERATION:
        return f"fp32 products are fp32: this GPU (compute capability {major}.{minor}) has no TF32"
    return f"fp32 products run in TF32 on the tensor cores{by}"
