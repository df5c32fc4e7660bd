"""The average of the weights, with a half-life in images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synfundus.training.ema import ShardedEma, ema_decay


def test_after_the_half_life_a_weight_counts_half() -> None:
    decay = ema_decay(batch_images=10, images_seen=10**9, half_life_images=1000, rampup_ratio=0.05)
    assert decay**100 == pytest.approx(0.5)


@given(batch=st.integers(1, 64), parts=st.integers(1, 8))
def test_the_half_life_does_not_depend_on_the_batch_size(batch: int, parts: int) -> None:
    whole = ema_decay(batch_images=batch * parts, images_seen=10**9, half_life_images=5e4, rampup_ratio=0.05)
    part = ema_decay(batch_images=batch, images_seen=10**9, half_life_images=5e4, rampup_ratio=0.05)
    assert part**parts == pytest.approx(whole)


def test_early_in_a_run_the_half_life_is_a_fraction_of_the_images_seen() -> None:
    early = ema_decay(batch_images=8, images_seen=1000, half_life_images=5e5, rampup_ratio=0.05)
    assert early == pytest.approx(0.5 ** (8 / 50))
    assert ema_decay(batch_images=8, images_seen=8, half_life_images=5e5, rampup_ratio=0.05) < 1e-6


def test_updates_follow_the_definition_in_fp32_where_bf16_would_stand_still() -> None:
    weights = torch.ones(4)
    average = ShardedEma([torch.zeros(4)], half_life_images=1e6, rampup_ratio=1e9)
    expected = torch.zeros(4, dtype=torch.float64)
    decay = 0.5 ** (16 / 1e6)
    for step in range(200):
        average.update([weights], batch_images=16, images_seen=(step + 1) * 16)
        expected = expected * decay + (1 - decay)
    assert average.partitions[0].dtype == torch.float32
    torch.testing.assert_close(average.partitions[0].double(), expected, rtol=1e-4, atol=0)
    assert average.partitions[0][0] > 0.002


def test_the_average_starts_as_a_copy() -> None:
    weights = torch.ones(3)
    average = ShardedEma([weights], half_life_images=100, rampup_ratio=1)
    weights += 1
    assert average.partitions[0].tolist() == [1.0, 1.0, 1.0]


def test_slices_are_averaged_as_the_whole_would_be() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(10, generator=generator)
    parts = [whole[:5].clone(), whole[5:].clone()]
    together = ShardedEma([whole], half_life_images=100, rampup_ratio=1)
    apart = [ShardedEma([part], half_life_images=100, rampup_ratio=1) for part in parts]
    for step in range(5):
        moved = torch.randn(10, generator=generator)
        together.update([moved], batch_images=8, images_seen=8 * (step + 1))
        for average, part in zip(apart, (moved[:5], moved[5:]), strict=True):
            average.update([part], batch_images=8, images_seen=8 * (step + 1))
    joined = torch.cat([average.partitions[0] for average in apart])
    assert torch.equal(together.partitions[0], joined)
