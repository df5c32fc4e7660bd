"""Near-duplicate photographs: a perceptual hash finds candidates, the correlation of thumbnails decides.

All fundus photographs share the round black surround and the vignetting, so ordinary hashes of whole pictures collide.
Here the surround is masked, a smooth surface is subtracted, and the residual (vessels, disc, macula, lesions) is
hashed. The hash gives candidates without comparing all pairs; a pair is a near-duplicate only if the thumbnails
correlate by at least `MIN_SIMILARITY`.

Source: signs of low DCT coefficients as a picture hash after Zauner 2010, "Implementation and benchmarking of
perceptual image hash functions"; search by random subsets of bits after Indyk and Motwani 1998, "Approximate nearest
neighbors".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synfundus.seeding import keyed_generator

THUMBNAIL_PX = 32
"""Edge of the thumbnail."""
HASH_BITS = 256
"""Bits of a hash."""
HASH_BYTES = HASH_BITS // 8
MIN_SIMILARITY = 0.97
"""Minimum correlation of the thumbnails of near-duplicates. Different eyes of 3,000 phantoms reached 0.926; two
sittings of one eye from the same direction can reach 0.98, and count as one picture."""

_RADIUS = 0.9  # of half the crop's edge: excludes the rim of the mask and its resampling
_MIN_CONTRAST = 1.0  # of 255, root mean square: below it nothing is recognisable
_STEPS_PER_DEVIATION = 24.0  # of the stored thumbnail
_MAX_DIFFERENT_BITS = 56
_TABLES = 32
SEARCH_STEPS = 2 * _TABLES
"""Number of progress steps of `near_duplicates`."""
_MAX_PARTNERS = 256  # of one hash in one table
_BLOCK_PAIRS = 2**21
_BLOCK_CHECKS = 4096

T = TypeVar("T", int, str)
Bits = NDArray[np.uint8]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class PerceptualHash:
    """The perceptual hash of a picture, with its thumbnail.

    Attributes:
        bits: `HASH_BITS` bits; 0 for a picture without recognisable content, which is never a near-duplicate.
        thumbnail: uint8 ``[32, 32]``: 128 is the smooth surface, 24 steps are a standard deviation.
    """

    bits: int
    thumbnail: NDArray[np.uint8]


@dataclass(frozen=True)
class NearDuplicate:
    """A pair of near-duplicate pictures.

    Attributes:
        first: Row of one picture.
        second: Row of the other.
        similarity: Correlation of their thumbnails.
        mirrored: Whether one is the mirror image of the other.
    """

    first: int
    second: int
    similarity: float
    mirrored: bool


def perceptual_hash(pixels: NDArray[np.uint8]) -> PerceptualHash:
    """Return the perceptual hash and the thumbnail of an image of a set.

    Args:
        pixels: uint8 ``[s, s, 3]``, cropped to the field of view, black outside.
    """
    residual = _residual(pixels)
    if residual is None:
        return PerceptualHash(0, np.full((THUMBNAIL_PX, THUMBNAIL_PX), 128, dtype=np.uint8))
    steps = np.clip(np.rint(128.0 + _STEPS_PER_DEVIATION * residual), 0, 255).astype(np.uint8)
    cosines, rows, columns = _basis()
    signs = (cosines @ residual @ cosines.T)[rows, columns] > 0
    return PerceptualHash(int.from_bytes(np.packbits(signs).tobytes(), "big"), steps)


def hash_to_bytes(bits: int) -> bytes:
    """Return the bits of a hash as `HASH_BYTES` bytes."""
    return bits.to_bytes(HASH_BYTES, "big")


def _residual(pixels: NDArray[np.uint8]) -> NDArray[np.float64] | None:
    """Return the residual from the smooth surface in standard deviations ``[32, 32]``; None without contrast."""
    grey = Image.fromarray(pixels).convert("L")
    box = grey.getbbox()
    if box is None:
        return None
    edge = pixels.shape[0] / THUMBNAIL_PX
    small = np.asarray(grey.convert("F").resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX), dtype=np.float64)
    centers = np.arange(THUMBNAIL_PX) + 0.5
    # straight cuts of the camera leave black bars, which are masked like the surround
    columns = (centers - 1.0 >= box[0] / edge) & (centers + 1.0 <= box[2] / edge)
    rows = (centers - 1.0 >= box[1] / edge) & (centers + 1.0 <= box[3] / edge)
    surface, disc = _surface()
    shown = disc & rows[:, None] & columns
    if shown.sum() < 4 * surface.shape[1]:
        return None
    terms = surface[shown.ravel()]
    values = small[shown]
    weights = np.linalg.solve(terms.T @ terms + 1e-6 * np.eye(terms.shape[1]), terms.T @ values)
    difference = values - terms @ weights
    deviation = float(np.sqrt(np.mean(difference**2)))
    if deviation < _MIN_CONTRAST:
        return None
    residual = np.zeros_like(small)
    residual[shown] = difference / deviation
    return residual


@lru_cache(maxsize=1)
def _surface() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the terms of the smooth surface ``[32 * 32, 8]`` and the disc ``[32, 32]``."""
    axis = (np.arange(THUMBNAIL_PX) + 0.5) / THUMBNAIL_PX * 2.0 - 1.0
    y, x = np.meshgrid(axis, axis, indexing="ij")
    square = x**2 + y**2
    # even powers of the radius model vignetting, which is the same in every picture of a camera
    terms = np.stack([np.ones_like(x), x, y, x**2, y**2, x * y, square**2, square**3], axis=-1)
    return terms.reshape(-1, terms.shape[-1]), square < _RADIUS**2


@lru_cache(maxsize=1)
def _basis() -> tuple[NDArray[np.float64], Rows, Rows]:
    """Return the DCT matrix ``[f, 32]`` and the vertical and horizontal index of each bit, lowest first."""
    order = np.arange(THUMBNAIL_PX)
    cosines = np.cos(np.pi * (2 * order + 1) * order[:, None] / (2 * THUMBNAIL_PX))
    vertical, horizontal = (grid.ravel() for grid in np.meshgrid(order, order, indexing="ij"))
    lowest = np.argsort(vertical**2 + horizontal**2, kind="stable")[1 : HASH_BITS + 1]
    return cosines, vertical[lowest], horizontal[lowest]


def mirrored_hashes(hashes: Bits) -> Bits:
    """Return the hashes of the mirror images: the signs of odd horizontal coefficients are inverted.

    Args:
        hashes: uint8 ``[n, 32]``.
    """
    _, _, horizontal = _basis()
    return hashes ^ np.packbits(horizontal % 2 == 1)


def near_duplicates(
    hashes: Bits,
    thumbnails: Callable[[Rows], NDArray[np.uint8]],
    *,
    others: Bits | None = None,
    other_thumbnails: Callable[[Rows], NDArray[np.uint8]] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[NearDuplicate]:
    """Find near-duplicates, plain or mirrored.

    Within one set only enough pairs to connect each group are returned: pictures that are already connected are not
    compared again, so groups of many copies cost little. The probability to miss a pair grows with the number of
    different bits; every pair found was confirmed by its thumbnails. Memory is bounded by the hashes and some blocks
    of pairs.

    Args:
        hashes: uint8 ``[n, 32]``.
        thumbnails: Returns the thumbnails ``[k, 32, 32]`` of rows ``[k]``.
        others: Hashes of another set ``[m, 32]``; None searches for pairs within ``hashes``.
        other_thumbnails: The same for ``others``.
        advance: Called `SEARCH_STEPS` times during the search.
    """
    rows = np.flatnonzero(hashes.any(axis=1))
    partner_rows = rows if others is None else np.flatnonzero(others.any(axis=1))
    words = hashes[rows]
    partner_words = words if others is None else others[partner_rows]
    found: list[NearDuplicate] = []
    groups: Groups[int] = Groups()
    for mirrored in (False, True):
        right = mirrored_hashes(partner_words) if mirrored else partner_words
        pairs = _candidates(words, None if right is words else right, ordered=others is None, advance=advance)
        for start in range(0, len(pairs), _BLOCK_CHECKS):
            numbers = pairs[start : start + _BLOCK_CHECKS]
            block = np.stack([rows[numbers[:, 0]], partner_rows[numbers[:, 1]]], axis=1)
            if others is None:
                apart = [groups.find(first) != groups.find(second) for first, second in block.tolist()]
                block = block[np.asarray(apart)]
            if not len(block):
                continue
            copies = (other_thumbnails or thumbnails)(block[:, 1])
            similar = similarity(thumbnails(block[:, 0]), copies[:, :, ::-1] if mirrored else copies)
            for row in np.flatnonzero(similar >= MIN_SIMILARITY):
                pair = NearDuplicate(int(block[row, 0]), int(block[row, 1]), float(similar[row]), mirrored)
                found.append(pair)
                groups.join((pair.first, pair.second) if others is None else ())
    return sorted(found, key=lambda pair: (pair.first, pair.second, pair.mirrored))


def similarity(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the correlation of thumbnails ``[k, 32, 32]`` with their partners, ``[k]``, in [-1, 1]."""
    a = left.reshape(len(left), -1).astype(np.float64) - 128.0
    b = right.reshape(len(right), -1).astype(np.float64) - 128.0
    norms = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / np.maximum(norms, 1e-9))


def _candidates(hashes: Bits, partners: Bits | None, *, ordered: bool, advance: Callable[[], None]) -> Rows:
    """Return unique sorted pairs of rows ``[k, 2]`` that agree in some subset of bits and differ in few bits.

    Args:
        hashes: ``[n, 32]``.
        partners: ``[m, 32]``; None searches for pairs within ``hashes``.
        ordered: Keep only pairs whose first row is smaller, if partners are the same pictures.
        advance: Called once per table.
    """
    right = hashes if partners is None else partners
    size = max(len(hashes), len(right), 1)
    width = int(np.clip(np.ceil(np.log2(size + 1)) + 2, 12, 24))
    words, right_words = (np.ascontiguousarray(side).view(np.uint64) for side in (hashes, right))
    codes = np.empty(0, dtype=np.int64)
    for table in range(_TABLES):
        bits = keyed_generator(0, "near-duplicates", table).permutation(HASH_BITS)[:width]
        keys = _keys(hashes, bits)
        new = [codes]
        # more pictures need more equal bits: chance pairs stay proportional to the number of pictures
        for first, second in _joined(keys, None if partners is None else _keys(right, bits)):
            near = np.bitwise_count(words[first] ^ right_words[second]).sum(axis=1, dtype=np.int64)
            kept = near <= _MAX_DIFFERENT_BITS
            first, second = first[kept], second[kept]
            if ordered and partners is None:
                first, second = np.minimum(first, second), np.maximum(first, second)
            elif ordered:
                first, second = first[first < second], second[first < second]
            new.append(np.unique(first * size + second))
        codes = np.unique(np.concatenate(new))
        advance()
    return np.stack([codes // size, codes % size], axis=1)


def _keys(hashes: Bits, bits: Rows) -> NDArray[np.uint32]:
    """Return the chosen bits of each hash as one number ``[n]``."""
    keys = np.zeros(len(hashes), dtype=np.uint32)
    for bit in bits.tolist():
        keys = (keys << np.uint32(1)) | ((hashes[:, bit // 8] >> np.uint8(7 - bit % 8)) & np.uint8(1))
    return keys


def _joined(keys: NDArray[np.uint32], partner_keys: NDArray[np.uint32] | None) -> Iterator[tuple[Rows, Rows]]:
    """Yield blocks of rows with equal keys; without ``partner_keys`` each pair within ``keys`` is yielded once."""
    rows = np.argsort(keys, kind="stable")
    wanted = keys[rows]
    if partner_keys is None:
        partner_rows, found = rows, wanted
        starts = np.arange(1, len(rows) + 1)
    else:
        partner_rows = np.argsort(partner_keys, kind="stable")
        found = partner_keys[partner_rows]
        starts = np.searchsorted(found, wanted, side="left")
    counts = np.minimum(np.searchsorted(found, wanted, side="right") - starts, _MAX_PARTNERS)
    ends = np.cumsum(counts)
    at = 0
    while at < len(rows):
        before = int(ends[at - 1]) if at else 0
        stop = max(at + 1, int(np.searchsorted(ends, before + _BLOCK_PAIRS, side="right")))
        number = counts[at:stop]
        if total := int(number.sum()):
            within_run = np.arange(total) - np.repeat(np.cumsum(number) - number, number)
            yield np.repeat(rows[at:stop], number), partner_rows[np.repeat(starts[at:stop], number) + within_run]
        at = stop


class Groups(Generic[T]):
    """Disjoint groups (union-find); the smallest member represents its group."""

    def __init__(self) -> None:
        self._parent: dict[T, T] = {}

    def find(self, member: T) -> T:
        """Return the representative of the group of ``member``."""
        root = member
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while member != root:
            self._parent[member], member = root, self._parent.get(member, root)
        return root

    def join(self, members: Iterable[T]) -> None:
        """Merge the groups of members."""
        roots = sorted({self.find(member) for member in members})
        for other in roots[1:]:
            self._parent[other] = roots[0]


def groups_of(pairs: Sequence[NearDuplicate]) -> list[list[int]]:
    """Return the groups of rows connected by pairs, each sorted, in the order of their first rows."""
    groups: Groups[int] = Groups()
    for pair in pairs:
        groups.join((pair.first, pair.second))
    members: dict[int, list[int]] = {}
    for row in sorted({row for pair in pairs for row in (pair.first, pair.second)}):
        members.setdefault(groups.find(row), []).append(row)
    return list(members.values())
