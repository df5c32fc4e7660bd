"""The loader on a real S3 server: the same batches as from the disk, through faults, with and without the cache."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from s3_server import S3Server
from tiny_sets import write_numbered_set

from synfundus.artifacts.latent_set import open_latent_sets
from synfundus.shards.loader import BatchLoader, Prefetch, RankSteps
from synfundus.shards.reader import ShardSetReader
from synfundus.stages.reading import latent_batches
from synfundus.storage import filesystem
from synfundus.storage.filesystem import StoreSettings
from synfundus.storage.manifest import ShardSet

SIZES = [9, 0, 5, 1, 12]
BATCH = 9
pytestmark = pytest.mark.timeout(120)


def settings(cache: Path | None = None, *, max_bytes: int = 2**24) -> StoreSettings:
    return StoreSettings(
        deadline_s=60,
        connect_timeout_s=2,
        read_timeout_s=0.5,
        cache_dir=None if cache is None else str(cache),
        cache_max_bytes=max_bytes,
    )


@contextmanager
def loader_of(url: str, *, workers: int = 0) -> Iterator[BatchLoader]:
    reader = latent_batches(open_latent_sets([url]), split="train", seed=3, with_flip=False, augment=None)
    loader = BatchLoader(
        reader=reader,
        steps=RankSteps(start_images=0, global_batch_size=BATCH, rank=0, world_size=1),
        prefetch=Prefetch(batches=2, max_bytes=2**20, workers=workers, stall_s=60.0),
    )
    try:
        yield loader
    finally:
        loader.close()


def numbers(loader: BatchLoader, count: int) -> list[list[int]]:
    found = []
    for batch in islice(loader, count):
        assert batch.weights.tolist() == [1.0] * BATCH, batch.quarantined
        found.append([int(value) for value in batch.arrays["moments"][:, 0, 0, 0]])
    return found


@pytest.fixture
def local_set(tmp_path: Path) -> ShardSet:
    return write_numbered_set(tmp_path / "set", SIZES)


@pytest.fixture
def remote_set(local_set: ShardSet, s3_bucket: str) -> str:
    filesystem.upload_folder(Path(local_set.url), f"{s3_bucket}/latents", last=["manifest.json"])
    return f"{s3_bucket}/latents"


@pytest.mark.parametrize(("cached", "workers"), [(False, 0), (True, 0), (True, 2)])
def test_batches_are_those_of_the_disk(
    local_set: ShardSet, remote_set: str, tmp_path: Path, cached: bool, workers: int
) -> None:
    with loader_of(local_set.url) as loader:
        expected = numbers(loader, 9)
    cache = tmp_path / "cache"
    filesystem.configure(settings(cache if cached else None))
    with loader_of(remote_set, workers=workers) as loader:
        assert numbers(loader, 9) == expected
    copies = list(cache.glob("objects/*.copy"))
    assert len(copies) == (4 if cached else 0), "shards that hold samples are kept"


def test_after_the_first_epoch_the_store_is_not_asked_again(
    remote_set: str, tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(s3_server.port, seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        filesystem.configure(settings(tmp_path / "cache"))
        with loader_of(remote_set) as loader:
            first = numbers(loader, 3)
            ends = time.monotonic() + 20
            while len(list(tmp_path.glob("cache/objects/*.copy"))) < 4 and time.monotonic() < ends:
                time.sleep(0.05)
            numbers(loader, 3)  # what was prepared ahead from the store
            proxy.down()
            assert sorted(chain(*numbers(loader, 3))) == sorted(chain(*first))


def test_a_copy_that_rots_is_replaced(local_set: ShardSet, remote_set: str, tmp_path: Path) -> None:
    with loader_of(local_set.url) as loader:
        expected = numbers(loader, 12)
    filesystem.configure(settings(tmp_path / "cache"))
    with loader_of(remote_set) as loader:
        found = numbers(loader, 6)
        ends = time.monotonic() + 20
        while len(copies := list(tmp_path.glob("cache/objects/*.copy"))) < 4 and time.monotonic() < ends:
            time.sleep(0.05)
        for copy in copies:
            data = bytearray(copy.read_bytes())
            data[512:] = bytes(len(data) - 512)
            copy.write_bytes(data)
        assert found + numbers(loader, 6) == expected


def test_a_cache_without_room_only_costs_requests(local_set: ShardSet, remote_set: str, tmp_path: Path) -> None:
    with loader_of(local_set.url) as loader:
        expected = numbers(loader, 6)
    filesystem.configure(settings(tmp_path / "cache", max_bytes=1000))
    with loader_of(remote_set) as loader:
        assert numbers(loader, 6) == expected


@pytest.mark.parametrize(("cached", "workers"), [(False, 0), (True, 0), (True, 2)])
def test_what_is_damaged_in_the_store_is_quarantined_and_nothing_else(
    local_set: ShardSet, remote_set: str, tmp_path: Path, cached: bool, workers: int
) -> None:
    filesystem.remove(f"{remote_set}/train/000000.tar")
    filesystem.write_bytes(f"{remote_set}/train/000002.idx.npz", b"an error page")
    tar = bytearray(filesystem.read_bytes(f"{remote_set}/train/000004.tar"))
    reader = ShardSetReader(local_set, split="train")
    tar[reader.shard(4).index.span(3)[0]] ^= 1
    reader.close()
    filesystem.write_bytes(f"{remote_set}/train/000004.tar", bytes(tar))
    filesystem.configure(settings(tmp_path / "cache" if cached else None))
    with loader_of(remote_set, workers=workers) as loader:
        batches = [(batch.weights.copy(), batch.quarantined) for batch in islice(loader, 3)]
    kinds = Counter(sample.kind for _, quarantined in batches for sample in quarantined)
    assert kinds == {"missing": 9, "index": 5, "checksum": 1}
    assert sum(weights.sum() for weights, _ in batches) == sum(SIZES) - 15
    (rotten,) = [sample.place for _, rows in batches for sample in rows if sample.kind == "checksum"]
    assert rotten == f"{remote_set}/train/000004.tar#3"


@pytest.mark.parametrize("cached", [False, True])
def test_faults_of_the_store_change_nothing(
    local_set: ShardSet,
    remote_set: str,
    tmp_path: Path,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    cached: bool,
) -> None:
    with loader_of(local_set.url) as loader:
        expected = numbers(loader, 9)
    with FaultProxy(s3_server.port, seed=5) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.kinds = ("500", "503", "reset", "cut", "short", "flip")
        proxy.probability = 0.2
        filesystem.configure(settings(tmp_path / "cache" if cached else None))
        with loader_of(remote_set) as loader:
            assert numbers(loader, 9) == expected
