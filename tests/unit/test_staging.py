"""What a micro-batch looks like on the device, and how it gets there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from synfundus.training.staging import PinnedStaging, plan_places, staging_for

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TYPES = ("float32", "float16", "int64", "uint8", "bool")


def batch(images: int = 3) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(0)
    return {
        "moments": generator.standard_normal((images, 8, 5, 5)).astype(np.float16),
        "noise": generator.standard_normal((images, 4, 5, 5)).astype(np.float32),
        "states": generator.integers(0, 9, (images, 7)),
        "pixels": generator.integers(0, 256, (images, 3, 3, 3)).astype(np.uint8),
        "weights": np.ones(images, np.float32),
        "empty": np.empty((0, 4), np.float32),
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, NDArray[Any]]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        tensor = found[name].cpu()
        assert tensor.dtype == torch.from_numpy(array).dtype
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_on_a_cpu_nothing_is_copied() -> None:
    given_arrays = batch()
    found = staging_for(CPU)(given_arrays)
    assert_same(found, given_arrays)
    assert all(found[name].data_ptr() == array.ctypes.data for name, array in given_arrays.items() if array.size)


@given(st.lists(st.sampled_from(TYPES).flatmap(lambda kind: arrays(kind, array_shapes(min_side=0, max_side=5)))))
def test_arrays_of_any_type_and_shape_come_back_out_of_one_buffer(found: list[NDArray[Any]]) -> None:
    named = {str(number): array for number, array in enumerate(found)}
    places, size = plan_places(named)
    buffer = torch.empty(size, dtype=torch.uint8)
    for name, place in places.items():
        place.view(buffer).numpy()[...] = named[name]
    for name, place in places.items():
        assert place.start % 256 == 0
        np.testing.assert_array_equal(place.view(buffer).numpy(), named[name])
    assert size <= sum(array.nbytes + 255 for array in found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gets_the_values_also_when_the_arrays_are_overwritten_at_once() -> None:
    stage = staging_for(CUDA)
    assert isinstance(stage, PinnedStaging)
    kept, expected = [], []
    for images in (3, 3, 64, 1, 64, 3):
        given_arrays = batch(images)
        expected.append({name: array.copy() for name, array in given_arrays.items()})
        kept.append(stage(given_arrays))
        for array in given_arrays.values():
            array[...] = 0
    for found, wanted in zip(kept, expected, strict=True):
        assert_same(found, wanted)
