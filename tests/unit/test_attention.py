"""The attention kernels agree, and the choice between them is measured and reasoned."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from synfundus.errors import ConfigError
from synfundus.models.attention import (
    AttentionChoice,
    AttentionKernel,
    AttentionShape,
    KernelAttnProcessor,
    MeasuredAttention,
    apply_attention,
    choose_attention,
    fastest_attention,
    installed_xformers,
    math_attention,
    measure_attention,
    probe_kernel,
    probe_shapes,
    reason_of,
    sdpa_attention,
    xformers_attention,
    xformers_misfit,
)
from synfundus.models.unet import build_unet

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def stand_in(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attend as xformers' operator does, [batch, tokens, heads, head_dim] in and out, one head at a time."""
    heads = []
    for head in range(query.shape[2]):
        scores = query[:, :, head] @ key[:, :, head].transpose(1, 2) * query.shape[-1] ** -0.5
        heads.append(scores.softmax(dim=-1) @ value[:, :, head])
    return torch.stack(heads, dim=2)


KERNELS: dict[str, AttentionKernel] = {
    "math": math_attention,
    "sdpa": sdpa_attention,
    "xformers": xformers_attention(stand_in),
}


def unet_of() -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_unet(
            sample_size=8,
            latent_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            attention_levels=(True, True),
            attention_head_dim=8,
            cross_attention_dim=12,
            pooled_dim=10,
            norm_num_groups=8,
            transformer_layers_per_block=1,
            dropout=0.0,
            scale_shift_norm=False,
        ).eval()


def autoencoder_of() -> AutoencoderKL:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
        ).eval()


def run_unet(model: UNet2DConditionModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output and gradient by the input."""
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(2, 4, 8, 8, generator=generator).requires_grad_()
    output = model(
        x_t,
        torch.tensor([3, 700]),
        encoder_hidden_states=torch.randn(2, 5, 12, generator=generator),
        class_labels=torch.randn(2, 10, generator=generator),
        return_dict=False,
    )[0]
    torch.autograd.backward(output.square().sum())
    assert x_t.grad is not None
    return output.detach(), x_t.grad


@pytest.mark.parametrize("name", ["sdpa", "xformers"])
@pytest.mark.parametrize(("head_dim", "dtype", "limit"), [(8, torch.float32, 1e-5), (64, torch.bfloat16, 0.03)])
def test_kernels_agree_with_plain_attention_forward_and_backward(
    name: str, head_dim: int, dtype: torch.dtype, limit: float
) -> None:
    for keys in (64, 5):
        shape = AttentionShape(64, keys, 2, head_dim)
        assert probe_kernel(KERNELS[name], shape, dtype=dtype, device=CPU) < limit


@pytest.mark.parametrize("name", list(KERNELS))
def test_in_the_unet_every_kernel_gives_what_diffusers_own_plain_processor_gives(name: str) -> None:
    reference = unet_of()
    reference.set_attn_processor(AttnProcessor())
    model = unet_of()
    model.set_attn_processor(KernelAttnProcessor(KERNELS[name]))
    for ours, theirs in zip(run_unet(model), run_unet(reference), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(KERNELS))
def test_in_the_autoencoder_too(name: str) -> None:
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    reference, model = autoencoder_of(), autoencoder_of()
    reference.set_attn_processor(AttnProcessor())
    model.set_attn_processor(KernelAttnProcessor(KERNELS[name]))
    torch.testing.assert_close(model(pixels).sample.detach(), reference(pixels).sample.detach(), rtol=1e-4, atol=1e-4)


def test_the_kernel_gets_real_batches_tokens_heads_and_widths() -> None:
    """A wrong layout would still run: the shapes are what xformers is told."""
    seen = set()

    def watching(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        seen.add((tuple(query.shape), tuple(key.shape)))
        return math_attention(query, key, value)

    model = unet_of()
    model.set_attn_processor(KernelAttnProcessor(watching))
    run_unet(model)
    assert ((2, 64, 2, 8), (2, 64, 2, 8)) in seen
    assert ((2, 64, 2, 8), (2, 5, 2, 8)) in seen
    assert ((2, 16, 4, 8), (2, 16, 4, 8)) in seen


def test_the_widths_of_heads_are_read_off_the_model() -> None:
    assert [shape.head_dim for shape in probe_shapes(unet_of())] == [8]
    assert [shape.head_dim for shape in probe_shapes(autoencoder_of())] == [16]


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_applying_a_choice_changes_the_kernel_and_not_the_weights(backend: Any) -> None:
    model = unet_of()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    apply_attention(model, AttentionChoice(backend=backend, reason="test"))
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    kernels = {processor.kernel for processor in model.attn_processors.values()}
    assert kernels == {KERNELS[backend]}


SHAPES = (AttentionShape(64, 64, 2, 8, layers=3), AttentionShape(64, 5, 2, 16))


def choose(requested: Any, device: torch.device = CUDA) -> AttentionChoice:
    return choose_attention(requested=requested, shapes=SHAPES, dtype=torch.float32, device=device)


def test_without_a_measurement_a_cpu_takes_plain_products_and_a_gpu_leaves_it_to_pytorch() -> None:
    assert str(choose("auto", CPU)) == "attention: math (the device is cpu)"
    assert choose("auto").backend == "sdpa"
    assert str(choose("math")) == "attention: math (as configured)"


@pytest.mark.parametrize("backend", ["xformers", "flash", "cudnn", "efficient"])
def test_a_kernel_for_gpus_is_refused_on_a_cpu(backend: str) -> None:
    with pytest.raises(ConfigError, match=f"{backend} cannot be used: the device is cpu") as caught:
        choose(backend, CPU)
    assert ("make install-gpu ATTENTION=xformers" in caught.value.hint) == (backend == "xformers")


XFORMERS_REFUSAL = """No operator found for `memory_efficient_attention_backward` with inputs:
     query       : shape=(1, 64, 2, 64) (torch.bfloat16)
     attn_bias   : <class 'NoneType'>
     p           : 0.0
`fa2B@2.5.7-pt` is not supported because:
    xFormers wasn't build with CUDA support
`cutlassB-pt` is not supported because:
    xFormers wasn't build with CUDA support
    max(query.shape[-1], value.shape[-1]) > 256"""


def test_a_refusal_is_quoted_by_its_reasons() -> None:
    """The first line of xformers' message names the inputs' operator, not a reason."""
    reasons = "xFormers wasn't build with CUDA support; max(query.shape[-1], value.shape[-1]) > 256"
    assert reason_of(NotImplementedError(XFORMERS_REFUSAL)) == reasons
    assert reason_of(RuntimeError("No available kernel. Aborting execution.\nTraceback")) == (
        "No available kernel. Aborting execution."
    )


def broken(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError(XFORMERS_REFUSAL)


def swapped(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return stand_in(*(part.transpose(1, 2) for part in (query, key, value))).transpose(1, 2)


def forward_only(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return stand_in(query, key, value).detach().requires_grad_()


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Kernels and milliseconds by name, all measured on the CPU in the place of a GPU; to be changed by the test."""
    kernels: dict[str, Any] = dict.fromkeys(("sdpa", "cudnn", "flash", "efficient", "xformers"), sdpa_attention)
    cost = dict.fromkeys(kernels, 1.0)
    names = {}

    def kernel(backend: str) -> AttentionKernel:
        if isinstance(kernels[backend], Exception):
            raise kernels[backend]
        names[one := (lambda *inputs: kernels[backend](*inputs))] = backend
        return one

    def probe(one: AttentionKernel, shape: AttentionShape, *, dtype: torch.dtype, device: torch.device) -> float:
        assert device == CUDA
        return probe_kernel(one, shape, dtype=dtype, device=CPU)

    monkeypatch.setattr("synfundus.models.attention._kernel", kernel)
    monkeypatch.setattr("synfundus.models.attention.probe_kernel", probe)
    monkeypatch.setattr("synfundus.models.attention._milliseconds", lambda one, shape, **_: cost[names[one]])
    return {"kernels": kernels, "cost": cost}


def measured() -> MeasuredAttention:
    return measure_attention(SHAPES, batch_size=2, dtype=torch.float32, device=CUDA)


def test_all_layers_are_timed_and_the_fastest_kernel_is_taken(on_cpu: dict[str, Any]) -> None:
    on_cpu["cost"].update(cudnn=0.5, flash=0.9)
    found = measured()
    assert found.ms == {"sdpa": 4.0, "cudnn": 2.0, "flash": 3.6, "efficient": 4.0, "xformers": 4.0}
    choice = fastest_attention([found])
    assert choice.backend == "cudnn"
    assert "cudnn 2 ms, flash 3.6 ms, sdpa 4 ms" in choice.reason


def test_a_kernel_that_is_hardly_faster_does_not_replace_pytorchs_choice(on_cpu: dict[str, Any]) -> None:
    on_cpu["cost"].update(flash=0.98)
    assert fastest_attention([measured()]).backend == "sdpa"


def test_what_cudnn_has_refused_is_not_asked_of_it_again(on_cpu: dict[str, Any]) -> None:
    asked: list[int] = []

    def refused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        asked.append(query.shape[1])
        raise RuntimeError("cuDNN Frontend error: [cudnn_frontend] Error: No execution plans support the graph.")

    on_cpu["kernels"].update(sdpa=refused, cudnn=refused)
    found = measured()
    assert len(asked) == 1
    assert found.obstacles["cudnn"] == found.obstacles["sdpa"]
    assert "64 x 64 tokens, heads of 8: cuDNN Frontend error" in found.obstacles["cudnn"]
    assert set(found.ms) == {"flash", "efficient", "xformers"}


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (broken, "xformers: 64 x 64 tokens, heads of 8: xFormers wasn't build with CUDA support; max("),
        (swapped, "xformers: 64 x 64 tokens, heads of 8: off by"),
        (forward_only, "xformers: 64 x 64 tokens, heads of 8: off by"),
        (ImportError("not installed"), "xformers: not installed"),
    ],
)
def test_a_kernel_that_fails_is_left_out_and_the_log_says_why(kernel: Any, reason: str, on_cpu: dict[str, Any]) -> None:
    on_cpu["kernels"]["xformers"], on_cpu["cost"]["xformers"] = kernel, 0.1
    choice = fastest_attention([measured()])
    assert choice.backend == "sdpa"
    assert reason in choice.reason
    assert "\n" not in str(choice)


def test_a_run_that_goes_on_keeps_its_kernel_while_it_works(on_cpu: dict[str, Any]) -> None:
    on_cpu["cost"].update(cudnn=0.5)
    choice = fastest_attention([measured()], stored="flash")
    assert choice.backend == "flash"
    assert "as this run began" in choice.reason
    on_cpu["kernels"]["flash"] = ImportError("gone")
    assert fastest_attention([measured()], stored="flash").backend == "cudnn"


def test_ranks_take_a_kernel_that_works_on_all_of_them() -> None:
    fast = MeasuredAttention({"sdpa": 4.0, "flash": 3.0, "xformers": 1.0})
    slow = MeasuredAttention({"sdpa": 4.0, "flash": 2.0}, {"xformers": "not installed"})
    for ranks in ([fast, slow], [slow, fast, fast]):
        choice = fastest_attention(ranks)
        assert choice.backend == "flash"
        assert "xformers: not installed" in choice.reason
    assert fastest_attention([fast, fast]).backend == "xformers"
    nothing = fastest_attention([MeasuredAttention({}, {"sdpa": "no kernel"})])
    assert nothing.backend == "sdpa"
    assert "no kernel" in nothing.reason


@pytest.mark.parametrize(
    ("built_for", "torch_cuda", "misfit"),
    [
        ("12.8", "12.8", None),
        ("12.8", "12.6", None),
        ("13.0", "13.0", None),
        ("12.8", "13.0", "operators are built for CUDA 12.8, torch .* for CUDA 13.0"),
        ("12.8", None, "is a CPU build"),
        (None, "13.0", "without operators"),
    ],
)
def test_operators_fit_a_torch_for_the_same_major_version_of_cuda(
    built_for: str | None, torch_cuda: str | None, misfit: str | None
) -> None:
    found = xformers_misfit(built_for, torch_cuda)
    assert (found is None) == (misfit is None)
    if misfit is not None:
        assert re.search(misfit, str(found))


def test_the_cuda_of_an_installed_xformers_is_read_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "xformers").mkdir()
    (tmp_path / "xformers" / "__init__.py").write_text("raise AssertionError('imported')")
    information = tmp_path / "xformers-9.9.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: xformers\nVersion: 9.9\n")
    assert installed_xformers() == ("9.9", None)
    (tmp_path / "xformers" / "cpp_lib.json").write_text(json.dumps({"version": {"cuda": 1108, "torch": "2.10.0"}}))
    assert installed_xformers() == ("9.9", "11.8")
    with pytest.raises(ConfigError, match=r"xformers 9\.9: its operators are built for CUDA 11\.8, torch"):
        choose("xformers")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_the_real_xformers_passes_the_probe(head_dim: int, dtype: torch.dtype) -> None:
    found = installed_xformers()
    if found is None or xformers_misfit(found[1], torch.version.cuda) is not None:
        pytest.skip("no xformers that fits this torch")
    shapes = [AttentionShape(64, 64, 2, head_dim)]
    choice = choose_attention(requested="xformers", shapes=shapes, dtype=dtype, device=CUDA)
    assert choice.backend == "xformers"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sdpa_on_the_gpu_passes_the_probe(dtype: torch.dtype) -> None:
    assert probe_kernel(sdpa_attention, AttentionShape(64, 64, 2, 64), dtype=dtype, device=CUDA) < 0.05
