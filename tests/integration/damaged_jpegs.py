"""JPEGs of every kind, sound and damaged at random."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Rng = np.random.Generator

KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "baseline": ("RGB", {"quality": 90}),
    "low quality": ("RGB", {"quality": 60}),
    "own tables": ("RGB", {"quality": 80, "optimize": True}),
    "4:4:4": ("RGB", {"quality": 92, "subsampling": 0}),
    "progressive": ("RGB", {"quality": 90, "progressive": True}),
    "progressive 4:4:4": ("RGB", {"quality": 75, "progressive": True, "subsampling": 0}),
    "a restart a row": ("RGB", {"quality": 90, "restart_marker_rows": 1}),
    "a restart every seven": ("RGB", {"quality": 85, "restart_marker_blocks": 7}),
    "grey": ("L", {"quality": 90}),
    "grey, own tables": ("L", {"quality": 75, "optimize": True}),
    "grey, progressive": ("L", {"quality": 85, "progressive": True}),
    "inks": ("CMYK", {"quality": 90}),
    "inks, progressive": ("CMYK", {"quality": 85, "progressive": True}),
}
"""Mode and options of an encoder by the name of a kind."""

TAILS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda data: data,
    "zeros behind": lambda data: data + bytes(4096),
    "junk behind": lambda data: data + np.random.default_rng(0).bytes(3000),
    "another picture behind": lambda data: data + data,
    "no end marker": lambda data: data[:-2],
    "half an end marker": lambda data: data[:-1],
    "fill bytes": lambda data: data[:-2] + b"\xff\xff\xff" + data[-2:],
}
"""What a sound file may have at its end."""


@dataclass(frozen=True)
class Damage:
    """A damaged file."""

    kind: str
    what: str
    sound: bytes
    data: bytes

    def __str__(self) -> str:
        return f"{self.kind}, {self.what}"


def encode(pixels: NDArray[np.uint8], kind: str, **more: object) -> bytes:
    mode, options = KINDS[kind]
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", **options, **more)
    return stream.getvalue()


def first_scan(data: bytes) -> int:
    """Return the offset of the first coded pixel."""
    at = data.index(b"\xff\xda") + 2
    return at + int.from_bytes(data[at : at + 2])


def _place(data: bytes, rng: Rng) -> int:
    return max(int(len(data) * rng.uniform(0.05, 0.95)), first_scan(data))


def overwritten(data: bytes, rng: Rng, block: Callable[[int], bytes], number: int) -> bytes:
    at = _place(data, rng)
    number = min(number, len(data) - 2 - at)
    return data[:at] + block(number) + data[at + number :]


def cut(data: bytes, rng: Rng) -> bytes:
    return data[: _place(data, rng)] + b"\xff\xd9"


def displaced(data: bytes, rng: Rng, *, apart: int = 0) -> bytes:
    """Exchange two restart intervals with their markers; ``apart`` intervals from each other, or any but 8, 16, ..."""
    start = first_scan(data)
    intervals = re.split(rb"(?=\xff[\xd0-\xd7])", data[start:-2])
    one = int(rng.integers(1, len(intervals) - 1 - max(apart, 1)))
    others = [at for at in range(one + 1, len(intervals) - 1) if (at - one) % 8] if not apart else [one + apart]
    other = int(rng.choice(others))
    intervals[one], intervals[other] = intervals[other], intervals[one]
    return data[:start] + b"".join(intervals) + data[-2:]


def dropped(data: bytes, rng: Rng, number: int) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[min(at + number, len(data) - 2) :]


def flipped(data: bytes, rng: Rng) -> bytes:
    return overwritten(data, rng, lambda number: bytes([data[_place(data, rng)] ^ 1 << int(rng.integers(8))]), 1)


DAMAGES: dict[str, Callable[[bytes, Rng], bytes]] = {
    "64 bytes zeroed": lambda data, rng: overwritten(data, rng, bytes, 64),
    "512 bytes zeroed": lambda data, rng: overwritten(data, rng, bytes, 512),
    "4096 bytes zeroed": lambda data, rng: overwritten(data, rng, bytes, 4096),
    "cut, with an end marker": cut,
}
"""Damage that is always found; ``displaced`` too, in files with restart markers."""

RANDOM: dict[str, Callable[[bytes, Rng], bytes]] = {
    "512 bytes overwritten at random": lambda data, rng: overwritten(data, rng, rng.bytes, 512),
    "64 bytes overwritten at random": lambda data, rng: overwritten(data, rng, rng.bytes, 64),
    "64 bytes of ones": lambda data, rng: overwritten(data, rng, lambda number: b"\xff" * number, 64),
    "512 bytes dropped": lambda data, rng: dropped(data, rng, 512),
    "one byte wrong": flipped,
}
"""Damage that may leave a valid stream of the right length."""
