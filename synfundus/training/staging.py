"""Batches on their way to the device: one pinned buffer and one copy for all arrays of a micro-batch.

A copy from pageable memory makes the host wait until the device has done all it was given before; one from pinned
memory does not, and on a stream of its own it runs while the previous micro-batch is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 256
_SLOTS = 2


class Staging(Protocol):
    """Brings the arrays of a micro-batch to the device."""

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """Return tensors with the shapes, types and values of the arrays, which may be overwritten afterwards."""


def staging_for(device: torch.device) -> Staging:
    """Return the staging of a device; on a CPU the tensors share the memory of the arrays."""
    if device.type != "cuda":
        return lambda arrays: {name: torch.from_numpy(array) for name, array in arrays.items()}
    return PinnedStaging(device)


@dataclass(frozen=True)
class Place:
    """Where an array lies in a buffer.

    Attributes:
        start: Its first byte.
        shape: Its shape.
        dtype: Its type.
    """

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Return its number of bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def view(self, buffer: Tensor) -> Tensor:
        """Return the array as a view of a buffer, uint8."""
        dtype = torch.from_numpy(np.empty(0, self.dtype)).dtype
        return buffer[self.start : self.start + self.size].view(dtype).view(self.shape)


def plan_places(arrays: Mapping[str, NDArray[Any]]) -> tuple[dict[str, Place], int]:
    """Return the places of arrays one after the other in a buffer, aligned, and the bytes they take. Pure."""
    places: dict[str, Place] = {}
    end = 0
    for name, array in arrays.items():
        places[name] = place = Place(-(-end // _ALIGNMENT) * _ALIGNMENT, array.shape, array.dtype)
        end = place.start + place.size
    return places, end


@dataclass
class _Slot:
    buffer: Tensor
    copied: torch.cuda.Event | None = None


@dataclass
class PinnedStaging:
    """Staging through pinned memory on a stream for copies.

    Attributes:
        device: A GPU.
    """

    device: torch.device
    _slots: list[_Slot] = field(default_factory=list, init=False)
    _turn: int = field(default=0, init=False)
    _stream: torch.cuda.Stream | None = field(default=None, init=False)

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """Copy the arrays; the current stream waits for the copy, the host does not."""
        self._stream = self._stream or torch.cuda.Stream(self.device)
        places, size = plan_places(arrays)
        slot = self._free_slot(size)
        for name, place in places.items():
            place.view(slot.buffer).numpy()[...] = arrays[name]
        with torch.cuda.stream(self._stream):
            there = slot.buffer[:size].to(self.device, non_blocking=True)
            slot.copied = torch.cuda.Event()
            slot.copied.record(self._stream)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        there.record_stream(current)  # its memory belongs to the other stream
        return {name: place.view(there) for name, place in places.items()}

    def _free_slot(self, size: int) -> _Slot:
        """Return the slot used the longest ago, once its copy has ended, with room for so many bytes."""
        if len(self._slots) < _SLOTS:
            self._slots.append(_Slot(torch.empty(size, dtype=torch.uint8, pin_memory=True)))
            return self._slots[-1]
        slot, self._turn = self._slots[self._turn], (self._turn + 1) % _SLOTS
        if slot.copied is not None and not slot.copied.query():
            slot.copied.synchronize()
        if slot.buffer.numel() < size:
            slot.buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return slot
