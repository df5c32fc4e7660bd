"""The three attention kernels agree, and the choice between them is reasoned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from synfundus.errors import ConfigError
from synfundus.models.attention import (
    AttentionChoice,
    AttentionKernel,
    KernelAttnProcessor,
    agreed_attention,
    apply_attention,
    choose_attention,
    head_dims,
    math_attention,
    probe_kernel,
    sdpa_attention,
    xformers_attention,
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
    assert probe_kernel(KERNELS[name], head_dim=head_dim, dtype=dtype, device=CPU) < limit


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


def test_head_dims_are_read_off_the_model() -> None:
    assert head_dims(unet_of()) == (8,)
    assert head_dims(autoencoder_of()) == (16,)


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_applying_a_choice_changes_the_kernel_and_not_the_weights(backend: Any) -> None:
    model = unet_of()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    apply_attention(model, AttentionChoice(backend=backend, reason="test"))
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    kernels = {processor.kernel for processor in model.attn_processors.values()}
    assert kernels == {KERNELS[backend]}


def refuse_import(name: str) -> Any:
    raise AssertionError(f"{name} must not be imported here")


def test_on_a_cpu_auto_takes_plain_products_without_importing_xformers() -> None:
    choice = choose_attention(
        requested="auto", head_dims=(8,), dtype=torch.float32, device=CPU, import_module=refuse_import
    )
    assert str(choice) == "attention: math (the device is cpu)"


def test_xformers_by_name_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="the device is cpu"):
        choose_attention(
            requested="xformers", head_dims=(8,), dtype=torch.float32, device=CPU, import_module=refuse_import
        )


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="'flash'"):
        choose_attention(requested="flash", head_dims=(8,), dtype=torch.float32, device=CPU)  # type: ignore[arg-type]


def test_a_missing_package_is_named_as_the_reason() -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    choice = choose_attention(requested="auto", head_dims=(8,), dtype=torch.float32, device=CUDA, import_module=missing)
    assert choice.backend == "sdpa"
    assert "No module named 'xformers.ops'" in choice.reason


def broken(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError("No operator found for `memory_efficient_attention_backward`\nand a long table")


def swapped(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return stand_in(*(part.transpose(1, 2) for part in (query, key, value))).transpose(1, 2)


@pytest.mark.parametrize(
    ("operator", "backend", "reason"),
    [
        (stand_in, "xformers", "probe passed forward and backward, heads of 8, 16"),
        (broken, "sdpa", "probe with heads of 8 failed: No operator found"),
        (swapped, "sdpa", "probe with heads of 8 is off by"),
    ],
)
def test_the_probe_decides_and_says_why(
    operator: Any, backend: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe_on_cpu(kernel: AttentionKernel, *, head_dim: int, dtype: torch.dtype, device: torch.device) -> float:
        assert device == CUDA
        return probe_kernel(kernel, head_dim=head_dim, dtype=dtype, device=CPU)

    monkeypatch.setattr("synfundus.models.attention.probe_kernel", probe_on_cpu)
    choice = choose_attention(
        requested="auto",
        head_dims=(8, 16),
        dtype=torch.float32,
        device=CUDA,
        import_module=lambda name: SimpleNamespace(memory_efficient_attention=operator),
    )
    assert choice.backend == backend
    assert reason in choice.reason
    assert "\n" not in str(choice)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_the_real_xformers_passes_the_probe(head_dim: int, dtype: torch.dtype) -> None:
    pytest.importorskip("xformers.ops")
    choice = choose_attention(requested="xformers", head_dims=(head_dim,), dtype=dtype, device=CUDA)
    assert choice.backend == "xformers"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sdpa_on_the_gpu_passes_the_probe(dtype: torch.dtype) -> None:
    assert probe_kernel(sdpa_attention, head_dim=64, dtype=dtype, device=CUDA) < 0.05


def test_ranks_with_different_kernels_take_the_one_they_all_have() -> None:
    fast = AttentionChoice("xformers", "probe passed")
    slow = AttentionChoice("sdpa", "no xformers: import failed")
    assert agreed_attention([fast, fast]) is fast
    for choices in ([fast, fast, slow], [slow, fast]):
        agreed = agreed_attention(choices)
        assert agreed.backend == "sdpa"
        assert "import failed" in agreed.reason
    assert "rank 2 sdpa" in agreed_attention([fast, fast, slow]).reason
    assert agreed_attention([fast, AttentionChoice("math", "cpu"), slow]).backend == "math"
