"""Learning rate by images seen, and which parameters decay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from synfundus.training.optim import LrPlan, lifted, parameter_groups


def plan(schedule: str = "cosine", *, warmup: int = 100, budget: int = 1000, min_ratio: float = 0.1) -> LrPlan:
    return LrPlan(
        peak=2.0,
        schedule=schedule,  # type: ignore[arg-type]
        warmup_images=warmup,
        budget_images=budget,
        min_ratio=min_ratio,
    )


def test_the_warm_up_rises_linearly_to_the_peak() -> None:
    assert [plan().at(images) for images in (0, 25, 50, 100)] == pytest.approx([0.0, 0.5, 1.0, 2.0])


def test_the_cosine_ends_at_its_floor_and_stays_there() -> None:
    assert plan().at(550) == pytest.approx(2.0 * 0.55)
    assert plan().at(1000) == pytest.approx(0.2)
    assert plan().at(5000) == pytest.approx(0.2)


def test_the_constant_schedule_stays_at_the_peak() -> None:
    assert [plan("constant").at(images) for images in (50, 100, 999, 10**9)] == pytest.approx([1.0, 2.0, 2.0, 2.0])


@given(
    warmup=st.integers(0, 2000),
    budget=st.integers(1, 2000),
    images=st.integers(0, 4000),
    schedule=st.sampled_from(["cosine", "constant", "wsd"]),
)
def test_the_rate_stays_between_zero_and_the_peak(warmup: int, budget: int, images: int, schedule: str) -> None:
    assert 0.0 <= plan(schedule, warmup=warmup, budget=budget).at(images) <= 2.0


def test_matrices_decay_and_vectors_do_not() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Linear(2, 2))
    network[2].bias.requires_grad_(False)
    groups, decays = parameter_groups(network.named_parameters(), weight_decay=0.01)
    assert [[name for name, _ in group] for group in groups] == [
        ["0.weight", "2.weight"],
        ["0.bias", "1.weight", "1.bias"],
    ]
    assert decays == [0.01, 0.0]


def test_without_decay_there_is_one_group_of_all_trainable_parameters() -> None:
    network = nn.Linear(2, 2)
    groups, decays = parameter_groups(network.named_parameters(), weight_decay=0.0)
    assert [[name for name, _ in group] for group in groups] == [["weight", "bias"]]
    assert decays == [0.0]


def test_a_kind_of_parameter_that_is_not_there_makes_no_group() -> None:
    groups, decays = parameter_groups(nn.Linear(2, 2, bias=False).named_parameters(), weight_decay=0.1)
    assert len(groups) == 1
    assert decays == [0.1]


def test_wsd_stays_at_the_peak_and_falls_in_the_last_part_of_the_budget() -> None:
    rates = [plan("wsd").at(images) for images in (50, 100, 799, 800, 850, 1000, 5000)]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0 * (0.1 + 0.9 * 0.5), 0.2, 0.2])


@given(images=st.integers(0, 799), budget=st.integers(1000, 5000))
def test_wsd_is_the_same_for_any_larger_budget_until_its_decay_begins(images: int, budget: int) -> None:
    """A run can be extended: what it was trained with is what a longer run is trained with."""
    assert plan("wsd").at(images) == plan("wsd", budget=budget).at(images)
    assert lifted(plan("wsd"), plan("wsd", budget=budget), images) is None


def test_a_change_that_lifts_the_rate_is_told_with_both_rates() -> None:
    said = lifted(plan(min_ratio=0.01), plan(budget=2000, min_ratio=0.01), 1000)
    assert said is not None
    assert "from 0.02 to" in said
    assert lifted(plan("constant"), plan("constant", budget=5000), 900) is None
    assert lifted(plan(budget=2000), plan(), 900) is None, "a lower rate needs no word"
    assert lifted(plan(), plan(), 0) is None
