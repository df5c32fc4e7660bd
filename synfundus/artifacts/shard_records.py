"""Records of finished shards, each written after its shard: its entry in the manifest, and more if the writer needs it.

With them a stopped verb is resumed, and the manifest is assembled from the shards of all ranks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from synfundus.errors import DataError
from synfundus.storage import documents, filesystem
from synfundus.storage.documents import Document
from synfundus.storage.manifest import ShardEntry


@dataclass(frozen=True)
class ShardRecords:
    """The records of a set that is being written.

    Attributes:
        out: The set.
        format_name: Format of a record.
        version: Its version.
        folder: Folder of the records, without sub-folders; empty: beside the shards.
    """

    out: str
    format_name: str
    version: int
    folder: str = ""

    def url(self, shard: str) -> str:
        """Return the location of a shard's record."""
        name = f"{shard.removesuffix('.tar')}.done.json"
        return filesystem.join(self.folder, name.replace("/", "-")) if self.folder else filesystem.join(self.out, name)

    def write(self, entry: ShardEntry, **more: Any) -> None:  # noqa: ANN401 - any JSON value
        """Write the record of a finished shard."""
        record = {"entry": asdict(entry), **more}
        documents.write_document(self.url(entry.name), record, format_name=self.format_name, version=self.version)

    def read(self, shard: str, **expected: object) -> Document | None:
        """Return the record of a shard; None if it is not finished, or its size or fields differ."""
        url, tar = self.url(shard), filesystem.join(self.out, shard)
        if not filesystem.exists(url) or not filesystem.exists(tar):
            return None
        record = documents.read_document(url, format_name=self.format_name, version=self.version)
        whole = filesystem.file_size(tar) == record["entry"]["bytes"]
        return record if whole and expected.items() <= record.items() else None

    def require(self, shard: str, **expected: object) -> Document:
        """Return the record of a shard.

        Raises:
            DataError: It is not finished: a rank was stopped.
        """
        record = self.read(shard, **expected)
        if record is None:
            raise DataError(
                f"shard {shard} is missing", where=self.out, hint="run the same command again: finished shards are kept"
            )
        return record
