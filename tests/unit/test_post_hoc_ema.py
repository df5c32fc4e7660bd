"""Power-function averages, and putting one together from others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synfundus.errors import ConfigError
from synfundus.training.ema import (
    MAX_SIGMA_REL,
    Combination,
    Profile,
    ShardedEma,
    combine,
    power_decay,
    power_exponent,
    power_name,
)

BATCH, STEPS, SNAPSHOTS = 16, 4096, 16
TRACKED = (0.05, 0.10)


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_exponents_are_the_published_ones(sigma_rel: float, gamma: float) -> None:
    assert power_exponent(sigma_rel) == pytest.approx(gamma, abs=0.005)


@given(st.floats(0.005, MAX_SIGMA_REL))
def test_the_exponent_gives_the_width_back(sigma_rel: float) -> None:
    gamma = power_exponent(sigma_rel)
    assert gamma > 0
    assert ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5 == pytest.approx(sigma_rel)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, float("nan")])
def test_widths_that_cannot_be_are_refused(sigma_rel: float) -> None:
    with pytest.raises(ConfigError, match="sigma_rel"):
        power_exponent(sigma_rel)


def test_the_first_step_forgets_the_random_start() -> None:
    assert power_decay(batch_images=8, images_seen=8, gamma=7.0) == 0.0
    assert power_decay(batch_images=16, images_seen=8, gamma=7.0) == 0.0


@pytest.mark.parametrize("sigma_rel", [0.05, 0.15, 0.25])
def test_the_shares_have_the_width_they_are_named_after(sigma_rel: float) -> None:
    gamma, shares = power_exponent(sigma_rel), np.zeros(0)
    for step in range(1, STEPS + 1):
        decay = power_decay(batch_images=BATCH, images_seen=step * BATCH, gamma=gamma)
        shares = np.append(shares * decay, 1.0 - decay)
    times = np.arange(1, STEPS + 1) / STEPS
    mean = shares @ times
    assert shares.sum() == pytest.approx(1.0)
    assert np.sqrt(shares @ (times - mean) ** 2) == pytest.approx(sigma_rel, rel=2e-3)


@pytest.fixture(scope="module")
def walk() -> tuple[dict[Profile, torch.Tensor], dict[float, torch.Tensor]]:
    """Weights on a random walk: snapshots of two averages, and what averages of other widths would have been."""
    generator = torch.Generator().manual_seed(1)
    others = (0.06, 0.075, 0.15, 0.2)
    weights = torch.randn(500, generator=generator)
    average = ShardedEma([weights], half_life_images=1e3, rampup_ratio=1.0, sigma_rel=(*TRACKED, *others))
    snapshots = {}
    for step in range(1, STEPS + 1):
        weights = weights + 0.1 * torch.randn(500, generator=generator)
        average.update([weights], batch_images=BATCH, images_seen=step * BATCH)
        if step % (STEPS // SNAPSHOTS) == 0:
            for width in TRACKED:
                snapshots[Profile(step * BATCH, width)] = average.power[width][0].clone()
    assert set(average.vectors()) == {"ema", *map(power_name, (*TRACKED, *others))}
    return snapshots, {width: average.power[width][0] for width in others}


def put_together(snapshots: dict[Profile, torch.Tensor], wanted: Profile) -> tuple[torch.Tensor, Combination]:
    combination = combine(list(snapshots), wanted)
    stacked = torch.stack(list(snapshots.values())).double()
    return (torch.from_numpy(combination.factors) @ stacked).float(), combination


@pytest.mark.parametrize("sigma_rel", [0.06, 0.075, 0.15, 0.2])
def test_an_average_nobody_tracked_comes_out_as_if_somebody_had(
    walk: tuple[dict[Profile, torch.Tensor], dict[float, torch.Tensor]], sigma_rel: float
) -> None:
    snapshots, tracked = walk
    made, combination = put_together(snapshots, Profile(STEPS * BATCH, sigma_rel))
    apart = float((made - tracked[sigma_rel]).norm() / tracked[sigma_rel].norm())
    nearest = min(float((last - tracked[sigma_rel]).norm()) for last in list(snapshots.values())[-2:])
    assert apart < 0.01
    assert apart < 0.2 * nearest / float(tracked[sigma_rel].norm()), "no better than the nearest tracked one"
    assert combination.error < 0.05
    assert combination.factors.sum() == pytest.approx(1.0, abs=1e-9)


def test_a_tracked_average_is_its_own_snapshot(
    walk: tuple[dict[Profile, torch.Tensor], dict[float, torch.Tensor]],
) -> None:
    snapshots, _ = walk
    for wanted in list(snapshots)[-4:]:
        made, combination = put_together(snapshots, wanted)
        assert combination.error < 1e-4
        torch.testing.assert_close(made, snapshots[wanted], rtol=1e-4, atol=1e-4)


def test_the_error_says_when_the_snapshots_do_not_reach() -> None:
    alone = [Profile(1000, 0.05)]
    assert combine(alone, Profile(1000, 0.25)).error > 0.3
    assert combine(alone, Profile(1000, 0.05)).error < 1e-6
