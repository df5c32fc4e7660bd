"""Copying shards as they are."""

from __future__ import annotations

from synfundus.storage import filesystem
from synfundus.storage.manifest import ShardEntry, ShardSet
from synfundus.storage.shard_index import index_url


def copy_shard(source: ShardSet, entry: ShardEntry, tar_url: str) -> None:
    """Copy a shard of a set and, last, its index; both are compared with the manifest.

    Raises:
        CorruptShard: One of them differs from the manifest.
        StorageError: The disk or the store failed.
    """
    here = source.shard_url(entry)
    for url, target, sha256 in (
        (here, tar_url, entry.sha256),
        (index_url(here), index_url(tar_url), entry.index_sha256),
    ):
        with filesystem.atomic_write(target) as stream:
            filesystem.fetch(url, stream, sha256=sha256)
