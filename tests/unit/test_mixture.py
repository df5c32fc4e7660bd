"""Several sets in one order: shares kept, every sample once an epoch of its set, the same for everybody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synfundus.errors import ConfigError
from synfundus.shards.shard_plan import BLOCK_POSITIONS, MixedPlan, ReadingPlan, shares
from synfundus.storage.locations import parse_weighted


def mixed(sizes: list[list[int]], weights: list[float], *, seed: int = 3) -> MixedPlan:
    plans = [
        ReadingPlan(shard_sizes=own, identity=f"set{number}", split="train", seed=seed, num_streams=8)
        for number, own in enumerate(sizes)
    ]
    return MixedPlan(plans, weights=weights, seed=seed)


def places(plan: MixedPlan, positions: list[int]) -> list[tuple[int, int, int, int]]:
    found = plan.locate(positions)
    columns = (found.set, found.epoch, found.shard, found.sample)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_one_set_is_read_as_if_there_were_no_mixture() -> None:
    plan = ReadingPlan(shard_sizes=[7, 9], identity="set0", split="train", seed=3, num_streams=8)
    alone = plan.locate(range(50))
    found = mixed([[7, 9]], [1.0]).locate(range(50))
    assert np.array_equal(found.shard, alone.shard)
    assert np.array_equal(found.sample, alone.sample)
    assert np.array_equal(found.epoch, np.arange(50) // 16)


@settings(max_examples=10)
@given(weights=st.lists(st.floats(0.01, 100), min_size=2, max_size=5))
def test_shares_are_kept_to_one_position_in_a_block(weights: list[float]) -> None:
    if min(weights) / sum(weights) * BLOCK_POSITIONS < 1:
        return
    counts = np.bincount(mixed([[5]] * len(weights), weights).locate(range(BLOCK_POSITIONS)).set)
    exact = np.asarray(weights) / sum(weights) * BLOCK_POSITIONS
    assert counts.sum() == BLOCK_POSITIONS
    assert (np.abs(counts - exact) <= 1).all()


def test_every_set_delivers_each_sample_once_in_each_of_its_epochs() -> None:
    sizes, weights = [[40, 3], [11], [0, 5, 1]], [0.7, 0.2, 0.1]
    plan = mixed(sizes, weights)
    seen = places(plan, list(range(2 * BLOCK_POSITIONS)))
    for number, own in enumerate(sizes):
        total = sum(own)
        mine = [place for place in seen if place[0] == number]
        whole = [(shard, sample) for shard, size in enumerate(own) for sample in range(size)]
        for epoch in range(len(mine) // total):
            assert sorted((shard, sample) for _, at, shard, sample in mine if at == epoch) == whole


@given(start=st.integers(0, 3 * BLOCK_POSITIONS), count=st.integers(1, 50), world=st.sampled_from([1, 2, 3, 4]))
def test_the_order_does_not_depend_on_ranks_or_on_where_a_run_goes_on(start: int, count: int, world: int) -> None:
    sizes, weights = [[40, 3], [11]], [2.0, 1.0]
    straight = places(mixed(sizes, weights), list(range(start, start + count)))
    joined: dict[int, tuple[int, int, int, int]] = {}
    for rank in range(world):
        own = list(range(start + rank, start + count, world))
        joined.update(zip(own, places(mixed(sizes, weights), own), strict=True))
    assert [joined[position] for position in sorted(joined)] == straight


def test_sets_are_interleaved_and_not_read_one_after_the_other() -> None:
    found = mixed([[400], [400]], [1.0, 1.0]).locate(range(1000)).set
    for first in range(0, 1000, 100):
        assert 25 <= int(found[first : first + 100].sum()) <= 75


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -2.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_weights_that_are_no_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="positive"):
        shares(weights, BLOCK_POSITIONS)


def test_a_share_too_small_to_be_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="less than one in 10000"):
        shares([1.0, 1e-6], BLOCK_POSITIONS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", ("a/b", 1.0)),
        ("a/b:0.7", ("a/b", 0.7)),
        ("s3://bucket/x", ("s3://bucket/x", 1.0)),
        ("s3://bucket/x:3", ("s3://bucket/x", 3.0)),
        ("odd:name", ("odd:name", 1.0)),
    ],
)
def test_a_weight_follows_the_last_colon(text: str, expected: tuple[str, float]) -> None:
    assert parse_weighted(text) == expected


def test_a_folder_whose_name_ends_like_a_weight_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets:2024").mkdir()
    for place in ("sets:2024", f"file://{tmp_path}/sets:2024"):
        assert parse_weighted(place) == (place, 1.0)
        assert parse_weighted(f"{place}:0.5") == (place, 0.5)
    (tmp_path / "sets").mkdir()
    with pytest.raises(ConfigError, match="sets:2024 is a folder, and sets with a weight is another"):
        parse_weighted("sets:2024")
    assert parse_weighted("x" * 5000 + ":0.5") == ("x" * 5000, 0.5)


@pytest.mark.parametrize("text", ["a:0", "a:-1", "a:nan", "a:inf"])
def test_a_weight_that_is_not_positive_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a positive number"):
        parse_weighted(text)
