"""TF32 is a matter of GPUs: readable by torch's older and newer names, without a word from torch, never for a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from synfundus.distributed.numerics import set_tf32
from synfundus.distributed.world import LocalWorld
from synfundus.stages import build
from synfundus.telemetry.console import SilentConsole


def switches() -> dict[str, Any]:
    """Return what every name says; torch raises where two of them contradict each other."""
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn  # torch's type stubs do not know the newer names
    new = {"matmul": cuda.matmul, "conv": cudnn.conv, "rnn": cudnn.rnn}
    with torch.backends.cudnn.flags(enabled=True):
        pass  # inductor's autotuning enters this
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "matmul.allow_tf32": cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": cudnn.allow_tf32,
        **{name: switch.fp32_precision for name, switch in new.items()},
    }


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def _h100(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@pytest.mark.parametrize("wanted", [True, False])
def test_a_gpu_gets_what_was_asked_for_by_every_name_and_it_is_said(wanted: bool) -> None:
    said = set_tf32(wanted, device="cuda", option="tf32=true")
    assert said is not None
    assert said.endswith("(tf32=true)")
    assert ("TF32 on the tensor cores" in said) is wanted
    found = switches()
    assert found["matmul.allow_tf32"] is found["cudnn.allow_tf32"] is wanted
    assert found["float32_matmul_precision"] == ("high" if wanted else "highest")
    assert all((found[name] == "tf32") is wanted for name in ("matmul", "conv", "rnn"))


def test_a_gpu_without_tensor_cores_for_it_is_not_said_to_use_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    assert "has no TF32" in str(set_tf32(True, device="cuda"))


def test_on_a_cpu_nothing_is_touched_or_said() -> None:
    class Loud(SilentConsole):
        def message(self, text: str) -> None:
            raise AssertionError(text)

    before = switches()
    for wanted in (True, False):
        build.tensor_cores(wanted, LocalWorld(), Loud())
    assert switches() == before


@pytest.mark.parametrize("wanted", [True, False])
def test_the_switches_of_a_gpu_leave_a_cpu_its_bits_and_torch_says_nothing(wanted: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(257, 301, generator=generator), torch.randn(301, 129, generator=generator)
    image, kernel = torch.randn(2, 8, 33, 33, generator=generator), torch.randn(16, 8, 3, 3, generator=generator)
    before = (left @ right, torch.nn.functional.conv2d(image, kernel))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_tf32(wanted, device="cuda")
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
