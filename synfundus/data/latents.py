"""Samples of a latent set as arrays: stored posterior moments and label states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synfundus.data.reader import Arrays, Members, decode_json, decode_npy
from synfundus.errors import ConfigError, CorruptShard, DataError
from synfundus.storage.label_schema import LabelSchema

MOMENTS = "moments.npy"
FLIPPED_MOMENTS = "flip.npy"
META = "json"


def label_states(document: Mapping[str, Any], schema: LabelSchema, *, where: str) -> NDArray[np.int64]:
    """Return the label states ``[k]`` of a sample's JSON document.

    Raises:
        CorruptShard: No labels, or labels the schema does not have.
    """
    labels = document.get("labels")
    if not isinstance(labels, dict):
        raise CorruptShard("a sample's JSON lacks its labels", where=where)
    try:
        return np.asarray(schema.encode(labels), dtype=np.int64)
    except (ConfigError, DataError, TypeError) as error:
        raise CorruptShard(f"labels do not fit the schema: {error}", where=where) from error


class LatentDecoder:
    """Members of a latent sample -> ``moments`` fp16 ``[2C, lh, lw]``, ``states`` ``[k]`` (and ``flip`` moments).

    Args:
        schema: The set's label schema.
        moments_shape: Shape every sample must have.
        with_flip: Also return the moments of the mirrored image.
    """

    def __init__(self, *, schema: LabelSchema, moments_shape: tuple[int, int, int], with_flip: bool) -> None:
        self._schema = schema
        self._shape = moments_shape
        self._with_flip = with_flip

    def _moments(self, members: Members, extension: str, where: str) -> NDArray[np.float16]:
        if extension not in members:
            raise CorruptShard(f"sample lacks its member .{extension}", where=where)
        moments = decode_npy(members[extension], where=where)
        if moments.shape != self._shape or moments.dtype != np.float16:
            raise CorruptShard(
                f"moments of shape {moments.shape} {moments.dtype}, expected {self._shape} float16", where=where
            )
        if not np.isfinite(moments).all():
            raise CorruptShard("moments that are not finite", where=where)
        return moments

    def __call__(self, key: str, members: Members, where: str) -> Arrays:
        """Decode one sample."""
        if META not in members:
            raise CorruptShard("sample lacks its member .json", where=where)
        arrays: Arrays = {
            "moments": self._moments(members, MOMENTS, where),
            "states": label_states(decode_json(members[META], where=where), self._schema, where=where),
        }
        if self._with_flip:
            arrays["flip"] = self._moments(members, FLIPPED_MOMENTS, where)
        return arrays
