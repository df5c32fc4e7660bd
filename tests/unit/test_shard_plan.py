"""The reading order: exactly once, the same for everybody, resumable at any image."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synfundus.errors import DataError
from synfundus.shards.shard_plan import NUM_STREAMS, ReadingPlan, rank_positions

shard_lists = st.lists(st.integers(0, 90), min_size=1, max_size=12).filter(any)
streams = st.sampled_from([1, 2, 3, 8, 16, 256])


RECORDED_ORDER = [
    *[(2, 1), (3, 0), (2, 4), (0, 1), (2, 2), (3, 1), (0, 0), (0, 2), (2, 3), (2, 0)],
    *[(0, 1), (3, 0), (2, 4), (2, 2), (0, 0), (3, 1), (2, 3), (2, 1), (0, 2), (2, 0)],
]


def plan_of(sizes: list[int], *, num_streams: int = 8, window: int = 16, seed: int = 5) -> ReadingPlan:
    return ReadingPlan(
        shard_sizes=sizes, identity="id", split="train", seed=seed, num_streams=num_streams, window_samples=window
    )


def places(plan: ReadingPlan, first: int, end: int) -> list[tuple[int, int]]:
    found = plan.locate(range(first, end))
    return list(zip(found.shard.tolist(), found.sample.tolist(), strict=True))


def all_places(sizes: list[int]) -> list[tuple[int, int]]:
    return [(shard, sample) for shard, size in enumerate(sizes) for sample in range(size)]


@given(sizes=shard_lists, num_streams=streams, window=st.integers(1, 64), epoch=st.integers(0, 3))
def test_every_sample_comes_exactly_once_an_epoch(sizes: list[int], num_streams: int, window: int, epoch: int) -> None:
    plan = plan_of(sizes, num_streams=num_streams, window=window)
    total = plan.num_samples
    assert sorted(places(plan, epoch * total, (epoch + 1) * total)) == all_places(sizes)


@pytest.mark.parametrize("sizes", [[0, 5, 0, 1, 0], [1], [1, 1, 1], [3, 0, 2], [255], [257], [256, 0, 1]])
def test_empty_shards_single_samples_and_fewer_samples_than_streams(sizes: list[int]) -> None:
    plan = plan_of(sizes, num_streams=NUM_STREAMS, window=32_768)
    for epoch in range(3):
        first = epoch * plan.num_samples
        assert sorted(places(plan, first, first + plan.num_samples)) == all_places(sizes)


@given(sizes=shard_lists, num_streams=streams, start=st.integers(0, 10_000), count=st.integers(1, 60))
def test_resuming_at_any_image_goes_on_with_the_same_samples(
    sizes: list[int], num_streams: int, start: int, count: int
) -> None:
    straight = plan_of(sizes, num_streams=num_streams)
    straight.locate(range(max(0, start - 200), start))
    assert places(plan_of(sizes, num_streams=num_streams), start, start + count) == places(
        straight, start, start + count
    )


@given(
    sizes=shard_lists,
    num_streams=streams,
    share=st.integers(1, 4),
    steps=st.integers(1, 4),
    start=st.integers(0, 500),
)
def test_the_global_order_is_the_same_for_every_world_size(
    sizes: list[int], num_streams: int, share: int, steps: int, start: int
) -> None:
    batch = 12 * share
    expected = places(plan_of(sizes, num_streams=num_streams), start, start + steps * batch)
    for world in (1, 2, 3, 4, 6, 12):
        plans = [plan_of(sizes, num_streams=num_streams) for _ in range(world)]
        seen: dict[int, tuple[int, int]] = {}
        for step in range(steps):
            counts = set()
            for rank, plan in enumerate(plans):
                positions = rank_positions(
                    images_seen=start + step * batch, global_batch_size=batch, rank=rank, world_size=world
                )
                found = plan.locate(positions)
                pairs = zip(found.shard.tolist(), found.sample.tolist(), strict=True)
                seen.update(zip(positions.tolist(), pairs, strict=True))
                counts.add(len(positions))
            assert counts == {batch // world}
        assert [seen[position] for position in sorted(seen)] == expected


def test_epochs_seeds_sets_and_splits_have_orders_of_their_own() -> None:
    sizes = [40, 60]
    base = places(plan_of(sizes), 0, 100)
    assert base != places(plan_of(sizes), 100, 200)
    assert base != places(plan_of(sizes, seed=6), 0, 100)
    for identity, split in (("other", "train"), ("id", "val")):
        other = ReadingPlan(shard_sizes=sizes, identity=identity, split=split, seed=5, num_streams=8, window_samples=16)
        assert base != places(other, 0, 100)


def test_the_order_is_the_one_recorded_for_this_version() -> None:
    """A run resumed with another numpy or another construction would silently see other samples."""
    order = places(plan_of([3, 0, 5, 2], num_streams=4, window=2), 0, 20)
    assert order == RECORDED_ORDER


def test_neighbours_in_the_archive_are_not_neighbours_in_the_order() -> None:
    sizes = [500] * 20
    plan = ReadingPlan(shard_sizes=sizes, identity="id", split="train", seed=1)
    found = plan.locate(range(plan.num_samples))
    flat = found.shard * 500 + found.sample
    steps = np.abs(np.diff(flat))
    assert (steps <= 1).mean() < 0.01
    # a batch draws from all over the set: nearly as many shards as a random choice would touch
    batch = found.shard[:128]
    assert len(np.unique(batch)) >= 15


def test_a_rank_touches_only_its_share_of_the_shards_when_the_world_divides_the_streams() -> None:
    sizes = [100] * 256
    world = 8
    touched: list[set[int]] = []
    for rank in range(world):
        plan = ReadingPlan(shard_sizes=sizes, identity="id", split="train", seed=2)
        found = plan.locate(np.arange(rank, plan.num_samples, world))
        touched.append(set(found.shard.tolist()))
        assert len(found.shard) == plan.num_samples // world
    assert all(len(shards) == 256 // world for shards in touched)
    assert sum(len(shards) for shards in touched) == len(set.union(*touched))


def test_a_stretch_that_ends_inside_a_shard_reaches_into_one_more_shard_at_most() -> None:
    sizes = [103] * 50
    plan = ReadingPlan(shard_sizes=sizes, identity="id", split="train", seed=2)
    found = plan.locate(np.arange(0, plan.num_samples, NUM_STREAMS))
    assert len(np.unique(found.shard)) <= 2


def test_a_whole_epoch_on_a_thousand_ranks_is_planned_in_seconds_and_bounded_memory() -> None:
    sizes = [10_000] * 130
    world, total = 1024, 1_300_000
    began = time.perf_counter()
    seen = np.zeros(total, dtype=np.int8)
    tracemalloc.start()
    for rank in range(world):
        plan = ReadingPlan(shard_sizes=sizes, identity="id", split="train", seed=0)
        found = plan.locate(np.arange(rank, total, world))
        np.add.at(seen, found.shard * 10_000 + found.sample, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (seen == 1).all()
    assert peak < 16 * 2**20
    assert time.perf_counter() - began < 10


def distances_of_neighbours(plan: ReadingPlan, shard_samples: int) -> NDArray[np.int64]:
    """Return how far apart in the order samples come that lie next to each other in the archive."""
    found = plan.locate(range(plan.num_samples))
    place = np.empty(plan.num_samples, dtype=np.int64)
    place[found.shard * shard_samples + found.sample] = np.arange(plan.num_samples)
    return np.abs(np.diff(place))


@pytest.mark.parametrize("epoch_seed", range(3))
def test_neighbours_of_the_archive_are_no_closer_in_the_order_than_chance(epoch_seed: int) -> None:
    sizes = [1000] * 40
    total = sum(sizes)
    plan = ReadingPlan(shard_sizes=sizes, identity="id", split="train", seed=epoch_seed)
    distances = distances_of_neighbours(plan, 1000)
    # within the reach of a batch: hardly any, because a stretch gives one sample to each 256 positions
    assert (distances < NUM_STREAMS).mean() < NUM_STREAMS / total
    # further apart: as two places drawn at random, P(distance <= d) = 1 - (1 - d / n)^2
    for part in (0.05, 0.1, 0.25, 0.5, 0.75):
        chance = 1 - (1 - part) ** 2
        assert abs(float((distances <= part * total).mean()) - chance) < 0.02


def test_in_a_set_beyond_the_window_neighbours_stay_within_the_window() -> None:
    sizes = [1000] * 40
    plan = ReadingPlan(shard_sizes=sizes, identity="id", split="train", seed=4, num_streams=8, window_samples=500)
    distances = distances_of_neighbours(plan, 1000)
    reach = 8 * 500
    inside = distances < reach
    assert inside.mean() > 0.99, "the rest lie across the border of a window, a shard or a stretch"
    for part in (0.1, 0.25, 0.5):
        chance = 1 - (1 - part) ** 2
        assert abs(float((distances[inside] <= part * reach).mean()) - chance) < 0.02


def test_memory_of_a_long_run_is_bounded() -> None:
    plan = plan_of([50, 70], num_streams=4, window=8)
    for epoch in range(40):
        plan.locate(range(epoch * 120, epoch * 120 + 120))
    assert len(plan._epochs) <= 4
    assert len(plan._windows) <= 2 * 4


def test_first_batch_of_a_big_set_plans_only_what_it_reads() -> None:
    plan = ReadingPlan(shard_sizes=[10_000] * 1000, identity="id", split="train", seed=0)
    plan.locate(range(0, 64))
    assert len(plan._windows) == 64


def test_positions_may_span_epochs_and_come_in_any_order() -> None:
    plan = plan_of([7, 9])
    straight = dict(zip(range(64), places(plan, 0, 64), strict=True))
    shuffled = [63, 0, 16, 15, 32, 31, 1]
    found = plan.locate(shuffled)
    assert list(zip(found.shard.tolist(), found.sample.tolist(), strict=True)) == [straight[p] for p in shuffled]


def test_an_empty_split_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="'train' has no samples"):
        plan_of([0, 0])


def test_a_global_batch_the_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(DataError, match="10 does not split over 4"):
        rank_positions(images_seen=0, global_batch_size=10, rank=0, world_size=4)
