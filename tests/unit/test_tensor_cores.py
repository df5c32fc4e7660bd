"""TF32 is a matter of GPUs: switched by torch's newer names, without a word from torch, and never for a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from synfundus.distributed.numerics import set_tf32
from synfundus.distributed.world import LocalWorld
from synfundus.stages import build
from synfundus.telemetry.console import SilentConsole

CUDA: Any = torch.backends.cuda
CUDNN: Any = torch.backends.cudnn
SWITCHES = (CUDA.matmul, CUDNN.conv, CUDNN.rnn)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = [switch.fp32_precision for switch in SWITCHES]
    yield
    for switch, precision in zip(SWITCHES, before, strict=True):
        switch.fp32_precision = precision


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand-ins for the switches of a GPU that this machine does not have."""
    matmul, conv, rnn = (SimpleNamespace(fp32_precision="none") for _ in range(3))
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(conv=conv, rnn=rnn))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    return SimpleNamespace(matmul=matmul, conv=conv)


@pytest.mark.parametrize(("wanted", "precision"), [(True, "tf32"), (False, "ieee")])
def test_a_gpu_gets_what_was_asked_for_and_it_is_said(stand_in: SimpleNamespace, wanted: bool, precision: str) -> None:
    said = set_tf32(wanted, device="cuda", option="tf32=true")
    assert said is not None
    assert said.endswith("(tf32=true)")
    assert ("TF32 on the tensor cores" in said) is wanted
    assert stand_in.matmul.fp32_precision == stand_in.conv.fp32_precision == precision


def test_a_gpu_without_tensor_cores_for_it_is_not_said_to_use_them(
    stand_in: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    assert "has no TF32" in str(set_tf32(True, device="cuda"))


def test_on_a_cpu_nothing_is_touched_or_said() -> None:
    class Loud(SilentConsole):
        def message(self, text: str) -> None:
            raise AssertionError(text)

    before = [switch.fp32_precision for switch in SWITCHES]
    for wanted in (True, False):
        build.tensor_cores(wanted, LocalWorld(), Loud())
    assert [switch.fp32_precision for switch in SWITCHES] == before


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_the_switches_of_a_gpu_leave_a_cpu_its_bits_and_torch_says_nothing(precision: str) -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(257, 301, generator=generator), torch.randn(301, 129, generator=generator)
    image, kernel = torch.randn(2, 8, 33, 33, generator=generator), torch.randn(16, 8, 3, 3, generator=generator)
    before = (left @ right, torch.nn.functional.conv2d(image, kernel))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for switch in SWITCHES:
            switch.fp32_precision = precision
        after = (left @ right, torch.nn.functional.conv2d(image, kernel))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"  # type: ignore[attr-defined]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_rounds_products_in_tf32_and_not_without() -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    errors = {}
    for wanted in (True, False):
        set_tf32(wanted, device="cuda")
        product = (left.cuda() @ right.cuda()).double().cpu()
        errors[wanted] = float((product - exact).abs().max() / exact.abs().max())
    assert errors[False] < 1e-5
    assert torch.cuda.get_device_capability()[0] < 8 or errors[True] > 1e-4
