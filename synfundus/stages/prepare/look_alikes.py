"""Near-duplicates for `synfundus prepare`: within the set before it is split, and in existing sets.

The hashes of a set (key, perceptual hash and thumbnail of each image) are in its crosswalk folder, as ``looks.npy``: a
thumbnail reveals the image, so it must not be in the set.
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
from synfundus.photographs.crosswalk import CROSSWALK_NAME, HASHES_NAME, default_place, private_file
from synfundus.photographs.near_duplicates import HASH_BYTES, THUMBNAIL_PX, NearDuplicate, near_duplicates
from synfundus.processes.shared_memory import reserve
from synfundus.storage import filesystem
from synfundus.storage.locations import resolved
from synfundus.storage.manifest import SPLITS

_ROW = np.dtype([("key", "S26"), ("look", "u1", (HASH_BYTES,)), ("thumbnail", "u1", (THUMBNAIL_PX, THUMBNAIL_PX))])
_BLOCK_ROWS = 8192

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class OtherSet:
    """A set to compare with.

    Attributes:
        url: As given by the user.
        hashes: Location of its perceptual hashes.
        sha256: Hash of that file.
        crosswalk: Location of its crosswalk table, with the split of each key; empty if it is missing.
        crosswalk_sha256: Hash of that file.
    """

    url: str
    hashes: str
    sha256: str
    crosswalk: str
    crosswalk_sha256: str

    @property
    def identity(self) -> str:
        """Hash of all its files that are read."""
        return hashlib.sha256(f"{self.sha256} {self.crosswalk_sha256}".encode()).hexdigest()


@dataclass(frozen=True)
class OtherSetMatch:
    """A photograph with a near-duplicate in another set.

    Attributes:
        row: Row of the photograph.
        other_set: Number of the other set, from 0.
        other_key: Key of the near-duplicate.
        other_split: Split of the near-duplicate; empty if unknown.
        similarity: Correlation of their thumbnails.
        mirrored: Whether one is the mirror image of the other.
    """

    row: int
    other_set: int
    other_key: str
    other_split: str
    similarity: float
    mirrored: bool


def find_other_sets(urls: Sequence[str]) -> tuple[OtherSet, ...]:
    """Find the hashes of the sets to compare with, given by the folder of the set or of its crosswalk.

    Raises:
        ConfigError: A set has no hashes.
    """
    found = []
    for url in urls:
        bare = url.rstrip("/")
        candidates = [filesystem.join(folder, HASHES_NAME) for folder in (bare, default_place(resolved(bare)))]
        hashes = next((location for location in candidates if filesystem.exists(location)), None)
        if hashes is None:
            raise ConfigError(
                f"no perceptual hashes of a set at {url}",
                where="prepare.compare_with",
                hint=f"give the crosswalk folder of a set that this version of `prepare` wrote: it has {HASHES_NAME}",
            )
        crosswalk = filesystem.join(hashes.removesuffix(f"/{HASHES_NAME}"), CROSSWALK_NAME)
        crosswalk = crosswalk if filesystem.exists(crosswalk) else ""
        found.append(OtherSet(url, hashes, _sha256(hashes), crosswalk, _sha256(crosswalk) if crosswalk else ""))
    return tuple(found)


def _sha256(url: str) -> str:
    with tempfile.TemporaryFile() as copy:
        return filesystem.fetch(url, copy)


def _splits_of(other: OtherSet, keys: Collection[str]) -> dict[str, str]:
    """Return the splits of some keys of another set, from its crosswalk.

    Raises:
        ConfigError: It is not a crosswalk.
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
                raise ConfigError("this is not a crosswalk table", where=other.crosswalk) from error


@contextmanager
def thumbnail_buffer(number: int) -> Iterator[NDArray[np.uint8]]:
    """Provide an array for thumbnails, uint8 ``[number, 32, 32]``, in a temporary file to save memory."""
    shape = (max(number, 1), THUMBNAIL_PX, THUMBNAIL_PX)
    with tempfile.TemporaryFile() as stream:
        with filesystem.storage_errors("keep thumbnails", tempfile.gettempdir()):
            reserve(stream.fileno(), int(np.prod(shape)))
        yield np.memmap(stream, dtype=np.uint8, mode="r+", shape=shape)[:number]


def stack_hashes(hashes: Sequence[bytes]) -> NDArray[np.uint8]:
    """Return hashes as an array ``[n, 32]``."""
    return np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, HASH_BYTES)


def _reader(thumbnails: NDArray[np.uint8]) -> Callable[[Rows], NDArray[np.uint8]]:
    return lambda rows: np.asarray(thumbnails[rows])


def near_duplicates_within(
    hashes: Sequence[bytes], thumbnails: NDArray[np.uint8], advance: Callable[[], None]
) -> list[NearDuplicate]:
    """Return the pairs of near-duplicates within a set."""
    return near_duplicates(stack_hashes(hashes), _reader(thumbnails), advance=advance)


def matches_in_other_sets(
    hashes: Sequence[bytes], thumbnails: NDArray[np.uint8], others: Sequence[OtherSet], advance: Callable[[], None]
) -> list[OtherSetMatch]:
    """Return the photographs with near-duplicates in other sets."""
    stacked = stack_hashes(hashes)
    found = []
    for number, other in enumerate(others):
        with _hash_table(other) as table:
            pairs = near_duplicates(
                stacked,
                _reader(thumbnails),
                others=np.ascontiguousarray(table["look"]),
                other_thumbnails=_reader(table["thumbnail"]),
                advance=advance,
            )
            keys = [bytes(table["key"][pair.second]).decode() for pair in pairs]
        splits = _splits_of(other, frozenset(keys))
        found += [
            OtherSetMatch(pair.first, number, key, splits.get(key, ""), pair.similarity, pair.mirrored)
            for pair, key in zip(pairs, keys, strict=True)
        ]
    return found


@contextmanager
def _hash_table(other: OtherSet) -> Iterator[NDArray[Any]]:
    """Map the hashes of a set into memory, from a verified copy.

    Raises:
        ConfigError: Not a file of `save_hashes`.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, HASHES_NAME)
        with copy.open("w+b") as stream:
            filesystem.fetch(other.hashes, stream, sha256=other.sha256)
        try:
            table = np.load(copy, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ConfigError("not a file of perceptual hashes", where=other.hashes) from error
        if table.dtype != _ROW or table.ndim != 1:
            raise ConfigError("not a file of perceptual hashes of this version", where=other.hashes)
        yield table


def save_hashes(
    url: str, keys: Sequence[str], hashes: Sequence[bytes], thumbnails: NDArray[np.uint8], rows: Sequence[int]
) -> None:
    """Write the hashes and thumbnails of a set, ordered by key.

    Args:
        url: Destination.
        keys: Keys of the samples, ``[n]``.
        hashes: Their perceptual hashes.
        thumbnails: uint8 ``[m, 32, 32]``.
        rows: Row of each sample in the thumbnails.
    """
    order = sorted(range(len(keys)), key=lambda number: keys[number])
    header = {"descr": np.lib.format.dtype_to_descr(_ROW), "fortran_order": False, "shape": (len(keys),)}
    with private_file(url) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, len(order), _BLOCK_ROWS):
            numbers = order[start : start + _BLOCK_ROWS]
            block = np.zeros(len(numbers), dtype=_ROW)
            block["key"] = [keys[number].encode() for number in numbers]
            block["look"] = stack_hashes([hashes[number] for number in numbers])
            block["thumbnail"] = thumbnails[[rows[number] for number in numbers]]
            stream.write(block.tobytes())
