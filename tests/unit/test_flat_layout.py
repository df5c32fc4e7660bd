"""The flat vector ZeRO-2 partitions: without padding it does not depend on the world size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synfundus.distributed.flat_layout import ALIGNMENT, FlatGroup, FlatLayout
from synfundus.errors import CheckpointError

shapes = st.lists(st.lists(st.integers(1, 7), max_size=4), min_size=1, max_size=8)
orders = st.booleans()
worlds = st.integers(1, 9)


def layout_of(groups: list[list[list[int]]], *, channels_last: bool = False) -> FlatLayout:
    four_axes = {f"g{n}.p{index}" for n, group in enumerate(groups) for index, s in enumerate(group) if len(s) == 4}
    return FlatLayout.of(
        [[(f"g{number}.p{index}", shape) for index, shape in enumerate(group)] for number, group in enumerate(groups)],
        channels_last=four_axes if channels_last else (),
    )


@given(group=shapes, world=worlds)
def test_the_slices_cover_the_vector_once_in_equal_parts(group: list[list[int]], world: int) -> None:
    flat = layout_of([group]).groups[0]
    size = flat.partition_size(world)
    bounds = [flat.partition_bounds(rank, world) for rank in range(world)]
    assert [position for first, end in bounds for position in range(first, end)] == list(range(flat.numel))
    assert size * world % (ALIGNMENT * world) == 0
    assert 0 <= size * world - flat.numel < ALIGNMENT * world
    assert all(end - first <= size for first, end in bounds)


@given(group=shapes)
def test_parameters_lie_end_to_end(group: list[list[int]]) -> None:
    flat = layout_of([group]).groups[0]
    offset = 0
    for parameter, shape in zip(flat.parameters, group, strict=True):
        assert (parameter.offset, parameter.numel) == (offset, math.prod(shape))
        offset += parameter.numel
    assert flat.numel == offset


@given(groups=st.lists(shapes, min_size=1, max_size=3), nhwc=orders)
def test_a_layout_comes_back_from_its_document(groups: list[list[list[int]]], nhwc: bool) -> None:
    layout = layout_of(groups, channels_last=nhwc)
    assert FlatLayout.from_document(layout.to_document()) == layout
    layout.require_same(layout_of(groups, channels_last=not nhwc), where="x")


@given(shape=st.lists(st.integers(1, 4), max_size=5), nhwc=orders)
def test_a_parameter_comes_back_from_its_part_of_the_vector(shape: list[int], nhwc: bool) -> None:
    (parameter,) = layout_of([[shape]], channels_last=nhwc).groups[0].parameters
    tensor = torch.arange(float(math.prod(shape))).reshape(shape)
    assert torch.equal(parameter.unflatten(parameter.flatten(tensor)), tensor)
    moved = tensor.movedim(1, -1) if nhwc and len(shape) == 4 else tensor
    assert torch.equal(parameter.flatten(tensor), moved.reshape(-1))


@given(group=shapes, nhwc=orders, saved=orders)
def test_a_vector_saved_in_another_order_is_put_into_this_one(group: list[list[int]], nhwc: bool, saved: bool) -> None:
    mine, theirs = (layout_of([group], channels_last=order).groups[0] for order in (nhwc, saved))
    named = [torch.randn(shape) for shape in group]
    padding = torch.zeros(3)

    def flat(of: FlatGroup) -> torch.Tensor:
        parts = [one.flatten(tensor) for one, tensor in zip(of.parameters, named, strict=True)]
        return torch.cat([*parts, padding])

    assert torch.equal(mine.reordered(flat(theirs), theirs), flat(mine))


def test_another_network_is_refused_naming_the_first_parameter_that_differs() -> None:
    mine = FlatLayout.of([[("a", (2, 3)), ("b", (4,))]])
    for theirs, words in (
        (FlatLayout.of([[("a", (2, 3)), ("b", (5,))]]), r"b is \(5,\) in the checkpoint, \(4,\) in the configured"),
        (FlatLayout.of([[("a", (2, 3))]]), r"b is absent in the checkpoint, \(4,\)"),
        (FlatLayout.of([[("a", (2, 3)), ("b", (4,)), ("c", (1,))]]), r"c is \(1,\) in the checkpoint, absent"),
        (FlatLayout.of([[("b", (4,)), ("a", (2, 3))]]), "orders the parameters differently"),
        (FlatLayout.of([[("a", (2, 3))], [("b", (4,))]]), "groups or orders"),
    ):
        with pytest.raises(CheckpointError, match=words):
            mine.require_same(theirs, where="x")
