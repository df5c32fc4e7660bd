"""The largest micro-batch that fits is found without a size that could not, and all ranks agree on it."""

from __future__ import annotations

import math

import pytest
import torch
from fake_engine import ALONE, run_ranks
from hypothesis import given
from hypothesis import strategies as st

from synfundus.distributed.ds_config import plan_batch
from synfundus.distributed.world import World
from synfundus.errors import ConfigError
from synfundus.training.memory.footprint import GIB
from synfundus.training.memory.measuring import (
    MemoryBudget,
    MicroBatchChoice,
    Need,
    candidates,
    find_micro_batch,
    forecast,
)
from synfundus.training.memory.rehearsal import is_out_of_memory

Line = tuple[int, int]
"""Bytes of a moment of a pass: what does not grow, and what an image adds."""
LINES = st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 10**7)), min_size=1, max_size=5)


def peak_of(lines: list[Line], size: int) -> int:
    return max(constant + slope * size for constant, slope in lines)


class Device:
    """A stand-in for a device: what a pass takes is a maximum of lines; remembers what was tried."""

    def __init__(self, lines: list[Line], *, memory: float = math.inf) -> None:
        self.lines = lines
        self.memory = memory
        self.tried: list[int] = []

    def peak(self, size: int) -> int | None:
        self.tried.append(size)
        try:
            return self._allocate(size)
        except torch.OutOfMemoryError:
            return None

    def _allocate(self, size: int) -> int:
        taken = peak_of(self.lines, size)
        if taken > self.memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory: tried to allocate {taken} bytes")
        return taken


def find(
    device: Device, share: int, *, budget: int, fixed: int = 0, careful: bool, world: World = ALONE
) -> MicroBatchChoice:
    return find_micro_batch(
        share,
        peak=device.peak,
        budget=MemoryBudget(budget, fixed, careful),
        world=world,
        where="train.loop.micro_batch_size",
    )


@given(st.integers(1, 5000))
def test_candidates_are_what_the_batch_arithmetic_takes_as_it_is(share: int) -> None:
    sizes = candidates(share)
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, share)
    assert [size for size in range(1, share + 1) if share % size == 0] == sizes
    for size in sizes:
        plan = plan_batch(global_batch_size=3 * share, max_micro_batch_size=size, world_size=3)
        assert plan.micro_batch_size == size


@given(LINES, st.integers(1, 64), st.integers(1, 64))
def test_the_forecast_is_never_below_what_a_pass_takes(lines: list[Line], tried: int, times: int) -> None:
    size = tried * times
    bound = forecast(size, tried=tried, peak_bytes=peak_of(lines, tried))
    assert bound >= peak_of(lines, size)


def test_the_forecast_is_exact_for_what_grows_with_the_images_alone() -> None:
    assert forecast(12, tried=3, peak_bytes=300) == 1200
    assert forecast(3, tried=2, peak_bytes=1) == 2, "a part of a byte is a byte"


def test_a_line_through_two_sizes_would_have_been_no_bound() -> None:
    lines = [(1000, 0), (0, 200)]  # gradients hide what images add until there are more than five
    one, two = peak_of(lines, 1), peak_of(lines, 2)
    assert one + 15 * (two - one) < peak_of(lines, 16) <= forecast(16, tried=2, peak_bytes=two)


@given(LINES, st.integers(1, 200), st.integers(0, 10**9), st.integers(0, 10**10))
def test_with_care_nothing_is_tried_beyond_the_first_that_does_not_fit(
    lines: list[Line], share: int, fixed: int, budget: int
) -> None:
    device = Device(lines)
    if fixed + peak_of(lines, 1) > budget:
        with pytest.raises(ConfigError, match="not even one image fits"):
            find(device, share, budget=budget, fixed=fixed, careful=True)
        assert device.tried == ([] if fixed > budget else [1])
        return
    finding = find(device, share, budget=budget, fixed=fixed, careful=True)
    assert all(fixed + peak_of(lines, size) <= budget for size in device.tried)
    assert finding.size == device.tried[-1]
    assert finding.need == Need(fixed + peak_of(lines, finding.size), budget)
    if finding.refused is not None:
        larger, need = finding.refused
        assert larger == candidates(share)[candidates(share).index(finding.size) + 1]
        assert need.forecast
        assert not need.fits


@given(LINES, st.integers(1, 200), st.integers(0, 10**10))
def test_without_care_the_largest_that_fits_is_found(lines: list[Line], share: int, budget: int) -> None:
    fitting = [size for size in candidates(share) if peak_of(lines, size) <= budget]
    device = Device(lines)
    if not fitting:
        with pytest.raises(ConfigError):
            find(device, share, budget=budget, careful=False)
        return
    finding = find(device, share, budget=budget, careful=False)
    assert finding.size == fitting[-1]
    assert (finding.refused is None) is (finding.size == share)


def test_an_allocator_that_refuses_ends_the_search() -> None:
    device = Device([(0, GIB)], memory=8.5 * GIB)
    finding = find(device, 32, budget=100 * GIB, fixed=GIB, careful=False)
    assert device.tried == [1, 2, 4, 8, 16]
    assert finding.size == 8
    assert finding.refused == (16, Need(None, 100 * GIB))
    assert finding.describe() == "micro-batch 8 found (16 would need more than 100.0 GiB)"


def test_a_size_the_allocator_grants_is_refused_where_the_states_have_no_room_beside_it() -> None:
    finding = find(Device([(0, GIB)]), 32, budget=10 * GIB, fixed=3 * GIB, careful=False)
    assert finding.size == 4
    assert finding.describe() == "micro-batch 4 found (8 would need 11.0 GiB of 10.0 GiB)"


def test_a_forecast_is_said_to_be_one_and_a_whole_share_too() -> None:
    careful = find(Device([(0, GIB)]), 32, budget=10 * GIB, careful=True)
    assert careful.describe() == "micro-batch 8 found (16 would need up to 16.0 GiB of 10.0 GiB)"
    whole = find(Device([(0, GIB)]), 8, budget=10 * GIB, careful=True)
    assert whole.describe() == "micro-batch 8 found: all of a rank's share (8.0 GiB of 10.0 GiB)"


@pytest.mark.parametrize("careful", [False, True])
def test_the_rank_that_has_least_decides_for_all(careful: bool) -> None:
    devices = [Device([(0, GIB)]) for _ in range(3)]

    def work(world: World) -> MicroBatchChoice:
        return find(devices[world.rank], 64, budget=(40, 10, 70)[world.rank] * GIB, careful=careful, world=world)

    findings = run_ranks(3, work)
    assert findings[0] == findings[1] == findings[2]
    finding = findings[0]
    assert isinstance(finding, MicroBatchChoice)
    assert finding.size == 8
    assert finding.refused is not None
    assert finding.refused[1].budget_bytes == 10 * GIB
    assert devices[0].tried == devices[1].tried == devices[2].tried


def test_memory_that_runs_out_on_one_rank_ends_the_search_on_all() -> None:
    devices = [Device([(0, GIB)], memory=memory * GIB) for memory in (64, 5)]

    def work(world: World) -> MicroBatchChoice:
        return find(devices[world.rank], 16, budget=64 * GIB, careful=False, world=world)

    first, second = run_ranks(2, work)
    assert isinstance(first, MicroBatchChoice)
    assert first == second
    assert first.size == 4
    assert first.refused == (8, Need(None, 64 * GIB))


def test_an_error_of_one_rank_is_raised_on_all_and_nobody_waits() -> None:
    def work(world: World) -> MicroBatchChoice:
        def peak(size: int) -> int:
            if world.rank == 1 and size == 4:
                raise ValueError("a kernel for this size is missing")
            return size

        budget = MemoryBudget(GIB, 0, careful=False)
        return find_micro_batch(16, peak=peak, budget=budget, world=world, where="train.loop.micro_batch_size")

    first, second = run_ranks(2, work)
    assert isinstance(second, ValueError)
    assert isinstance(first, Exception)
    assert "a kernel for this size is missing" in str(first)


def test_too_little_for_one_image_is_refused_on_every_rank_with_the_option() -> None:
    refusals = run_ranks(
        2, lambda world: find(Device([(0, GIB)]), 4, budget=world.rank * GIB, careful=True, world=world)
    )
    for refusal in refusals:
        assert isinstance(refusal, ConfigError)
        assert "1.0 GiB of 0.0 GiB" in refusal.message
        assert refusal.where == "train.loop.micro_batch_size"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_ran_out(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
