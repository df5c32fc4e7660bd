"""A plain webdataset pipeline reads every tar of every set: that is what the format is for."""

from __future__ import annotations

import gc
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_sets import write_set

from synfundus.shards.reader import ShardSetReader, decode_npy
from synfundus.storage.manifest import ShardSet

# webdataset leaves its files to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def plain_samples(shard_set: ShardSet, split: str) -> list[dict[str, Any]]:
    """Read a split with nothing but webdataset."""
    import webdataset

    urls = [shard_set.shard_url(shard) for shard in shard_set.split_shards(split)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    gc.collect()
    return samples


def keys(shard_set: ShardSet, split: str) -> list[str]:
    reader = ShardSetReader(shard_set, split=split)
    found = [reader.key(shard, sample) for shard, size in enumerate(reader.shard_sizes) for sample in range(size)]
    reader.close()
    return found


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_image_shard_is_read(image_set: ShardSet, split: str) -> None:
    samples = plain_samples(image_set, split)
    assert [sample["__key__"] for sample in samples] == keys(image_set, split)
    for sample in samples:
        assert Image.open(io.BytesIO(sample["png"])).size == (64, 64)
        assert "dr_grade" in json.loads(sample["json"])["labels"]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_latent_shard_is_read(latent_set: ShardSet, split: str) -> None:
    samples = plain_samples(latent_set, split)
    assert [sample["__key__"] for sample in samples] == keys(latent_set, split)
    for sample in samples:
        assert {name for name in sample if not name.startswith("__")} == {"json", "moments.npy", "flip.npy"}
        for member in ("moments.npy", "flip.npy"):
            moments = decode_npy(sample[member], where="x")
            assert moments.shape == tuple(latent_set.properties["moments_shape"])
            assert moments.dtype == np.float16


def test_members_are_the_ones_our_own_reader_gives(latent_set: ShardSet) -> None:
    reader = ShardSetReader(latent_set, split="train")
    for number, sample in enumerate(plain_samples(latent_set, "train")[: reader.shard_sizes[0]]):
        key, members = reader.read(0, number)
        assert key == sample["__key__"]
        assert members == {name: data for name, data in sample.items() if not name.startswith("__")}
    reader.close()


def test_the_longest_keys_and_missing_members_are_read(tmp_path: Path) -> None:
    long = "k" * 128
    samples = [(long, {"moments.npy": b"1", "json": b"{}"}), ("b", {"json": b"{}"}), ("c-_9", {"moments.npy": b""})]
    written = write_set(tmp_path, samples, shards={"train": (2, 1)}, extensions=("json", "moments.npy"), kind="latents")
    found = plain_samples(written, "train")
    assert [sample["__key__"] for sample in found] == [long, "b", "c-_9"]
    assert [set(sample) & {"json", "moments.npy"} for sample in found] == [
        {"json", "moments.npy"},
        {"json"},
        {"moments.npy"},
    ]
