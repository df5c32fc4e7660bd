"""Random numbers that are a pure function of (seed, purpose, index).

There is no generator whose state would have to be saved. Each draw names its purpose and its sample, so 1, 2 or 8
ranks, any batch size and any resume point draw the same numbers (ADR-0005).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = 2**64 - 1


@lru_cache(maxsize=1024)
def derive_key(seed: int, *purpose: str | int) -> int:
    """Return the 128-bit key of a stream of draws.

    Args:
        seed: The run's seed.
        purpose: Purpose of the draws, e.g. ``("noise",)`` or ``("order", epoch)``.
    """
    text = "\x1f".join([str(seed), *(str(part) for part in purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def keyed_generator(seed: int, *purpose: str | int, index: int = 0) -> np.random.Generator:
    """Return the generator of one purpose and one sample.

    Philox is counter-based: the key comes from (seed, purpose), the upper half of the counter is the index, so streams
    of different indices never overlap (2**128 draws each).

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; ADR-0005.
    """
    key = derive_key(seed, *purpose)
    words = np.array([key & _WORD, key >> 64], dtype=np.uint64)
    counter = np.array([0, 0, index & _WORD, index >> 64], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words, counter=counter))


def keyed_normal(seed: int, purpose: str, indices: Sequence[int], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draw one standard normal array of ``shape`` for each index; returns ``[len(indices), *shape]`` float32."""
    out = np.empty((len(indices), *shape), dtype=np.float32)
    for row, generator in enumerate(_generators(seed, purpose, indices)):
        generator.standard_normal(dtype=np.float32, out=out[row])
    return out


def keyed_normal_series(
    seed: int, purpose: str, indices: Sequence[int], shape: tuple[int, ...]
) -> Iterator[NDArray[np.float32]]:
    """Yield, without end, a standard normal array of ``shape`` for each index, ``[len(indices), *shape]`` float32.

    The first is `keyed_normal`'s; each index continues its own stream.
    """
    generators = [keyed_generator(seed, purpose, index=index) for index in indices]
    while True:
        yield np.stack([generator.standard_normal(shape, dtype=np.float32) for generator in generators])


def keyed_uniform(seed: int, purpose: str, indices: Sequence[int], count: int = 1) -> NDArray[np.float64]:
    """Draw ``count`` uniform numbers in [0, 1) for each index; returns ``[len(indices), count]`` float64."""
    out = np.empty((len(indices), count), dtype=np.float64)
    for row, generator in enumerate(_generators(seed, purpose, indices)):
        generator.random(out=out[row])
    return out


def _generators(seed: int, purpose: str, indices: Sequence[int]) -> Iterator[np.random.Generator]:
    """Yield `keyed_generator`'s generator for each index; each is valid until the next is requested.

    It is one generator whose counter is set: numpy takes 7 us to build one, mostly for a seed that the key replaces.
    """
    generator = keyed_generator(seed, purpose)
    stream = generator.bit_generator
    start: dict[str, Any] = dict(stream.state)
    counter = start["state"]["counter"]
    for index in indices:
        counter[2], counter[3] = index & _WORD, index >> 64
        stream.state = start
        yield generator
