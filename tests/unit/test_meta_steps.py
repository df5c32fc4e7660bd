"""The training steps of all presets at full size on the meta device.

No constant is left on a CPU, and the host reads no value: on a GPU it would wait for all kernels before it.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synfundus.config.auto import assumed_channels_last
from synfundus.config.loader import list_presets, load_config
from synfundus.config.schema import RunConfig
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.stages import build
from synfundus.stages.train_vae import job as train_vae
from synfundus.stages.trial_step import latent_shape, random_batch, step_of
from synfundus.training.step import AutoencoderStep, LatentDiffusionStep

META = torch.device("meta")
IMAGES = 2


def preset(name: str, *settings: str) -> RunConfig:
    precision = ("train.loop.precision=bf16", "train_vae.loop.precision=bf16")
    return load_config(preset=name, file=None, settings=[*precision, *settings], flags=[]).config


def shape_of(config: RunConfig) -> tuple[int, int, int]:
    return latent_shape(config.train_vae.autoencoder, image_size_px=config.prepare.image_size_px)


def diffusion_step(config: RunConfig) -> LatentDiffusionStep:
    """Return the step of `train` as on a GPU: its noise schedule is there, its network in the run's precision."""
    section, shape = config.train, shape_of(config)
    with META:
        denoiser = build.denoiser(section.unet, seed=0, schema=DEFAULT_LABEL_SCHEMA, latent_shape=shape)
    if section.loop.gradient_checkpointing:
        denoiser.unet.enable_gradient_checkpointing()
    return step_of(section, denoiser, shape).to(META)


def check_gradients(step: nn.Module, batch: dict[str, Tensor]) -> None:
    """Run forward and backward; every parameter gets a gradient of its type."""
    loss, sums = step(batch, 10**9)
    assert loss.device == META
    assert all(one.device == META for one in sums.values())
    loss.backward()
    for name, parameter in step.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.shape, parameter.grad.dtype) == (parameter.shape, parameter.dtype), name


@pytest.fixture
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast does not know the meta device."""

    def nothing(*_: Any, **__: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    monkeypatch.setattr(torch, "autocast", nothing)


@pytest.mark.parametrize("name", list_presets())
def test_a_step_of_the_unet_needs_nothing_from_the_host(name: str) -> None:
    config = preset(name)
    batch = random_batch(config.train.diffusion, IMAGES, shape_of(config), META)
    check_gradients(diffusion_step(config), batch)


def test_a_step_of_flow_matching_too() -> None:
    flow = ("prediction_type=flow_velocity", "zero_terminal_snr=false", "min_snr_gamma=null")
    config = preset("fundus256", *(f"train.diffusion.{one}" for one in flow))
    check_gradients(diffusion_step(config), random_batch(config.train.diffusion, IMAGES, shape_of(config), META))


@pytest.mark.usefixtures("_no_autocast")
@pytest.mark.parametrize("name", list_presets())
def test_a_step_of_the_autoencoder_with_its_discriminator_needs_nothing_from_the_host(name: str) -> None:
    config = preset(name, "train_vae.loss.adversarial_weight=0.1")
    section, size = config.train_vae, config.prepare.image_size_px
    with META:
        autoencoder = build.autoencoder(section.autoencoder, image_size_px=size, seed=0)
        objective = train_vae._objective(autoencoder, section.loss, seed=0)
        batch = {
            "pixels": torch.empty(IMAGES, size, size, 3, dtype=torch.uint8),
            "posterior_noise": torch.empty(IMAGES, *shape_of(config)),
            "weights": torch.empty(IMAGES),
        }
    if section.loop.gradient_checkpointing:
        autoencoder.network.enable_gradient_checkpointing()
    assert objective.discriminator is not None
    step = AutoencoderStep(objective.to(torch.bfloat16), channels_last=assumed_channels_last(section.loop))
    check_gradients(step, batch)


def test_a_value_that_the_host_reads_is_found() -> None:
    """What these tests rely on."""
    for read in (Tensor.item, bool, float, lambda one: one.to("cpu")):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(torch.empty(1, device=META))
