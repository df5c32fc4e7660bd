"""Read what the stand-in GPU has counted, from a program that runs on it."""

from __future__ import annotations

import ctypes

_library = ctypes.CDLL(None)
_library.stand_in_names.restype = ctypes.c_char_p
_library.stand_in_counted.restype = ctypes.c_long
NAMES: list[str] = _library.stand_in_names().decode().split()
SYNCS = ("stream_syncs", "device_syncs", "event_syncs")


def read() -> dict[str, int]:
    """Return the counts since the last reset; names are explained in ``sources/counts.h``."""
    return {name: int(_library.stand_in_counted(number)) for number, name in enumerate(NAMES)}


def reset() -> None:
    """Begin again at zero."""
    _library.stand_in_reset()


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Return what was counted between two readings."""
    return {name: after[name] - before[name] for name in NAMES}


def launches(counts: dict[str, int]) -> int:
    """Return everything that is started on the device: kernels, products, convolutions, fills and copies on it."""
    return sum(counts[name] for name in ("kernels", "matrix_products", "convolutions", "memsets", "copies_on_device"))
