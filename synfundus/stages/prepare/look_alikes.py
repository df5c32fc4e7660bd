"""Near-duplicates for `synfundus prepare`: within the set before it is split, and against sets that were made before.

The looks of a set (key, perceptual hash, small copy of each image) lie in its crosswalk folder, as ``looks.npy``: they
would tell what an image shows, so they do not belong into the set.
"""

from __future__ import annotations

import csv
import hashlib
import io
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import ConfigError
from synfundus.photographs.crosswalk import CROSSWALK_NAME, private_file
from synfundus.photographs.near_duplicates import HASH_BYTES, THUMBNAIL_PX, NearDuplicate, near_duplicates
from synfundus.storage import filesystem
from synfundus.storage.manifest import SPLITS

LOOKS_NAME = "looks.npy"

_ROW = np.dtype([("key", "S26"), ("look", "u1", (HASH_BYTES,)), ("thumbnail", "u1", (THUMBNAIL_PX, THUMBNAIL_PX))])
_BLOCK_ROWS = 8192

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class OtherSet:
    """A set to compare with.

    Attributes:
        url: As the user named it.
        looks: Location of its looks.
        sha256: Hash of them.
        crosswalk: Location of its map, which says the split of each key; empty if it is not there.
        crosswalk_sha256: Hash of it.
    """

    url: str
    looks: str
    sha256: str
    crosswalk: str
    crosswalk_sha256: str

    @property
    def identity(self) -> str:
        """Hash of all that is read of it."""
        return hashlib.sha256(f"{self.sha256} {self.crosswalk_sha256}".encode()).hexdigest()


@dataclass(frozen=True)
class SeenElsewhere:
    """A photograph that looks like one of another set.

    Attributes:
        row: Which photograph.
        other_set: Number of the other set, from 0.
        other_key: Its key there.
        other_split: Its split there; empty if that is not known.
        similarity: Correlation of their small copies.
        mirrored: Whether one is the mirror image of the other.
    """

    row: int
    other_set: int
    other_key: str
    other_split: str
    similarity: float
    mirrored: bool


def find_other_sets(urls: Sequence[str]) -> tuple[OtherSet, ...]:
    """Find the looks of the sets to compare with, given by their own folder or by that of their crosswalk.

    Raises:
        ConfigError: There are none.
    """
    found = []
    for url in urls:
        bare = url.rstrip("/")
        places = [filesystem.join(folder, LOOKS_NAME) for folder in (bare, f"{bare}.crosswalk")]
        looks = next((place for place in places if filesystem.exists(place)), None)
        if looks is None:
            raise ConfigError(
                f"there are no looks of a set at {url}",
                where="prepare.compare_with",
                hint=f"give the crosswalk folder of a set that this version of `prepare` wrote: it has {LOOKS_NAME}",
            )
        crosswalk = filesystem.join(looks.removesuffix(f"/{LOOKS_NAME}"), CROSSWALK_NAME)
        crosswalk = crosswalk if filesystem.exists(crosswalk) else ""
        found.append(OtherSet(url, looks, _sha256(looks), crosswalk, _sha256(crosswalk) if crosswalk else ""))
    return tuple(found)


def _sha256(url: str) -> str:
    with tempfile.TemporaryFile() as copy:
        return filesystem.fetch(url, copy)


def _splits_of(other: OtherSet, keys: Collection[str]) -> dict[str, str]:
    """Return the splits of some keys of another set, as its crosswalk has them.

    Raises:
        ConfigError: It is no crosswalk.
    """
    if not other.crosswalk or not keys:
        return {}
    with tempfile.TemporaryFile() as copy:
        filesystem.fetch(other.crosswalk, copy, sha256=other.crosswalk_sha256)
        copy.seek(0)
        with io.TextIOWrapper(copy, encoding="utf-8", newline="") as text:
            try:
                rows = csv.DictReader(text, strict=True)
                return {row["key"]: row["split"] for row in rows if row["key"] in keys and row["split"] in SPLITS}
            except (KeyError, csv.Error, UnicodeDecodeError) as error:
                raise ConfigError("this is no crosswalk", where=other.crosswalk) from error


@contextmanager
def room_for_thumbnails(number: int) -> Iterator[NDArray[np.uint8]]:
    """Have room for small copies, uint8 ``[number, 32, 32]``, in a temporary file: memory need not hold them."""
    shape = (max(number, 1), THUMBNAIL_PX, THUMBNAIL_PX)
    with tempfile.TemporaryFile() as stream:
        stream.truncate(int(np.prod(shape)))
        yield np.memmap(stream, dtype=np.uint8, mode="r+", shape=shape)[:number]


def stack_hashes(looks: Sequence[bytes]) -> NDArray[np.uint8]:
    """Return hashes as an array ``[n, 32]``."""
    return np.frombuffer(b"".join(looks), dtype=np.uint8).reshape(-1, HASH_BYTES)


def _reader(thumbnails: NDArray[np.uint8]) -> Callable[[Rows], NDArray[np.uint8]]:
    def read(rows: Rows) -> NDArray[np.uint8]:
        return np.asarray(thumbnails[rows])

    return read


def look_alikes_within(
    looks: Sequence[bytes], thumbnails: NDArray[np.uint8], advance: Callable[[], None]
) -> list[NearDuplicate]:
    """Return the pairs of photographs that look the same."""
    return near_duplicates(stack_hashes(looks), _reader(thumbnails), advance=advance)


def look_alikes_elsewhere(
    looks: Sequence[bytes], thumbnails: NDArray[np.uint8], others: Sequence[OtherSet], advance: Callable[[], None]
) -> list[SeenElsewhere]:
    """Return the photographs that look like one of another set."""
    hashes = stack_hashes(looks)
    found = []
    for number, other in enumerate(others):
        with _opened(other) as table:
            pairs = near_duplicates(
                hashes,
                _reader(thumbnails),
                others=np.ascontiguousarray(table["look"]),
                other_thumbnails=_reader(table["thumbnail"]),
                advance=advance,
            )
            keys = [bytes(table["key"][pair.second]).decode() for pair in pairs]
        splits = _splits_of(other, frozenset(keys))
        found += [
            SeenElsewhere(pair.first, number, key, splits.get(key, ""), pair.similarity, pair.mirrored)
            for pair, key in zip(pairs, keys, strict=True)
        ]
    return found


@contextmanager
def _opened(other: OtherSet) -> Iterator[NDArray[Any]]:
    """Map the looks of a set into memory, from a checked copy.

    Raises:
        ConfigError: They are not what `save_looks` writes.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, LOOKS_NAME)
        with copy.open("w+b") as stream:
            filesystem.fetch(other.looks, stream, sha256=other.sha256)
        try:
            table = np.load(copy, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ConfigError("these are no looks of a set", where=other.looks) from error
        if table.dtype != _ROW or table.ndim != 1:
            raise ConfigError("these are no looks of a set of this version", where=other.looks)
        yield table


def save_looks(
    url: str, keys: Sequence[str], looks: Sequence[bytes], thumbnails: NDArray[np.uint8], rows: Sequence[int]
) -> None:
    """Write the looks of a set, in the order of their keys.

    Args:
        url: Where to.
        keys: Keys of the samples, ``[n]``.
        looks: Their hashes.
        thumbnails: uint8 ``[m, 32, 32]``.
        rows: Which of the small copies is whose.
    """
    order = sorted(range(len(keys)), key=lambda number: keys[number])
    header = {"descr": np.lib.format.dtype_to_descr(_ROW), "fortran_order": False, "shape": (len(keys),)}
    with private_file(url) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, len(order), _BLOCK_ROWS):
            numbers = order[start : start + _BLOCK_ROWS]
            block = np.zeros(len(numbers), dtype=_ROW)
            block["key"] = [keys[number].encode() for number in numbers]
            block["look"] = stack_hashes([looks[number] for number in numbers])
            block["thumbnail"] = thumbnails[[rows[number] for number in numbers]]
            stream.write(block.tobytes())
