"""The manifest publishes a set; its hash is the set's identity."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tiny_sets import write_numbered_set

from synfundus.errors import DataError
from synfundus.storage.manifest import MANIFEST_NAME, is_complete, load_shard_set, shard_name


def test_a_set_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = write_numbered_set(tmp_path, [3, 0, 5])
    assert load_shard_set(str(tmp_path), kind="latents") == saved
    assert saved.num_samples() == saved.num_samples("train") == 8
    assert saved.num_samples("val") == 0
    assert [shard.num_samples for shard in saved.split_shards("train")] == [3, 0, 5]
    assert saved.shard_url(saved.shards[2]) == f"{tmp_path}/train/000002.tar"


def test_the_identity_is_the_hash_of_the_manifest(tmp_path: Path) -> None:
    saved = write_numbered_set(tmp_path, [3])
    assert saved.identity == hashlib.sha256((tmp_path / MANIFEST_NAME).read_bytes()).hexdigest()


def test_the_same_set_elsewhere_has_the_same_identity(tmp_path: Path) -> None:
    assert write_numbered_set(tmp_path / "a", [3, 2]).identity == write_numbered_set(tmp_path / "b", [3, 2]).identity
    assert write_numbered_set(tmp_path / "c", [2, 3]).identity != write_numbered_set(tmp_path / "a", [3, 2]).identity


def test_the_manifest_records_totals_and_hashes_of_every_shard(tmp_path: Path) -> None:
    write_numbered_set(tmp_path, [3, 2])
    document = json.loads((tmp_path / MANIFEST_NAME).read_text())
    assert document["totals"] == {"num_samples": 5, "splits": {"train": 5}}
    for entry in document["shards"]:
        tar = tmp_path / entry["name"]
        assert entry["bytes"] == tar.stat().st_size
        assert entry["sha256"] == hashlib.sha256(tar.read_bytes()).hexdigest()
        index = tar.with_name(tar.name.removesuffix(".tar") + ".idx.npz")
        assert entry["index_sha256"] == hashlib.sha256(index.read_bytes()).hexdigest()


def test_a_set_without_a_manifest_is_incomplete(tmp_path: Path) -> None:
    assert not is_complete(str(tmp_path))
    with pytest.raises(DataError, match="no shard set of images here") as caught:
        load_shard_set(str(tmp_path), kind="images")
    assert "incomplete" in caught.value.hint
    write_numbered_set(tmp_path, [1])
    assert is_complete(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("secret.key", "a crosswalk"),
        ("run.json", "a run"),
        ("synfundus.json", "a model"),
        ("metadata.csv", "single images"),
        ("labels.csv", "photographs"),
    ],
)
def test_something_else_than_a_set_is_named(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=f"no shard set of samples here: this is .*{what}") as caught:
        load_shard_set(str(tmp_path), kind="samples")
    assert caught.value.hint == "give a set that `synfundus sample --format shards` has written"


def test_a_set_of_another_kind_is_refused_naming_both(tmp_path: Path) -> None:
    write_numbered_set(tmp_path, [1])
    with pytest.raises(DataError, match="this is a set of latents, a set of images is needed"):
        load_shard_set(str(tmp_path), kind="images")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "has version 2"),
        ({"format": "other"}, "found 'other'"),
        ({"shards": [{"name": "x"}]}, "has a missing or unknown field"),
        ({"shards": 3}, "has a missing or unknown field"),
        ({"label_schema": 4}, "is a list"),
    ],
)
def test_a_malformed_manifest_is_a_readable_error(tmp_path: Path, change: dict[str, object], words: str) -> None:
    write_numbered_set(tmp_path, [1])
    path = tmp_path / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Exception, match=words) as caught:
        load_shard_set(str(tmp_path), kind="latents")
    assert type(caught.value).__module__ == "synfundus.errors"


@pytest.mark.parametrize("missing", ["shards", "label_schema", "rejects", "properties"])
def test_a_manifest_that_lacks_a_field_is_refused_by_its_name(tmp_path: Path, missing: str) -> None:
    write_numbered_set(tmp_path, [1])
    path = tmp_path / MANIFEST_NAME
    document = json.loads(path.read_text())
    del document[missing]
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=f"has a missing or unknown field: '{missing}'"):
        load_shard_set(str(tmp_path), kind="latents")


def test_shard_names_sort_in_order() -> None:
    names = [shard_name("train", number) for number in (0, 9, 10, 99_999)]
    assert names == sorted(names)
    assert names[0] == "train/000000.tar"


@pytest.mark.parametrize(("name", "split"), [("train/000000.tar", "val"), ("val/000000.tar", "train")])
def test_a_shard_whose_split_contradicts_its_folder_is_refused(tmp_path: Path, name: str, split: str) -> None:
    """Else photographs of held-out patients would be trained on."""
    write_numbered_set(tmp_path, [3])
    path = tmp_path / MANIFEST_NAME
    document = json.loads(path.read_text())
    document["shards"][0] |= {"name": name, "split": split}
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="lists an invalid shard"):
        load_shard_set(str(tmp_path), kind="latents")
