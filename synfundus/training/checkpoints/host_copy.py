"""Copies of device vectors in host memory."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

_STAGE_ELEMENTS = 2**26
"""256 MiB of fp32."""


def host_copy(vector: Tensor) -> Tensor:
    """Return a copy ``[n]`` in host memory, fp32."""
    copy = torch.empty(vector.shape, dtype=torch.float32)
    if vector.device.type == "cuda":
        copy_by_pieces(vector.detach(), copy, _stage(), wait=torch.cuda.current_stream().synchronize)
        return copy
    return copy.copy_(vector.detach())


@functools.cache
def _stage() -> Tensor:
    """Return the pinned buffer a GPU copies into.

    Pinned vectors would do too, but torch rounds each up to a power of two and never frees it.
    """
    return torch.empty(_STAGE_ELEMENTS, dtype=torch.float32, pin_memory=True)


def copy_by_pieces(source: Tensor, target: Tensor, stage: Tensor, *, wait: Callable[[], None]) -> None:
    """Copy a vector through a buffer.

    Args:
        source: ``[n]``.
        target: ``[n]``.
        stage: The buffer ``[k]``: ``k`` elements are copied at a time.
        wait: Returns once the copy into the buffer is complete.
    """
    for there, here in zip(torch.split(source, len(stage)), torch.split(target, len(stage)), strict=True):
        piece = stage[: len(there)]
        piece.copy_(there, non_blocking=True)
        wait()
        here.copy_(piece)
