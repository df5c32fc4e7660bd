"""Read the labels of a set without its images: from the indices, or in older image sets from the JSON of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from synfundus.errors import CorruptShard
from synfundus.shards.members import META, decode_json, label_states
from synfundus.storage.manifest import ShardEntry, ShardSet
from synfundus.storage.tarshard import TarShardReader


def read_label_states(
    shard_set: ShardSet, *, splits: Sequence[str], advance: Callable[[int], None] = lambda _: None
) -> NDArray[np.int16]:
    """Return the label states of some splits ``[n, k]``, in the order of the set.

    Args:
        shard_set: The set.
        splits: Splits to read, in order.
        advance: Called with the number of samples of each shard that was read.

    Raises:
        CorruptShard: A damaged shard, or labels that the schema does not have.
    """
    parts = [np.empty((0, len(shard_set.label_schema.labels)), dtype=np.int16)]
    for entry in (entry for split in splits for entry in shard_set.split_shards(split)):
        parts.append(shard_label_states(shard_set, entry))
        advance(entry.num_samples)
    return np.concatenate(parts)


def shard_label_states(shard_set: ShardSet, entry: ShardEntry) -> NDArray[np.int16]:
    """Return the label states of the samples of a shard ``[n, k]``.

    Raises:
        CorruptShard: It is damaged, or has labels that the schema does not have.
    """
    schema = shard_set.label_schema
    reader = TarShardReader(shard_set.shard_url(entry), index_sha256=entry.index_sha256)
    try:
        states = reader.index.states
        if states is None:
            places = [f"{entry.name}#{key}" for key in reader.index.keys]
            found = [decode_json(reader.read(row)[META], where=place) for row, place in enumerate(places)]
            rows = [label_states(one, schema, where=place) for one, place in zip(found, places, strict=True)]
            return np.array(rows, dtype=np.int16).reshape(len(rows), len(schema.labels))
    finally:
        reader.close()
    highest = np.array(schema.num_values)
    if states.shape[1:] != highest.shape or (states < 0).any() or (states > highest).any():
        raise CorruptShard("label states in the index do not fit the schema", where=entry.name)
    return states
