"""1,024 ranks in one process: order, batch arithmetic, partition maps and shares of work are exact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from synfundus.artifacts.samples.stores import PngStore
from synfundus.config.loader import load_config
from synfundus.config.training import LoopConfig
from synfundus.distributed.ds_config import plan_batch
from synfundus.distributed.flat_layout import ALIGNMENT, FlatGroup, FlatLayout
from synfundus.distributed.shared_work import SharedWork
from synfundus.distributed.world import LocalStatusStore, LocalWorld, share_of
from synfundus.errors import ConfigError, DataError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.photographs.ingest import PlannedSample
from synfundus.shards.batches import BatchReader, RankBatch
from synfundus.shards.loader import RankSteps
from synfundus.shards.reader import Arrays
from synfundus.shards.shard_plan import MixedPlan, ReadingPlan, rank_positions
from synfundus.stages import build
from synfundus.stages.encode_latents.job import plan_tasks
from synfundus.stages.prepare.plan import InputPlan
from synfundus.stages.reading import training_loader
from synfundus.storage.manifest import ShardEntry, ShardSet, shard_name
from synfundus.training.checkpoints.stored_weights import PartitionSource, partition_name
from synfundus.training.optim import parameter_groups

WORLDS = (1, 2, 3, 8, 64, 1024)
GLOBAL_BATCH = 3072
"""The least that all of `WORLDS` divide."""
STEPS = 3
SETS = ((400, 0, 1, 1700, 900), (2999, 1))
"""Samples of the shards of two sets: 3,001 and 3,000, so that every global batch crosses the end of an epoch."""


class Numbers:
    """Samples that are where they lie: no file is read."""

    def __init__(self, number: int) -> None:
        self.layout = {"place": ((3,), np.dtype(np.int64))}
        self._number = number
        self.shard_sizes = list(SETS[number])

    def fill(self, arrays: Arrays, row: int, shard: int, sample: int) -> None:
        assert sample < self.shard_sizes[shard]
        arrays["place"][row] = (self._number, shard, sample)

    def open_ahead(self, shards: Iterable[int]) -> None:
        assert set(shards) <= set(range(len(self.shard_sizes)))

    def is_local(self, shard: int) -> bool:
        return True

    def sample_name(self, shard: int, sample: int) -> str:
        return f"{self._number}/{shard}#{sample}"

    def close(self) -> None:
        pass


def reader_of(sets: Sequence[int]) -> BatchReader:
    plans = [ReadingPlan(shard_sizes=SETS[number], identity=f"set{number}", split="train", seed=7) for number in sets]
    mixed = MixedPlan(plans, weights=[2.0, 1.0][: len(sets)], seed=7)
    return BatchReader(mixed, [Numbers(number) for number in sets], augment=None)


def rank_batches(reader: BatchReader, world: LocalWorld, *, start: int) -> list[RankBatch]:
    """Return what a rank gets in the first steps from an image on, from the loader that `train` builds."""
    loop = LoopConfig(global_batch_size=GLOBAL_BATCH, prefetch_batches=0, workers=0)
    loader = training_loader(reader, loop, world, start_images=start)
    return [batch for batch in (loader.take() for _ in range(STEPS)) if batch is not None]


@pytest.fixture(scope="module", params=[(0,), (0, 1)], ids=["one set", "two sets"])
def sets(request: pytest.FixtureRequest) -> Sequence[int]:
    """Numbers of the sets a run reads."""
    return tuple(request.param)


@pytest.mark.parametrize("start", [0, 1234, 3001 * 2 - 1])
def test_every_step_of_all_ranks_is_the_planned_order_once_for_every_world_size(
    sets: Sequence[int], start: int
) -> None:
    span = np.arange(start, start + STEPS * GLOBAL_BATCH)
    place = reader_of(sets).plan.locate(span)
    planned = np.stack([np.asarray(sets)[place.set], place.shard, place.sample], axis=1).reshape(STEPS, -1, 3)
    for size in WORLDS:
        reader = reader_of(sets)
        taken = np.zeros((STEPS, GLOBAL_BATCH), dtype=np.int64)
        found = np.full((STEPS, GLOBAL_BATCH, 3), -1)
        for rank in range(size):
            for step, batch in enumerate(rank_batches(reader, LocalWorld(rank, size), start=start)):
                rows = batch.positions - start - step * GLOBAL_BATCH
                assert len(rows) == GLOBAL_BATCH // size
                np.add.at(taken[step], rows, 1)
                found[step, rows] = batch.arrays["place"]
                assert (batch.weights == 1).all()
        assert (taken == 1).all(), size
        assert np.array_equal(found, planned), size


def test_an_epoch_of_a_thousand_ranks_is_every_sample_once_and_the_next_epoch_has_another_order() -> None:
    plan = reader_of([0]).plan
    total = plan.set_sizes[0]
    orders: list[list[tuple[int, int]]] = []
    for epoch in range(2):
        joined: dict[int, tuple[int, int]] = {}
        for step in range(epoch * total // GLOBAL_BATCH, (epoch + 1) * total // GLOBAL_BATCH + 1):
            for rank in range(1024):
                steps = RankSteps(start_images=0, global_batch_size=GLOBAL_BATCH, rank=rank, world_size=1024)
                positions = steps.positions(step)
                place = plan.locate(positions)
                pairs = zip(place.shard.tolist(), place.sample.tolist(), strict=True)
                joined.update(zip(positions.tolist(), pairs, strict=True))
        orders.append([joined[position] for position in range(epoch * total, (epoch + 1) * total)])
    every = [(shard, sample) for shard, size in enumerate(SETS[0]) for sample in range(size)]
    assert [sorted(order) for order in orders] == [every, every]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize("accumulation", [1, 2, 5])
@pytest.mark.parametrize("micro", [1, 3, 8])
def test_a_global_batch_is_ranks_times_accumulation_times_micro_batch(size: int, accumulation: int, micro: int) -> None:
    batch = size * accumulation * micro
    plan = plan_batch(global_batch_size=batch, max_micro_batch_size=micro, world_size=size)
    assert (plan.world_size, plan.micro_batch_size) == (size, micro)
    assert plan.world_size * plan.gradient_accumulation_steps * plan.micro_batch_size == batch
    for rank in {0, size // 2, size - 1}:
        steps = RankSteps(start_images=11, global_batch_size=batch, rank=rank, world_size=size)
        assert steps.rows == plan.gradient_accumulation_steps * plan.micro_batch_size


@pytest.mark.parametrize(("batch", "nearest"), [(1, "1024"), (1023, "1024"), (1025, "1024 or 2048"), (512, "1024")])
def test_a_batch_that_a_thousand_ranks_cannot_share_is_refused(batch: int, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"{batch} is not a multiple of 1024 ranks") as caught:
        plan_batch(global_batch_size=batch, max_micro_batch_size=8, world_size=1024)
    assert caught.value.hint == f"nearest: {nearest}"
    with pytest.raises(DataError, match=f"{batch} does not split over 1024 ranks"):
        rank_positions(images_seen=0, global_batch_size=batch, rank=0, world_size=1024)


def parts_of(vector: NDArray[np.float32], group: FlatGroup, size: int) -> list[NDArray[np.float32]]:
    """Return the slices of all ranks as ZeRO cuts them: the padded vector in equal parts."""
    padded = np.zeros(group.partition_size(size) * size, dtype=np.float32)
    padded[: group.numel] = vector
    return np.split(padded, size)


def resharded(parts: list[NDArray[np.float32]], group: FlatGroup, size: int) -> list[NDArray[np.float32]]:
    """Put the slices of another number of ranks together from slices, by the map alone."""
    saved_size, result = len(parts), []
    for rank in range(size):
        part = np.zeros(group.partition_size(size), dtype=np.float32)
        first, _ = group.partition_bounds(rank, size)
        for saved, begin, end in group.saved_pieces(rank, size, saved_world_size=saved_size):
            offset = saved * group.partition_size(saved_size)
            part[begin - first : end - first] = parts[saved][begin - offset : end - offset]
        result.append(part)
    return result


MOVES = [(1024, 1), (1, 1024), (1024, 768), (64, 1024), (1024, 1024), (3, 8)]


@pytest.mark.parametrize(("before", "after"), MOVES)
@pytest.mark.parametrize("shapes", [[(7, 11), (), (3,)], [(64, 61), (1000,)], [(1,)]], ids=str)
def test_the_same_bytes_come_back_from_any_number_of_ranks(
    shapes: list[tuple[int, ...]], before: int, after: int
) -> None:
    group = FlatLayout.of([[(f"p{number}", shape) for number, shape in enumerate(shapes)]]).groups[0]
    vector = np.random.default_rng(0).standard_normal(group.numel).astype(np.float32)
    saved = parts_of(vector, group, before)
    moved = resharded(saved, group, after)
    assert [part.tobytes() for part in moved] == [part.tobytes() for part in parts_of(vector, group, after)]
    assert [part.tobytes() for part in resharded(moved, group, before)] == [part.tobytes() for part in saved]


@pytest.fixture(scope="module")
def fundus1024() -> FlatLayout:
    """The layout of the largest preset's network, on the meta device."""
    config = load_config(preset="fundus1024", file=None, settings=[], flags=[]).config
    with torch.device("meta"):
        network = build.denoiser(
            config.train.unet, seed=config.seed, schema=DEFAULT_LABEL_SCHEMA, latent_shape=(16, 64, 64)
        )
    groups, _ = parameter_groups(network.named_parameters(), weight_decay=config.train.optim.weight_decay)
    layout = FlatLayout.of([[(name, parameter.shape) for name, parameter in group] for group in groups])
    assert sum(group.numel for group in layout.groups) == sum(p.numel() for p in network.parameters()) > 5e8
    return layout


@pytest.mark.parametrize("size", [*WORLDS, 768])
def test_the_slices_of_a_real_network_are_disjoint_cover_it_and_add_up(fundus1024: FlatLayout, size: int) -> None:
    for group in fundus1024.groups:
        bounds = [group.partition_bounds(rank, size) for rank in range(size)]
        assert bounds[0][0] == 0
        assert bounds[-1][1] == group.numel
        assert all(one[1] == other[0] for one, other in pairwise(bounds))
        padding = group.partition_size(size) * size - group.numel
        assert 0 <= padding < ALIGNMENT * size
        assert group.partition_size(size) % ALIGNMENT == 0
        assert sum(group.partition_size(size) - (end - first) for first, end in bounds) == padding


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_the_map_between_worlds_is_exact_for_a_real_network(fundus1024: FlatLayout, before: int, after: int) -> None:
    for group in fundus1024.groups:
        pieces = [piece for rank in range(after) for piece in group.saved_pieces(rank, after, saved_world_size=before)]
        ends = [end for _, _, end in pieces]
        assert [first for _, first, _ in pieces] == [0, *ends[:-1]], "end to end, so disjoint and covering"
        assert ends[-1] == group.numel
        for saved, first, end in pieces:
            own_first, own_end = group.partition_bounds(saved, before)
            assert own_first <= first < end <= own_end
        assert len(pieces) < before + after, "as few as two sets of cuts can make"


@pytest.mark.parametrize("after", [1, 768, 1024])
def test_a_checkpoint_of_a_thousand_files_is_read_by_other_worlds(after: int, tmp_path: Path) -> None:
    group = FlatLayout.of([[("a", (51, 61)), ("b", (17,))]]).groups[0]
    vector = np.arange(group.numel, dtype=np.float32) + 1
    (tmp_path / "zero").mkdir()
    for rank, part in enumerate(parts_of(vector, group, 1024)):
        saved = safetensors.torch.save({"group0.master": torch.from_numpy(part.copy())})
        (tmp_path / partition_name(rank, 1024)).write_bytes(saved)
    for rank in {0, 1, after // 2, after - 1} & set(range(after)):
        source = PartitionSource(str(tmp_path), saved_world_size=1024)
        found = source.slice(0, group, "master", rank=rank, world_size=after)
        assert np.array_equal(found.numpy(), parts_of(vector, group, after)[rank])
        needed = group.saved_pieces(rank, after, saved_world_size=1024)
        assert sorted(source._files) == [saved for saved, _, _ in needed], "only the files it overlaps"


def image_set_of(sizes: dict[str, int]) -> ShardSet:
    entries = [
        ShardEntry(shard_name(split, number), split, 10, 0, "", "")
        for split, count in sizes.items()
        for number in range(count)
    ]
    return ShardSet("nowhere", "images", DEFAULT_LABEL_SCHEMA, tuple(entries), {}, {})


@lru_cache(maxsize=3)
def photographs(number: int) -> InputPlan:
    samples = tuple(PlannedSample(f"{index}", f"{index}.png", "", {}, 0) for index in range(number))
    return InputPlan(DEFAULT_LABEL_SCHEMA, "set", samples, (), number, {}, ())


@pytest.mark.parametrize("shards", [{"train": 5}, {"train": 1023, "val": 1}, {"train": 3000, "val": 70, "test": 31}])
@pytest.mark.parametrize("size", WORLDS)
def test_every_shard_is_encoded_by_one_rank(shards: dict[str, int], size: int) -> None:
    tasks = plan_tasks(image_set_of(shards))
    shares = [share_of(tasks, LocalWorld(rank, size)) for rank in range(size)]
    names = [task.entry.name for share in shares for task in share]
    assert sorted(names) == sorted(entry.name for entry in image_set_of(shards).shards)
    assert len({(task.split, task.number) for task in tasks}) == len(tasks) == sum(shards.values())
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize("number", [1, 5000, 300_000])
def test_every_photograph_is_prepared_by_one_rank(number: int, size: int) -> None:
    plan = photographs(number)
    shares = [share_of(range(plan.num_chunks), LocalWorld(rank, size)) for rank in range(size)]
    keys = [sample.key for share in shares for chunk in share for sample in plan.chunk(chunk)]
    assert len(keys) == number
    assert {int(key) for key in keys} == set(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("size", WORLDS)
def test_every_image_is_generated_by_one_rank(size: int) -> None:
    parts = PngStore("nowhere", num_images=10_001, batch_size=4).parts()
    shared, ranks = LocalStatusStore(), range(size)
    works = [SharedWork(shared, "work") for _ in ranks]
    taken = [turn for _ in range(len(parts) // size + 1) for work in works if (turn := work.take("part")) < len(parts)]
    assert taken == list(range(2501))
    assert [image for turn in taken for image in parts[turn]] == list(range(10_001))
