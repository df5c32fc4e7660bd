"""The denoiser: a stock U-Net that listens to every label."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from synfundus.errors import ConfigError
from synfundus.models.conditioner import LabelConditioner
from synfundus.models.unet import ConditionalDenoiser, build_unet

DEFAULTS: dict[str, object] = {
    "sample_size": 8,
    "latent_channels": 4,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "attention_levels": (False, True),
    "attention_head_dim": 8,
    "cross_attention_dim": 12,
    "pooled_dim": 10,
    "norm_num_groups": 8,
    "transformer_layers_per_block": 1,
    "dropout": 0.0,
    "scale_shift_norm": False,
}


def unet_of(**changes: object) -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_unet(**(DEFAULTS | changes))  # type: ignore[arg-type]


def denoiser_of(**changes: object) -> ConditionalDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conditioner = LabelConditioner(num_values=[5, 2], ordinal=[True, False], token_dim=12, pooled_dim=10)
    return ConditionalDenoiser(unet=unet_of(**changes), conditioner=conditioner).eval()


def x_t_of(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(2))


def test_the_prediction_has_the_shape_of_the_latents() -> None:
    prediction = denoiser_of()(x_t_of(), torch.tensor([0, 500, 999]), torch.tensor([[0, 0], [3, 1], [5, 2]]))
    assert prediction.shape == (3, 4, 8, 8)


def test_every_label_and_the_timestep_change_the_prediction() -> None:
    denoiser = denoiser_of()
    x_t = x_t_of(1)
    base = denoiser(x_t, torch.tensor([500]), torch.tensor([[1, 1]]))
    for timestep, states in ((400, [1, 1]), (500, [2, 1]), (500, [1, 2]), (500, [0, 0])):
        other = denoiser(x_t, torch.tensor([timestep]), torch.tensor([states]))
        assert float((other - base).abs().max().detach()) > 1e-5


def test_without_any_attention_labels_still_reach_the_network_through_the_time_embedding() -> None:
    denoiser = denoiser_of(attention_levels=(False, False))
    x_t, timestep = x_t_of(1), torch.tensor([500])
    base, other = (denoiser(x_t, timestep, torch.tensor([states])) for states in ([1, 1], [5, 1]))
    assert float((other - base).abs().max().detach()) > 1e-5


def test_parameters_are_named_after_their_half() -> None:
    prefixes = {name.split(".")[0] for name, _ in denoiser_of().named_parameters()}
    assert prefixes == {"unet", "conditioner"}


def test_every_parameter_is_trained() -> None:
    """A parameter without a gradient would be decayed, averaged and saved for nothing."""
    denoiser = denoiser_of()
    prediction = denoiser(x_t_of(), torch.tensor([1, 2, 3]), torch.tensor([[0, 0], [3, 1], [5, 2]]))
    torch.autograd.backward(prediction.square().sum())
    assert [name for name, parameter in denoiser.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("head_dim", [8, 16])
def test_heads_have_the_width_that_was_asked_for(head_dim: int) -> None:
    layers = [module for module in unet_of(attention_head_dim=head_dim).modules() if isinstance(module, Attention)]
    assert layers
    assert {layer.to_q.out_features // layer.heads for layer in layers} == {head_dim}


def test_saved_and_read_back_by_diffusers_it_is_the_same(tmp_path: Path) -> None:
    denoiser = denoiser_of()
    denoiser.unet.save_pretrained(tmp_path / "unet")
    denoiser.conditioner.save_pretrained(tmp_path / "conditioner")
    back = ConditionalDenoiser(
        unet=UNet2DConditionModel.from_pretrained(tmp_path / "unet", use_safetensors=True, low_cpu_mem_usage=False),
        conditioner=LabelConditioner.from_pretrained(tmp_path / "conditioner"),
    ).eval()
    arguments = (x_t_of(), torch.tensor([0, 500, 999]), torch.tensor([[0, 0], [3, 1], [5, 2]]))
    assert torch.equal(denoiser(*arguments), back(*arguments))


def test_a_conditioner_of_another_width_is_refused() -> None:
    conditioner = LabelConditioner(num_values=[2], ordinal=[False], token_dim=8, pooled_dim=10)
    with pytest.raises(ConfigError, match="takes tokens of 12"):
        ConditionalDenoiser(unet=unet_of(), conditioner=conditioner)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_out_channels": (), "attention_levels": ()}, "empty"),
        ({"attention_levels": (True,)}, "attention_levels has 1"),
        ({"sample_size": 9}, "9 x 9 cannot be halved"),
        ({"norm_num_groups": 5}, "16 channels cannot be split into 5 norm groups"),
        ({"attention_head_dim": 24}, "32 channels cannot be split into heads of 24"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        unet_of(**changes)
