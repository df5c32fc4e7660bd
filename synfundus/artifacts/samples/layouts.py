"""How sets of generated images lie in a folder: opening any of them, and the layout of SynFundus-1M.

A set of `sample` has ``metadata.csv``, which names each image and its requested labels, and PROVENANCE.json, whether
its images are single PNG files or members of shards. The table of a folder is at once what Hugging Face's
``imagefolder`` expects. SynFundus-1M has its images in parts and the labels in a table by number.

Source: arXiv 2312.00377 and its released files (SynFundus-1M).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from synfundus.artifacts.samples.description import IMAGES_DIR, PROVENANCE_NAME, TABLE_NAMES, requested_labels
from synfundus.errors import CorruptShard, DataError
from synfundus.labels.plan import LabelRow, label_table, read_label_plan
from synfundus.labels.schema import LabelSchema
from synfundus.shards.reader import ShardSetReader
from synfundus.storage import documents, filesystem
from synfundus.storage.manifest import MANIFEST_NAME, ShardSet, load_shard_set

SYNFUNDUS_1M_TABLE = "SynFundus-1M_gen_cond.csv"
_PARTS, _PART_IMAGES = 20, 50_000
_SPLIT = "train"


def file_name(image: int) -> str:
    """Return the file of image ``i`` where nothing else is asked for: ``images/00000000.png``."""
    return f"{IMAGES_DIR}/{image:08d}.png"


def synfundus_1m_name(image: int) -> str:
    """Return the file of image ``i`` in the layout of SynFundus-1M: ``Part{min(19, i // 50000)}/{i}.png``."""
    return f"Part{min(_PARTS - 1, image // _PART_IMAGES)}/{image}.png"


def synfundus_1m_table(rows: Sequence[LabelRow], names: Sequence[str]) -> bytes:
    """Return `SYNFUNDUS_1M_TABLE`: ``idx`` and a column a label, by its own name; an empty cell was not asked for.

    Args:
        rows: Requested labels of images 0, 1, ...
        names: The labels of the model, in the order of its schema: for the default one the columns of the original.
    """
    return label_table(rows, names, idx=range(len(rows)))


@dataclass(frozen=True)
class SampleImages:
    """A finished set of generated images, in the order of their numbers.

    Attributes:
        url: The set.
        provenance: Its PROVENANCE.json.
        schema: The labels of the model.
        files: Name of each image in the set, or in its shard.
        rows: Requested labels of each.
        shards: The shard set; None for single PNG files.
    """

    url: str
    provenance: Mapping[str, Any]
    schema: LabelSchema
    files: tuple[str, ...]
    rows: tuple[LabelRow, ...]
    shards: ShardSet | None = None
    _reader: ShardSetReader | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def model(self) -> str:
        """Fingerprint of the model that drew them."""
        return str(self.provenance["model_fingerprint"])

    def read(self, image: int) -> bytes:
        """Return the PNG of an image.

        Raises:
            CorruptShard: Its shard is damaged.
            StorageError: It cannot be read.
        """
        if self._reader is None:
            return filesystem.read_bytes(filesystem.join(self.url, self.files[image]))
        firsts = [0, *accumulate(self._reader.shard_sizes)]
        shard = bisect_right(firsts, image) - 1
        key, members = self._reader.read(shard, image - firsts[shard])
        if f"{key}.png" != self.files[image] or "png" not in members:
            raise CorruptShard(f"it holds {key} where {self.files[image]} is expected", where=self.url)
        return members["png"]

    def close(self) -> None:
        """Close the shards."""
        if self._reader is not None:
            self._reader.close()


def open_sample_images(url: str) -> SampleImages:
    """Open a set that `sample` has finished, in any layout.

    Raises:
        DataError: There is none, it is not finished, or its documents disagree.
    """
    place = filesystem.join(url, PROVENANCE_NAME)
    table = next((name for name in TABLE_NAMES if filesystem.exists(filesystem.join(url, name))), None)
    if table is None or not filesystem.exists(place):
        missing = PROVENANCE_NAME if table else TABLE_NAMES[0]
        raise DataError(
            f"no finished set of generated images here: there is no {missing}",
            where=url,
            hint="give a folder that `synfundus sample` has finished",
        )
    provenance = documents.read_document(place, format_name="synfundus-samples", version=1)
    schema = LabelSchema.from_document(provenance.get("label_schema"), where=place)
    where = filesystem.join(url, table)
    rows = read_label_plan(filesystem.read_bytes(where), schema, where=where)
    files = tuple(name for name, _ in requested_labels(url) or ())
    if not len(rows) == len(files) == provenance.get("num_images") or not all(files):
        said = f"{len(rows)} rows with {sum(map(bool, files))} files; {PROVENANCE_NAME} says {provenance['num_images']}"
        raise DataError(f"the table has {said}", where=where, hint="run the same `synfundus sample` again")
    if not filesystem.exists(filesystem.join(url, MANIFEST_NAME)):
        return SampleImages(url, provenance, schema, files, tuple(rows))
    shards = load_shard_set(url, kind="samples")
    if shards.num_samples(_SPLIT) != len(rows):
        message = f"the shards hold {shards.num_samples(_SPLIT)} images, the table has {len(rows)} rows"
        raise DataError(message, where=url, hint="run the same `synfundus sample` again")
    reader = ShardSetReader(shards, split=_SPLIT)
    return SampleImages(url, provenance, schema, files, tuple(rows), shards, reader)
