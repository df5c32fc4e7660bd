"""Stored pixels and the range a network sees."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from synfundus.models.pixels import pixels_to_tensor, tensor_to_pixels


def test_every_level_survives_the_model_range() -> None:
    levels = np.arange(256 * 3, dtype=np.int64).reshape(1, 16, 16, 3).astype(np.uint8)
    values = pixels_to_tensor(levels)
    assert (values.dtype, values.shape) == (torch.float32, (1, 3, 16, 16))
    assert (float(values.min()), float(values.max())) == (-1.0, 1.0)
    np.testing.assert_array_equal(tensor_to_pixels(values), levels)


@given(st.floats(-10, 10))
def test_values_beyond_the_model_range_are_clipped(value: float) -> None:
    level = int(tensor_to_pixels(torch.full((1, 3, 1, 1), value))[0, 0, 0, 0])
    assert abs(level - min(max((value + 1) * 127.5, 0), 255)) <= 0.5 + 1e-4
