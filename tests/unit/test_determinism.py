"""Kernels that give the same bits every time are asked for on GPUs alone, where it is a choice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.utils.deterministic

from synfundus.config.training import LoopConfig
from synfundus.distributed.numerics import only_deterministic_kernels, seed_kernels
from synfundus.distributed.world import LocalWorld
from synfundus.stages import training_setup
from synfundus.telemetry.console import SilentConsole


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    settings.fill_uninitialized_memory = fill


def test_a_cpu_is_left_as_it_is() -> None:
    assert only_deterministic_kernels(device="cpu") is None
    training_setup.arithmetic(LoopConfig(deterministic=True), LocalWorld(), SilentConsole())
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_a_gpu_is_asked_for_them_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.backends.cudnn.benchmark = True
    said = only_deterministic_kernels(device="cuda")
    assert said is not None
    assert "(deterministic=true)" in said
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    only_deterministic_kernels(device="cuda")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "a choice of the user's stays"


def test_a_seed_gives_the_draws_that_it_gives_elsewhere() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2**62 + 3)
        expected = torch.nn.functional.dropout(torch.ones(100))
        seed_kernels(2**127 + 2**62 + 3, device=torch.device("cpu"))
        assert torch.equal(torch.nn.functional.dropout(torch.ones(100)), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_seed_gives_the_draws_that_it_gives_elsewhere_on_a_gpu() -> None:
    ones = torch.ones(100, device="cuda")
    torch.manual_seed(7)
    expected = torch.nn.functional.dropout(ones)
    seed_kernels(7, device=torch.device("cuda", torch.cuda.current_device()))
    assert torch.equal(torch.nn.functional.dropout(ones), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_repeats_its_gradients_to_the_bit() -> None:
    only_deterministic_kernels(device="cuda")
    torch.manual_seed(1)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(4, 64, 3, padding=1),
        torch.nn.Upsample(scale_factor=2),
        torch.nn.GroupNorm(8, 64),
        torch.nn.Conv2d(64, 4, 3, stride=2, padding=1),
    ).cuda()
    image = torch.randn(16, 4, 32, 32, device="cuda")
    gradients = []
    for _ in range(4):
        network.zero_grad()
        network(image).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None])
    assert all(torch.equal(one, other) for row in gradients[1:] for one, other in zip(gradients[0], row, strict=True))
