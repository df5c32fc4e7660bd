"""Named sums: added up where they arise, divided where somebody looks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from synfundus.distributed.world import LocalWorld
from synfundus.training.recorder import SumAccumulator, means


@dataclass(frozen=True)
class DoublingWorld(LocalWorld):
    """Another rank that has added the same sums."""

    def sum(self, values: object) -> list[float]:
        assert isinstance(values, list)
        return [2.0 * float(value) for value in values]


def test_sums_add_up_and_start_again() -> None:
    sums = SumAccumulator()
    sums.add({"loss": torch.tensor(1.5), "images": 2})
    sums.add({"loss": torch.tensor(0.5), "images": 2})
    assert sums.reduce(DoublingWorld()) == {"images": 8.0, "loss": 4.0}
    assert sums.reduce(LocalWorld()) == {}


def test_a_mean_is_over_the_images_of_all_ranks() -> None:
    assert means({"loss": 6.0, "images": 4.0}) == {"loss": 1.5}


def test_a_timestep_bucket_is_divided_by_its_own_images_and_left_out_when_empty() -> None:
    sums = {"loss": 8.0, "images": 4.0, "loss_t0": 6.0, "images_t0": 3.0, "loss_t1": 0.0, "images_t1": 0.0}
    assert means(sums) == {"loss": 2.0, "loss_t0": 2.0}


def test_a_name_that_only_looks_like_a_bucket_is_divided_by_all_images() -> None:
    assert means({"kl_total": 6.0, "images": 4.0}) == {"kl_total": 1.5}


def test_an_interval_without_an_image_has_no_mean() -> None:
    assert means({"loss": 0.0, "images": 0.0}) == {}
    assert means({}) == {}


def test_weights_of_zero_do_not_count() -> None:
    sums = SumAccumulator()
    errors, weights = torch.tensor([1.0, 100.0, 3.0]), torch.tensor([1.0, 0.0, 1.0])
    sums.add({"loss": (errors * weights).sum(), "images": weights.sum()})
    assert means(sums.reduce(LocalWorld())) == {"loss": pytest.approx(2.0)}
