"""What is published beside the images of a sample set: front matter, ``croissant.json`` and ``SHA256SUMS``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from synfundus.artifacts.cards.croissant import croissant
from synfundus.artifacts.cards.front_matter import LICENCE, TAGS, front_matter
from synfundus.storage import documents, filesystem
from synfundus.storage.local_folder import WRITER_NAME
from synfundus.storage.manifest import MANIFEST_NAME, load_shard_set

CROISSANT_NAME = "croissant.json"
SUMS_NAME = "SHA256SUMS"
CARD_NAMES = (CROISSANT_NAME, SUMS_NAME)


def size_category(count: int) -> str:
    """Return Hugging Face's category of a number of images."""
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]
    at = sum(count >= 1000 * 10**power for power in range(len(steps)))
    if at == 0:
        return "n<1K"
    return f"{steps[at - 1]}<n<{steps[at]}" if at < len(steps) else "n>1B"


def set_front_matter(num_images: int, image_format: str) -> str:
    """Return the front matter of a sample set's README.md.

    Args:
        num_images: Images of the set.
        image_format: ``png`` or ``shards``.
    """
    fields: dict[str, Any] = {
        "license": LICENCE,
        "pretty_name": "Synthetic fundus images",
        "task_categories": ["image-classification"],
        "annotations_creators": ["machine-generated"],
        "size_categories": [size_category(num_images)],
        "tags": TAGS,
    }
    shards = {"configs": [{"config_name": "default", "data_files": "train/*.tar"}]}
    return front_matter(fields | shards if image_format == "shards" else fields)


def publish_cards(out: str, provenance: Mapping[str, Any], hashes: Mapping[str, str] | None = None) -> None:
    """Write ``croissant.json`` and, last, ``SHA256SUMS`` of a complete sample set.

    A file is read only if its hash is not at hand: that of a shard is in the manifest.

    Args:
        out: The folder; all other files are there.
        provenance: Content of ``PROVENANCE.json``.
        hashes: sha256 of files by name, known from when they were written.
    """
    known, shards = dict(hashes or {}), []
    if filesystem.exists(filesystem.join(out, MANIFEST_NAME)):
        for entry in load_shard_set(out, kind="samples").shards:
            known[entry.name] = entry.sha256
            shards.append((entry.name, entry.bytes, entry.sha256))
    names = [name for name in filesystem.list_files(out) if name not in (*CARD_NAMES, WRITER_NAME)]
    for name in names:
        if name not in known:
            known[name] = _sha256(filesystem.join(out, name))
    described = croissant(provenance, table_sha256=known["metadata.csv"], shards=shards)
    data = documents.dump_json(described)
    filesystem.write_bytes(filesystem.join(out, CROISSANT_NAME), data)
    known[CROISSANT_NAME] = hashlib.sha256(data).hexdigest()
    lines = (f"{known[name]}  {name}\n" for name in sorted([*names, CROISSANT_NAME]))
    filesystem.write_bytes(filesystem.join(out, SUMS_NAME), "".join(lines).encode())


def _sha256(url: str) -> str:
    digest = hashlib.sha256()
    with filesystem.open_read(url) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
