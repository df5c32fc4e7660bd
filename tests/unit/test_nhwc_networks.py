"""NHWC memory stays NHWC through the networks of a run, with the values of stock diffusers."""

from __future__ import annotations

import copy
import re
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synfundus.models.diffusers_classes import AutoencoderKL, UNet2DConditionModel
from synfundus.models.nhwc.group_norm import ChannelsLastGroupNorm, PlainOperations, RowOperations
from synfundus.models.nhwc.networks import keep_channels_last, kernels_for
from synfundus.models.unet import build_unet
from synfundus.stages import build
from synfundus.telemetry.console import SilentConsole


def unet(*, linear: bool) -> UNet2DConditionModel:
    """Return a U-Net with attention on two levels, as the presets have it."""
    torch.manual_seed(0)
    made = build_unet(
        sample_size=16, latent_channels=4, block_out_channels=(32, 64, 64), layers_per_block=1,
        attention_levels=(False, True, True), attention_head_dim=32, cross_attention_dim=16, pooled_dim=16,
        norm_num_groups=8, transformer_layers_per_block=1, dropout=0.0, scale_shift_norm=False,
    )  # fmt: skip
    return made if linear else UNet2DConditionModel.from_config({**made.config, "use_linear_projection": False})


def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    blocks = 2
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(16, 32), norm_num_groups=8, latent_channels=4, sample_size=16,
    )  # fmt: skip


def run_unet(network: nn.Module, image: Tensor) -> Tensor:
    tokens, pooled = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(3)) for shape in ((2, 5, 16), (2, 16))
    )
    output: Tensor = network(
        image, torch.tensor([3, 400]), encoder_hidden_states=tokens, class_labels=pooled, return_dict=False
    )[0]
    return output


def run_autoencoder(network: nn.Module, image: Tensor) -> Tensor:
    output: Tensor = network(image, return_dict=False)[0]
    return output


def not_nhwc(network: nn.Module) -> tuple[list[str], list[str]]:
    """Watch the 3x3 convolutions of a network; returns the names of all and of those whose input is not NHWC."""
    every: list[str] = []
    wrong: list[str] = []

    def watch(name: str, module: nn.Conv2d) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
            every.append(name)
            if not inputs[0].is_contiguous(memory_format=torch.channels_last):
                wrong.append(name)

        module.register_forward_hook(hook)

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            watch(name, module)
    return every, wrong


@pytest.mark.parametrize("kind", ["unet", "unet with convolutions around its tokens", "autoencoder"])
@pytest.mark.parametrize("training", [True, False])
def test_every_3x3_convolution_gets_nhwc_and_the_values_stay(kind: str, training: bool) -> None:
    stock = autoencoder() if kind == "autoencoder" else unet(linear=kind == "unet")
    run, channels = (run_autoencoder, 3) if kind == "autoencoder" else (run_unet, 4)
    stock.train(training)
    ours = copy.deepcopy(stock).to(memory_format=torch.channels_last)
    keep_channels_last(ours, PlainOperations())
    every, wrong = not_nhwc(ours)
    image = torch.randn(2, channels, 16, 16)
    mine, theirs = run(ours, image.contiguous(memory_format=torch.channels_last)), run(stock, image)
    assert (len(every) > 10, wrong) == (True, [])
    torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5)
    torch.autograd.backward(mine.square().sum())
    torch.autograd.backward(theirs.square().sum())
    for (name, own), (_, their) in zip(ours.named_parameters(), stock.named_parameters(), strict=True):
        assert (own.grad is None) == (their.grad is None), name
        if own.grad is not None and their.grad is not None:
            largest = float(their.grad.abs().max())
            assert float((own.grad - their.grad).abs().max()) <= 1e-4 * largest + 1e-5, name


def test_nchw_memory_is_computed_as_before_bit_for_bit() -> None:
    stock = unet(linear=True)
    ours = copy.deepcopy(stock)
    keep_channels_last(ours, PlainOperations())
    image = torch.randn(2, 4, 16, 16)
    assert torch.equal(run_unet(ours, image), run_unet(stock, image))


def test_names_of_weights_stay() -> None:
    stock = unet(linear=True)
    ours = copy.deepcopy(stock)
    keep_channels_last(ours, PlainOperations())
    assert list(ours.state_dict()) == list(stock.state_dict())


def test_a_cpu_keeps_torchs_own_norms() -> None:
    assert kernels_for(torch.device("cpu"), torch.float32) is None


# ---- a job's choice --------------------------------------------------------------------------------------------


class Said(SilentConsole):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        """See `Console`."""
        self.warnings.append(text)


def choose(monkeypatch: pytest.MonkeyPatch, mine: Exception | RowOperations, other: str = "") -> tuple[bool, Said]:
    """Choose on a rank whose kernels are, or raise, the first, beside one with the other obstacle; are they used?"""

    def kernels(*_: object) -> RowOperations:
        if isinstance(mine, Exception):
            raise mine
        return mine

    monkeypatch.setattr(build, "kernels_for", kernels)
    monkeypatch.setattr(build, "torch_device", lambda _: torch.device("cpu"))
    world: Any = SimpleNamespace(device="cuda", rank=0, size=2, all_gather=lambda value: [value, other])
    network, console = autoencoder(), Said()
    build.channels_last(network, world=world, console=console, weights=True)
    assert network.encoder.conv_out.weight.is_contiguous(memory_format=torch.channels_last)
    return any(isinstance(module, ChannelsLastGroupNorm) for module in network.modules()), console


def test_kernels_that_run_on_all_ranks_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used, console = choose(monkeypatch, PlainOperations())
    assert (used, console.warnings) == (True, [])


def test_kernels_that_do_not_run_on_one_rank_are_used_on_none_and_the_reason_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reasons = {
        "Failed to find C compiler.": RuntimeError("in a kernel:\n    x = 1\nFailed to find C compiler.\n"),
        "ptxas fatal: no such target": RuntimeError("ptxas\nptxas fatal: no such target\n\nRepro command: ptxas -v"),
        "CUDA error: no kernel image": RuntimeError("CUDA error: no kernel image\nCompile with `DEBUG`"),
        "No module named 'triton'": ModuleNotFoundError("No module named 'triton'"),
        "KeyError": KeyError(),
    }
    for reason, error in reasons.items():
        used, console = choose(monkeypatch, error)
        assert (used, len(console.warnings)) == (False, 1)
        assert f"do not run on {socket.gethostname()} ({reason})" in console.warnings[0]
    used, console = choose(monkeypatch, PlainOperations(), "do not run on node7 (no gcc)")
    assert (used, len(console.warnings)) == (False, 1)
    assert "do not run on node7 (no gcc)" in console.warnings[0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: an illegal memory access"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access"),
    ],
)
def test_a_failed_gpu_is_no_missing_compiler(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(type(error), match=re.escape(str(error))):
        choose(monkeypatch, error)
