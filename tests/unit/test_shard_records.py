"""The records of finished shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from synfundus.artifacts.shard_records import ShardRecords
from synfundus.errors import DataError
from synfundus.storage.manifest import ShardEntry

ENTRY = ShardEntry("train/000001.tar", "train", 2, 3, "a" * 64, "b" * 64)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("", "train/000001.done.json"), ("work", "train-000001.done.json")],
    ids=["beside", "elsewhere"],
)
def test_a_shard_is_finished_when_its_record_and_a_tar_of_its_size_are_there(
    folder: str, name: str, tmp_path: Path
) -> None:
    records = ShardRecords(str(tmp_path), "synfundus-test", 1, folder=folder and str(tmp_path / folder))
    tar = tmp_path / ENTRY.name
    assert records.read(ENTRY.name) is None
    records.write(ENTRY, plan_sha256="c")
    document = json.loads((tmp_path / folder / name).read_text())
    assert (document["format"], document["schema_version"], document["plan_sha256"]) == ("synfundus-test", 1, "c")
    assert records.read(ENTRY.name) is None, "no tar"
    tar.parent.mkdir(exist_ok=True)
    tar.write_bytes(b"12")
    assert records.read(ENTRY.name) is None, "a tar of another size"
    tar.write_bytes(b"123")
    assert records.read(ENTRY.name) == document
    assert ShardEntry(**records.require(ENTRY.name, plan_sha256="c")["entry"]) == ENTRY
    assert records.read(ENTRY.name, plan_sha256="d") is None, "of another plan"


def test_a_shard_that_is_not_finished_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shard train/000001\.tar is missing") as caught:
        ShardRecords(str(tmp_path), "synfundus-test", 1).require(ENTRY.name)
    assert caught.value.where == str(tmp_path)
