"""A foreign U-Net is taken as it is, speaks labels afterwards, and says what became of its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from foreign_models import SD2, SD15, SDXL, foreign_unet

from synfundus.errors import CheckpointError, ConfigError
from synfundus.models.adapted_unet import Adaptation, adapt_unet, widen_input, widen_output
from synfundus.models.conditioner import LabelConditioner
from synfundus.models.unet import ConditionalDenoiser, same_architecture
from synfundus.models.weight_files import replace_weights

KINDS = {"sd15": SD15, "sd2": SD2, "sdxl": SDXL}
LATENTS = (4, 8, 8)


def seeded(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def adapted(
    config: Mapping[str, Any], foreign: UNet2DConditionModel, latent_shape: tuple[int, int, int] = LATENTS
) -> tuple[ConditionalDenoiser, Adaptation]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        unet, report = adapt_unet(config, foreign.state_dict(), latent_shape=latent_shape, dropout=0.0)
        width = unet.config.cross_attention_dim
        conditioner = LabelConditioner(num_values=[5, 2], ordinal=[True, False], token_dim=width, pooled_dim=width)
    return ConditionalDenoiser(unet=unet, conditioner=conditioner).eval(), report


def predictions(
    denoiser: ConditionalDenoiser, foreign: UNet2DConditionModel, config: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what both say about the same latents, timesteps and tokens."""
    x_t, timestep, states = seeded(1, 3, 4, 8, 8), torch.tensor([10, 500, 999]), torch.tensor([[0, 0], [3, 1], [5, 2]])
    added = None
    if config.get("addition_embed_type"):
        edge = 8.0 * config["sample_size"]
        added = {"text_embeds": torch.zeros(3, 20), "time_ids": torch.tensor([[edge, edge, 0, 0, edge, edge]] * 3)}
    with torch.no_grad():
        tokens, _ = denoiser.conditioner(states)
        theirs = foreign(x_t, timestep, encoder_hidden_states=tokens, added_cond_kwargs=added).sample
        return denoiser(x_t, timestep, states), theirs


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_same_tokens_the_adapted_network_says_what_the_foreign_one_says(kind: str) -> None:
    config = KINDS[kind]
    foreign = foreign_unet(config)
    denoiser, report = adapted(config, foreign)
    ours, theirs = predictions(denoiser, foreign, config)
    assert float(theirs.std()) > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert not report.adapted
    assert all(name.startswith("class_embedding.") for name in report.new)
    assert all(name.startswith("add_embedding.") for name in report.unused)
    assert bool(report.unused) == (kind == "sdxl")


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_accounted_for_once(kind: str) -> None:
    foreign = foreign_unet(KINDS[kind])
    denoiser, report = adapted(KINDS[kind], foreign)
    assert {*report.taken, *report.adapted, *report.unused} == set(foreign.state_dict())
    assert {*report.taken, *report.adapted, *report.new} == set(denoiser.unet.state_dict())
    assert sum(report.taken.values()) + sum(report.new.values()) == sum(
        parameter.numel() for parameter in denoiser.unet.parameters()
    )


def test_the_labels_that_are_silent_at_first_can_be_learned() -> None:
    foreign = foreign_unet(SD15)
    denoiser, _ = adapted(SD15, foreign)
    ours = denoiser(seeded(1, 2, 4, 8, 8), torch.tensor([10, 500]), torch.tensor([[1, 1], [4, 2]]))
    torch.autograd.backward((ours - seeded(2, 2, 4, 8, 8)).square().mean())
    assert [name for name, one in denoiser.named_parameters() if one.grad is None] == []
    gradient = denoiser.unet.class_embedding.linear_2.weight.grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 0
    assert float(denoiser.conditioner.table.grad.abs().max()) > 0  # type: ignore[union-attr]


def test_the_settings_of_the_foreign_network_stay_but_those_that_must_change() -> None:
    denoiser, _ = adapted(SD2, foreign_unet(SD2))
    config = denoiser.unet.config
    assert list(config.attention_head_dim) == SD2["attention_head_dim"]
    assert (config.use_linear_projection, config.upcast_attention) == (True, True)
    assert (config.sample_size, config.in_channels, config.class_embed_type) == (8, 4, "projection")
    assert (config.cross_attention_dim, config.projection_class_embeddings_input_dim) == (32, 32)


def test_another_network_of_the_same_architecture_takes_all_weights() -> None:
    denoiser, _ = adapted(SDXL, foreign_unet(SDXL))
    copy = same_architecture(denoiser)
    replace_weights(copy, denoiser.state_dict(), where="here")
    assert not [name for name, tensor in copy.state_dict(keep_vars=True).items() if tensor.is_meta]
    x_t, timestep, states = seeded(1, 1, 4, 8, 8), torch.tensor([10]), torch.tensor([[3, 1]])
    with torch.no_grad():
        assert torch.equal(copy.eval()(x_t, timestep, states), denoiser(x_t, timestep, states))


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8, 16, 32])
def test_latents_of_other_channels_leave_the_first_layer_the_variance_it_had(channels: int) -> None:
    weight = seeded(0, 64, 4, 3, 3)
    wide = widen_input(weight, channels)
    convolved = torch.nn.functional.conv2d(seeded(1, 64, channels, 16, 16), wide, padding=1)
    plain = torch.nn.functional.conv2d(seeded(2, 64, 4, 16, 16), weight, padding=1)
    assert float(convolved.var() / plain.var()) == pytest.approx(1.0, abs=0.1)


def test_a_repeated_channel_that_is_the_same_everywhere_is_seen_and_predicted_as_before() -> None:
    weight, x = seeded(0, 8, 4, 3, 3), seeded(1, 2, 4, 8, 8)
    wide = widen_input(weight, 16)
    repeated = torch.nn.functional.conv2d(x.repeat(1, 4, 1, 1) / 2.0, wide, padding=1)
    torch.testing.assert_close(repeated, torch.nn.functional.conv2d(x, weight, padding=1))
    assert torch.equal(widen_output(weight.movedim(0, 1), 16), weight.movedim(0, 1).repeat(4, 1, 1, 1))
    assert torch.equal(widen_input(weight, 4), weight)
    assert torch.equal(widen_output(weight, 8), weight)


@pytest.mark.parametrize("channels", [2, 16])
def test_other_latents_adapt_the_outer_convolutions_and_nothing_else(channels: int) -> None:
    foreign = foreign_unet(SD15)
    denoiser, report = adapted(SD15, foreign, (channels, 8, 8))
    assert set(report.adapted) == {"conv_in.weight", "conv_out.weight", "conv_out.bias"}
    assert report.adapted["conv_in.weight"].startswith(f"[8, 4, 3, 3] -> [8, {channels}, 3, 3]")
    with torch.no_grad():
        x_t = seeded(1, 1, channels, 8, 8)
        assert denoiser(x_t, torch.tensor([10]), torch.tensor([[3, 1]])).shape == (1, channels, 8, 8)


def test_channels_that_hold_no_latents_are_left_out() -> None:
    """An inpainting network has 9 inputs, one that learns its variance twice the outputs."""
    inpainting = {**SD15, "in_channels": 9}
    foreign = foreign_unet(inpainting)
    denoiser, report = adapted(inpainting, foreign)
    assert torch.equal(denoiser.unet.conv_in.weight, foreign.conv_in.weight[:, :4])
    assert list(report.adapted) == ["conv_in.weight"]
    assert "of 9 input channels the last 5 hold no latents" in report.notes[0]
    variance = {**SD15, "out_channels": 8}
    denoiser, report = adapted(variance, foreign_unet(variance))
    assert denoiser.unet.conv_out.weight.shape[0] == 4
    assert set(report.adapted) == {"conv_out.weight", "conv_out.bias"}


@pytest.mark.parametrize("changes", [{"num_class_embeds": 10}, {"class_embed_type": "timestep"}])
def test_a_class_embedding_of_its_own_is_left_out_and_said(changes: dict[str, Any]) -> None:
    config = {**SD15, **changes}
    _, report = adapted(config, foreign_unet(config))
    assert report.unused
    assert all(name.startswith("class_embedding.") for name in report.unused)
    assert "its class embedding is left out" in report.notes[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"encoder_hid_dim_type": "text_image_proj", "encoder_hid_dim": 8},
            "encoder_hid_dim_type is 'text_image_proj'",
        ),
        ({"addition_embed_type": "image"}, "addition_embed_type is 'image'"),
        ({"attention_type": "gated"}, "attention_type is 'gated'"),
        ({"class_embeddings_concat": True}, "class_embeddings_concat is True"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type"),
        ({"up_block_types": ["UpBlock2D", "SimpleCrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"]}, "SimpleCrossAttnUp"),
        ({"cross_attention_dim": [24, 24, 32, 24]}, "tokens of different widths"),
    ],
)
def test_conditions_that_labels_cannot_stand_for_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        adapt_unet({**SD15, **changes}, {}, latent_shape=LATENTS, dropout=0.0)


def test_latents_that_cannot_be_halved_as_often_as_the_network_does_are_refused() -> None:
    with pytest.raises(ConfigError, match="latents of 12 x 12 cannot be halved 3 times"):
        adapt_unet(SD15, {}, latent_shape=(4, 12, 12), dropout=0.0)


def test_weights_that_are_not_those_of_the_config_are_refused_by_name() -> None:
    tensors = foreign_unet(SD15).state_dict()
    less = {name: one for name, one in tensors.items() if name != "mid_block.resnets.0.conv1.weight"}
    other = {**tensors, "time_embedding.linear_1.weight": torch.zeros(3, 3)}
    for wrong, words in (
        (less, "mid_block.resnets.0.conv1.weight is missing"),
        (other, r"time_embedding.linear_1.weight \[3, 3\] -> \[32, 8\]"),
        ({**tensors, "lora.up": torch.zeros(1)}, "lora.up has no place"),
        ({**tensors, "conv_in.weight": torch.zeros(8, 5, 3, 3)}, "conv_in.weight"),
    ):
        with pytest.raises(CheckpointError, match=words):
            adapt_unet(SD15, wrong, latent_shape=LATENTS, dropout=0.0)
    sdxl = {name: one for name, one in foreign_unet(SDXL).state_dict().items() if "add_embedding" not in name}
    with pytest.raises(CheckpointError, match="added condition"):
        adapt_unet(SDXL, sdxl, latent_shape=LATENTS, dropout=0.0)


def test_a_config_that_lacks_keys_has_the_defaults_of_diffusers(tmp_path: Path) -> None:
    foreign = foreign_unet(SD15)
    foreign.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert len(written) > len(SD15)
    short, _ = adapt_unet(SD15, foreign.state_dict(), latent_shape=LATENTS, dropout=0.0)
    full, _ = adapt_unet(written, foreign.state_dict(), latent_shape=LATENTS, dropout=0.0)
    assert {key: short.config[key] for key in written if key[0] != "_"} == {
        key: full.config[key] for key in written if key[0] != "_"
    }
