"""Group normalisation in NHWC memory: the values and gradients of torch's own, and no other memory format."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from norm_parity import PLAIN, SHAPES, both, check_operations, close
from torch import Tensor, nn

from synfundus.models.nhwc.group_norm import ChannelsLastGroupNorm, PlainOperations


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "part"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)], ids=["fp32", "bf16"])
def test_values_and_gradients_are_those_of_torch(shape: tuple[int, ...], dtype: torch.dtype, part: float) -> None:
    (mine, gradients), (theirs, wanted) = both(shape, dtype)
    assert mine.dtype == dtype
    close(mine, theirs, part=part)
    for ours, own in zip(gradients, wanted, strict=True):
        close(ours, own, part=part)


@pytest.mark.parametrize("offset", [10.0, 100.0])
def test_a_mean_far_from_zero_costs_few_digits(offset: float) -> None:
    """A variance from sums of squares loses as many digits as the square of mean over deviation has."""
    (mine, _), (theirs, _) = both((2, 64, 32, 32), torch.float32, offset=offset)
    close(mine, theirs, part=2e-7 * offset**2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_memory_stays_nhwc_forward_and_backward(shape: tuple[int, ...]) -> None:
    (mine, (gradient, _, _)), _ = both(shape, torch.float32)
    assert mine.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_other_memory_and_other_shapes_are_left_to_torch() -> None:
    norm = nn.GroupNorm(4, 8)
    ours = ChannelsLastGroupNorm.of(norm, Refusing())
    for image in (torch.randn(2, 8, 4, 4), torch.randn(2, 8, 5), torch.randn(2, 8)):
        torch.testing.assert_close(ours(image), norm(image), rtol=0, atol=0)


def test_a_compiled_norm_is_torchs_own() -> None:
    norm = ChannelsLastGroupNorm.of(nn.GroupNorm(4, 8), Refusing())
    image = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), nn.functional.group_norm(image, 4))


def test_under_autocast_it_computes_in_fp32_as_torch_does() -> None:
    norm = nn.GroupNorm(4, 8)
    ours = ChannelsLastGroupNorm.of(norm, PLAIN)
    image = torch.randn(2, 8, 4, 4).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(image).dtype == torch.float32


def test_parameters_and_names_stay() -> None:
    norm = nn.GroupNorm(4, 8).requires_grad_(False)
    ours = ChannelsLastGroupNorm.of(norm.eval(), PLAIN)
    assert ours.weight is norm.weight
    assert not ours.training
    assert list(ours.state_dict()) == ["weight", "bias"]


class Refusing(PlainOperations):
    """Kernels that are not to be called."""

    def sums(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("our kernels were called")


KERNELS = """
import norm_parity
from synfundus.models.nhwc.row_kernels import TritonOperations
norm_parity.check_operations(TritonOperations())
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_triton_kernels_compute_the_same() -> None:
    """In triton's interpreter, which needs no GPU; it must be chosen before triton is imported."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", KERNELS], env=environment, check=True, timeout=300)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_triton_kernels_on_a_gpu() -> None:
    from synfundus.models.nhwc.row_kernels import TritonOperations

    with torch.device("cuda"):
        check_operations(TritonOperations())
