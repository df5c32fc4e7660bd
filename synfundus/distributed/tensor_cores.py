"""Whether fp32 products on a GPU may use tensor cores in TF32: 10 bits of mantissa instead of 23, but far faster.

Only the settings of cuBLAS and cuDNN are changed, never those a CPU's kernels read, and only by torch's newer names:
they must not be mixed with the older ones (`allow_tf32`, `set_float32_matmul_precision`), of which the last also
changes what oneDNN does on a CPU.
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
        wanted: Whether to allow TF32.
        option: The option it comes from, for the log.
        device: Device the process computes on; on a CPU nothing is changed.

    Returns:
        The new setting, for a log line; None on a CPU.
    """
    if device != "cuda":
        return None
    by = f" ({option})" if option else ""
    precision = "tf32" if wanted else "ieee"
    # recurrent kernels are not used, but torch refuses to report a cuDNN setting that differs between the two
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
