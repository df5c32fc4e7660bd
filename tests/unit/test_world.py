"""Which device a rank computes on, and with how many threads."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from synfundus.distributed.world import LocalWorld, World, connect, in_process_group, of_rank, resolve_device
from synfundus.errors import LaunchError


@pytest.mark.parametrize(
    ("requested", "there", "device"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_a_gpu_is_used_unless_another_device_is_named(
    monkeypatch: pytest.MonkeyPatch, requested: Literal["auto", "cpu", "cuda"], there: bool, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert resolve_device(requested) == device


def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LaunchError, match="torch finds no CUDA device"):
        resolve_device("cuda")


def test_a_job_in_its_callers_group_keeps_the_callers_threads(world: World) -> None:
    """More threads add in another order, and the caller's later results would be of other bits."""
    before = torch.get_num_threads()
    connect(device="cpu", timeout_s=60, num_threads=before + 1)
    assert torch.get_num_threads() == before
    assert in_process_group()


def test_the_progress_of_one_rank_of_several_says_so() -> None:
    assert of_rank("sampling", LocalWorld()) == "sampling"
    assert of_rank("sampling", LocalWorld(size=8)) == "sampling (rank 0 of 8)"
