"""Samples of an image set as arrays: pixels and label states."""

from __future__ import annotations

import numpy as np

from synfundus.errors import CorruptShard
from synfundus.labels.schema import LabelSchema
from synfundus.shards.members import META, decode_image, decode_json, label_states
from synfundus.shards.reader import Arrays, Members
from synfundus.shards.source import Layout

IMAGE_EXTENSIONS = ("png", "webp", "jpg")


class ImageDecoder:
    """Members of an image sample -> ``pixels`` uint8 ``[s, s, 3]`` and ``states`` ``[k]``.

    Args:
        schema: Label schema of the set.
        image_size_px: Expected edge of the images.
    """

    def __init__(self, *, schema: LabelSchema, image_size_px: int) -> None:
        self._schema = schema
        self._size = image_size_px

    @property
    def layout(self) -> Layout:
        """Shapes and types of the arrays of a sample."""
        return {
            "pixels": ((self._size, self._size, 3), np.dtype(np.uint8)),
            "states": ((len(self._schema.labels),), np.dtype(np.int64)),
        }

    def __call__(self, key: str, members: Members, where: str) -> Arrays:
        """Decode one sample."""
        extension = next((name for name in IMAGE_EXTENSIONS if name in members), None)
        if extension is None or META not in members:
            raise CorruptShard(f"sample needs an image and a .json, has {sorted(members)}", where=where)
        pixels = decode_image(members[extension], where=where, extension=extension)
        if pixels.shape != (self._size, self._size, 3):
            raise CorruptShard(f"image of {pixels.shape}, expected {self._size} px square RGB", where=where)
        return {
            "pixels": pixels,
            "states": label_states(decode_json(members[META], where=where), self._schema, where=where),
        }
