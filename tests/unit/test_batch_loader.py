"""Batches in order, prepared ahead, with a named zero-weight slot for each damaged sample."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_sets import flip_byte, write_numbered_set

from synfundus.errors import CorruptShard, DataError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.shards.batches import BatchReader, RankBatch
from synfundus.shards.loader import BatchLoader, Prefetch, RankSteps
from synfundus.shards.reader import Arrays, Members, ShardSetReader
from synfundus.shards.shard_plan import MixedPlan, ReadingPlan
from synfundus.shards.source import DecodedSource, LatentDecoder
from synfundus.storage.manifest import ShardSet

SIZES = [9, 0, 5, 1, 12]
DECODE = LatentDecoder(schema=DEFAULT_LABEL_SCHEMA, moments_shape=(4, 2, 2), with_flip=False)


@pytest.fixture
def shard_set(tmp_path: Path) -> ShardSet:
    return write_numbered_set(tmp_path / "set", SIZES)


@pytest.fixture
def build(shard_set: ShardSet) -> Iterator[Callable[..., BatchLoader]]:
    made: list[BatchLoader] = []

    def build_loader(
        *,
        prefetch: int = 0,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        batch: int = 8,
        augment: Callable[[NDArray[np.int64], Arrays], Arrays] | None = None,
        decode: Callable[[str, Members, str], Arrays] = DECODE,
    ) -> BatchLoader:
        reader = ShardSetReader(shard_set, split="train")
        plan = ReadingPlan(
            shard_sizes=reader.shard_sizes, identity=shard_set.identity, split="train", seed=3, num_streams=4
        )
        batches = BatchReader(
            MixedPlan([plan], weights=[1.0], seed=3),
            [DecodedSource(reader, decode=decode, layout=DECODE.layout)],
            augment=augment,
        )
        made.append(
            BatchLoader(
                reader=batches,
                steps=RankSteps(start_images=start, global_batch_size=batch, rank=rank, world_size=world),
                prefetch=Prefetch(batches=prefetch, max_bytes=2**20, workers=workers, stall_s=30.0),
            )
        )
        return made[-1]

    yield build_loader
    for loader in made:
        loader.close()


def numbers(batch: RankBatch) -> list[int]:
    return [int(value) for value in batch.arrays["moments"][:, 0, 0, 0]]


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batch-loader"]


@pytest.mark.parametrize("prefetch", [1, 3])
def test_prefetching_changes_nothing_but_the_time(build: Callable[..., BatchLoader], prefetch: int) -> None:
    direct = list(islice(build(prefetch=0), 9))
    ahead = list(islice(build(prefetch=prefetch), 9))
    for one, other in zip(direct, ahead, strict=True):
        assert numbers(one) == numbers(other)
        assert np.array_equal(one.positions, other.positions)
        assert np.array_equal(one.weights, other.weights)


def test_an_epoch_delivers_every_sample_once(build: Callable[..., BatchLoader]) -> None:
    seen = [number for batch in islice(build(batch=9), 3) for number in numbers(batch)]
    assert sorted(seen) == list(range(sum(SIZES)))


def test_ranks_interleave_to_the_batches_of_one_rank(build: Callable[..., BatchLoader]) -> None:
    whole = list(islice(build(), 5))
    parts = [list(islice(build(rank=rank, world=4), 5)) for rank in range(4)]
    for step, batch in enumerate(whole):
        joined = np.full(8, -1)
        for rank in range(4):
            joined[rank::4] = numbers(parts[rank][step])
        assert joined.tolist() == numbers(batch)


def test_a_loader_goes_on_at_any_image(build: Callable[..., BatchLoader]) -> None:
    straight = [number for batch in islice(build(), 6) for number in numbers(batch)]
    resumed = [number for batch in islice(build(start=13), 4) for number in numbers(batch)]
    assert resumed == straight[13 : 13 + 32]


def test_augmentation_gets_the_positions_of_its_rows(build: Callable[..., BatchLoader]) -> None:
    def augment(positions: NDArray[np.int64], arrays: Arrays) -> Arrays:
        return {**arrays, "position": positions * 10}

    batch = next(iter(build(augment=augment, start=16, prefetch=2)))
    assert batch.arrays["position"].tolist() == [10 * position for position in range(16, 24)]
    assert batch.positions.tolist() == list(range(16, 24))


def damage(shard_set: ShardSet, shard: int, sample: int) -> str:
    """Flip a byte of a sample and return its key."""
    reader = ShardSetReader(shard_set, split="train")
    start, end = reader.shard(shard).index.span(sample)
    flip_byte(Path(shard_set.shard_url(reader.shards[shard])), end - 1 if sample % 2 else start)
    return reader.key(shard, sample)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_damaged_sample_becomes_a_named_slot_of_weight_zero(
    build: Callable[..., BatchLoader], shard_set: ShardSet, prefetch: int
) -> None:
    good = list(islice(build(), 4))
    key = damage(shard_set, 4, 7)
    bad = 9 + 5 + 1 + 7
    found = list(islice(build(prefetch=prefetch), 4))
    hits = [(batch, row) for batch in good for row, number in enumerate(numbers(batch)) if number == bad]
    assert hits
    for before, after in zip(good, found, strict=True):
        expected = [0.0 if number == bad else 1.0 for number in numbers(before)]
        assert after.weights.tolist() == expected
        assert len(after.quarantined) == expected.count(0.0)
        for row, weight in enumerate(expected):
            if weight:
                assert numbers(after)[row] == numbers(before)[row]
        for sample in after.quarantined:
            assert sample.place == f"{shard_set.url}/train/000004.tar#7"
            assert key in sample.reason
            assert expected[sample.position - int(after.positions[0])] == 0.0


def test_a_damaged_index_takes_out_its_shard_and_no_other(
    build: Callable[..., BatchLoader], shard_set: ShardSet
) -> None:
    flip_byte(Path(shard_set.url) / "train" / "000000.idx.npz", 60)
    batches = list(islice(build(batch=27), 2))
    assert [int(batch.weights.sum()) for batch in batches] == [18, 18]
    assert {sample.place.split("#")[0] for batch in batches for sample in batch.quarantined} == {
        f"{shard_set.url}/train/000000.tar"
    }


def test_a_rank_whose_only_sample_is_damaged_delivers_a_slot_all_the_same(
    build: Callable[..., BatchLoader], shard_set: ShardSet
) -> None:
    good = [numbers(batch)[0] for batch in islice(build(batch=1), 27)]
    bad = good[0]  # nothing was read before it that could stand in
    ends = np.cumsum(SIZES)
    shard = int(np.searchsorted(ends, bad, side="right"))
    damage(shard_set, shard, bad - int(ends[shard]) + SIZES[shard])
    weights = [float(batch.weights[0]) for batch in islice(build(batch=1), 27)]
    assert weights == [0.0 if number == bad else 1.0 for number in good]


def test_a_set_without_one_readable_sample_is_an_error(build: Callable[..., BatchLoader], shard_set: ShardSet) -> None:
    for shard in (0, 2, 3, 4):
        flip_byte(Path(shard_set.url) / "train" / f"00000{shard}.idx.npz", 60)
    with pytest.raises(DataError, match=r"none of .* samples .* could be read") as caught:
        next(iter(build()))
    assert ".tar#" in caught.value.where


def test_bytes_damaged_on_the_way_are_read_once_more(build: Callable[..., BatchLoader]) -> None:
    failures = iter([True, False])

    def decode_badly_once(key: str, members: Members, where: str) -> Arrays:
        if next(failures, False):
            raise CorruptShard("cut on the way", where=where)
        return DECODE(key, members, where)

    batch = next(iter(build(decode=decode_badly_once)))
    assert batch.weights.tolist() == [1.0] * 8


@pytest.mark.timeout(30)
def test_an_error_in_the_background_reaches_the_consumer_in_order(build: Callable[..., BatchLoader]) -> None:
    def augment(positions: NDArray[np.int64], arrays: Arrays) -> Arrays:
        if positions[0] == 16:
            raise ValueError("augmentation failed")
        return arrays

    loader = build(prefetch=2, augment=augment)
    batches = iter(loader)
    next(batches)
    next(batches)
    with pytest.raises(ValueError, match="augmentation failed"):
        next(batches)
    with pytest.raises(ValueError, match="augmentation failed"):
        next(iter(loader))


@pytest.mark.timeout(30)
def test_close_ends_the_thread_also_when_the_queue_is_full(build: Callable[..., BatchLoader]) -> None:
    before = len(loader_threads())
    loader = build(prefetch=2)
    next(iter(loader))
    time.sleep(0.3)
    assert len(loader_threads()) == before + 1
    loader.close()
    assert len(loader_threads()) == before
    loader.close()


@pytest.mark.timeout(60)
def test_closing_does_not_wait_for_a_read_that_takes_long(build: Callable[..., BatchLoader]) -> None:
    go_on, reads = threading.Event(), threading.Event()

    def decode(key: str, members: Members, where: str) -> Arrays:
        reads.set()
        go_on.wait(50)
        return DECODE(key, members, where)

    loader = build(prefetch=2, decode=decode)
    assert loader.take(interrupted=reads.is_set) is None
    began = time.monotonic()
    loader.close()
    assert time.monotonic() - began < 20
    go_on.set()


@pytest.mark.timeout(30)
def test_a_closed_loader_says_so_and_does_not_hang(build: Callable[..., BatchLoader]) -> None:
    loader = build(prefetch=2)
    batches = iter(loader)
    next(batches)
    loader.close()
    for asked in (batches, iter(loader)):
        with pytest.raises(RuntimeError, match="closed"):
            next(asked)


def test_waiting_is_counted(build: Callable[..., BatchLoader]) -> None:
    def slow(key: str, members: Members, where: str) -> Arrays:
        time.sleep(0.01)
        return DECODE(key, members, where)

    loader = build(decode=slow)
    next(iter(loader))
    assert loader.wait_s >= 0.08


def test_a_batch_splits_into_equal_parts_in_order(build: Callable[..., BatchLoader], shard_set: ShardSet) -> None:
    damage(shard_set, 0, 0)
    whole = next(iter(build(batch=24)))
    parts = whole.split(3)
    assert [len(part.positions) for part in parts] == [8, 8, 8]
    assert [number for part in parts for number in numbers(part)] == numbers(whole)
    assert [sample for part in parts for sample in part.quarantined] == list(whole.quarantined)
    assert np.concatenate([part.weights for part in parts]).tolist() == whole.weights.tolist()
