"""Samples of a shard set by place, decoded by an explicit table of member types.

Only the types listed in `decode_member` are ever decoded, and none of them can run code: no pickles, no tar
extraction, names are data.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synfundus.errors import CorruptShard
from synfundus.storage.manifest import ShardEntry, ShardSet
from synfundus.storage.tarshard import TarShardReader

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
"""Formats pillow may decode from a shard."""

Arrays = dict[str, NDArray[Any]]
Members = Mapping[str, bytes]
MAX_OPEN_SHARDS = 512


def decode_image(data: bytes, *, where: str) -> NDArray[np.uint8]:
    """Decode an RGB image of a shard to uint8 ``[h, w, 3]``.

    Raises:
        CorruptShard: Not an image of an allowed format.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptShard(f"not a readable image: {error}", where=where) from error


def decode_npy(data: bytes, *, where: str) -> NDArray[Any]:
    """Decode an array; pickled objects are refused.

    Raises:
        CorruptShard: Not an npy file, or one that holds objects.
    """
    try:
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise CorruptShard(f"not a readable array: {error}", where=where) from error
    return array


def encode_npy(array: NDArray[Any]) -> bytes:
    """Encode an array as npy, the same bytes for the same array."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def decode_json(data: bytes, *, where: str) -> dict[str, Any]:
    """Decode a sample's JSON document.

    Raises:
        CorruptShard: Not a JSON object.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        raise CorruptShard(f"not valid JSON: {error}", where=where) from error
    if not isinstance(document, dict):
        raise CorruptShard("a sample's JSON must be an object", where=where)
    return document


class ShardSetReader:
    """Reads the members of samples of one split by (shard, sample).

    Not shared between processes: each process builds its own.
    """

    def __init__(self, shard_set: ShardSet, *, split: str) -> None:
        self._set = shard_set
        self.shards: tuple[ShardEntry, ...] = shard_set.split_shards(split)
        self._open: OrderedDict[int, TarShardReader] = OrderedDict()

    @property
    def shard_sizes(self) -> list[int]:
        """Samples of each shard."""
        return [shard.num_samples for shard in self.shards]

    def _shard(self, number: int) -> TarShardReader:
        reader = self._open.get(number)
        if reader is None:
            entry = self.shards[number]
            reader = TarShardReader(self._set.shard_url(entry), index_sha256=entry.index_sha256)
            if len(reader) != entry.num_samples:
                raise CorruptShard(
                    f"the index lists {len(reader)} samples, the manifest {entry.num_samples}", where=reader.tar_url
                )
            self._open[number] = reader
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return reader

    def read(self, shard: int, sample: int) -> tuple[str, dict[str, bytes]]:
        """Return (key, members by extension) of a sample.

        Raises:
            CorruptShard: Bytes that do not match their checksum.
        """
        reader = self._shard(shard)
        return reader.index.keys[sample], reader.read(sample)

    def key(self, shard: int, sample: int) -> str:
        """Return the key of a sample without reading it."""
        return self._shard(shard).index.keys[sample]

    def place_name(self, shard: int, sample: int) -> str:
        """Name a sample for messages."""
        return f"{self._set.shard_url(self.shards[shard])}#{sample}"

    def close(self) -> None:
        """Close all open shards."""
        while self._open:
            self._open.popitem()[1].close()


SampleDecoder = Callable[[str, Members, str], Arrays]
"""(key, members, where) -> named arrays of one sample."""
