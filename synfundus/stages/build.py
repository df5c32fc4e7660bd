"""Construction of objects from sections of the config, shared by all jobs."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from synfundus.artifacts.model import Model, ModelSetup
from synfundus.config.auto import definite
from synfundus.config.diffusion import DiffusionConfig, UNetConfig
from synfundus.config.generation import SAMPLING_DEFAULTS, SampleConfig
from synfundus.config.machine import LaunchConfig
from synfundus.config.training import AutoencoderConfig, AutoencoderLossConfig, Precision
from synfundus.diffusion import parametrisation
from synfundus.diffusion.flow import FlowPath, FlowTime, ForwardProcess
from synfundus.diffusion.sampling import FLOW_SAMPLERS, SamplerName, SamplerSettings, scheduler_for
from synfundus.diffusion.schedule import build_schedule
from synfundus.distributed.agreement import together
from synfundus.distributed.lost_ranks import device_fault
from synfundus.distributed.numerics import set_tf32
from synfundus.distributed.world import World, torch_device
from synfundus.errors import DataError
from synfundus.labels.schema import LabelSchema
from synfundus.models.attention import apply_attention, choose_attention, probe_shapes
from synfundus.models.autoencoder import LatentAutoencoder, build_autoencoder
from synfundus.models.autoencoder_objective import PatchDiscriminator
from synfundus.models.compilation import compile_blocks, require_compilation
from synfundus.models.conditioner import LabelConditioner
from synfundus.models.nhwc.networks import keep_channels_last, kernels_for
from synfundus.models.unet import ConditionalDenoiser, build_unet
from synfundus.seeding import derive_key
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import Console
from synfundus.training.memory.rehearsal import is_out_of_memory

DISCRIMINATOR_CHANNELS = 64


def torch_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of a precision.

    Raises:
        ConfigError: It is ``auto``, see `definite`.
    """
    return torch.bfloat16 if definite(precision) == "bf16" else torch.float32


def autoencoder(section: AutoencoderConfig, *, image_size_px: int, seed: int) -> LatentAutoencoder:
    """Build an autoencoder with random weights, by the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(seed, "init", "codec") % 2**63)
        return build_autoencoder(
            image_size_px=image_size_px,
            latent_channels=section.latent_channels,
            block_out_channels=section.block_out_channels,
            block_size_px=section.block_size_px,
            layers_per_block=section.layers_per_block,
            norm_num_groups=section.norm_num_groups,
            mid_block_attention=section.mid_block_attention,
            linear_path=section.linear_path,
        )


def discriminator(section: AutoencoderLossConfig, *, seed: int) -> PatchDiscriminator | None:
    """Build the discriminator of an autoencoder's training; None without an adversarial term."""
    if section.adversarial_weight == 0:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # not a key of it: runs from before, stopped without a checkpoint, begin as they did
        return PatchDiscriminator(base_channels=DISCRIMINATOR_CHANNELS, num_layers=3, norm_num_groups=16)


def attention(model: Any, config: LaunchConfig, *, dtype: torch.dtype, world: World, console: Console) -> None:  # noqa: ANN401 - a diffusers model
    """Choose the attention kernel of a model without measuring, the same on all ranks, install and report it.

    Collective.

    Raises:
        ConfigError: On every rank when one cannot use the configured kernel.
    """
    shapes = probe_shapes(model)
    if not shapes:
        return
    with together(world):
        requested = config.attention
        # its backward pass adds in an order that depends on timing
        if requested == "xformers" and torch.are_deterministic_algorithms_enabled():
            console.warning("launch.attention=xformers is not deterministic, also with deterministic=true")
        choice = choose_attention(requested=requested, shapes=shapes, dtype=dtype, device=torch_device(world))
    apply_attention(model, choice)
    console.message(f"attention of {type(model).__name__}: {choice.backend} ({choice.reason})")


def channels_last(
    *networks: nn.Module, world: World, console: Console, dtype: torch.dtype | None = None, weights: bool = False
) -> None:
    """Have networks of diffusers keep NHWC memory on a GPU, which gains by it, alike on all ranks. Collective.

    Args:
        networks: Changed in place; they gain only by weights in NHWC memory.
        world: The job.
        console: Where a rank's reason is shown if group norms have to be torch's, which return NCHW.
        dtype: Type they will compute in; None = that of their weights.
        weights: Whether to turn the weights; a training's engine gives it weights of its own.

    Raises:
        RuntimeError: The GPU failed, or its memory is full.
    """
    if world.device != "cuda":
        return
    operations, obstacle = None, ""
    try:
        for kind in {dtype or next(network.parameters()).dtype for network in networks}:
            operations = kernels_for(torch_device(world), kind)
    except Exception as error:
        if is_out_of_memory(error) or device_fault(error, rank=world.rank):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line for line in lines if re.search(r"error:|failed|fatal", line, re.IGNORECASE)), lines[-1])
        obstacle = f"do not run on {socket.gethostname()} ({reason.strip()})"
    if obstacle := next(filter(None, world.all_gather(obstacle)), ""):
        operations = None
        console.warning(
            f"group norms turn NHWC memory into NCHW, which costs time: their kernels {obstacle}; they need triton, a "
            "C compiler (CC, gcc or clang), the headers of this Python, and a cache folder that can be written"
        )
    for network in networks:
        keep_channels_last(network, operations)
        if weights:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def ready_to_sample(
    model: Model,
    config: LaunchConfig,
    *,
    dtype: torch.dtype,
    world: World,
    console: Console,
    compile_denoiser: bool = False,
) -> None:
    """Choose how a model computes images, in place: kernels of attention, precision, memory format. Collective.

    Raises:
        ConfigError: As `attention`; or on every rank when one cannot compile.
    """
    attention(model.denoiser.unet, config, dtype=dtype, world=world, console=console)
    model.denoiser.to(dtype)
    channels_last(model.denoiser.unet, model.autoencoder.network, world=world, console=console, weights=True)
    if compile_denoiser:
        with together(world):
            require_compilation(torch_device(world))
        count = compile_blocks(model.denoiser.unet, backend="inductor")
        console.message(f"{count} blocks are compiled in the first batch (sample.compile): minutes, once per machine")


def tensor_cores(wanted: bool, world: World, console: Console, *, option: str = "") -> None:
    """Choose how a GPU multiplies fp32 numbers (TF32 or not) and report it; no effect on a CPU."""
    settled = set_tf32(wanted, device=world.device, option=option)
    if settled is not None:
        console.message(settled)


def forward_process(section: DiffusionConfig) -> ForwardProcess:
    """Build the noise schedule, or the flow, of the diffusion section."""
    if section.prediction_type == "flow_velocity":
        return FlowPath(section.num_train_timesteps)
    return build_schedule(
        kind=section.beta_schedule,
        num_timesteps=section.num_train_timesteps,
        beta_start=section.beta_start,
        beta_end=section.beta_end,
        zero_terminal_snr=section.zero_terminal_snr,
    )


def unweighted_start(section: DiffusionConfig) -> str | None:
    """Return what is wrong if the timestep with which every sample begins has no weight in the loss."""
    return parametrisation.unweighted_start(
        schedule=forward_process(section), prediction_type=section.prediction_type, min_snr_gamma=section.min_snr_gamma
    )


def flow_time(section: DiffusionConfig) -> FlowTime | None:
    """Return the distribution of a flow's times; None for a noise schedule."""
    if section.prediction_type != "flow_velocity":
        return None
    flow = section.flow
    return FlowTime(density=flow.time_density, location=flow.location, scale=flow.scale, shift=flow.shift)


def latent_statistics(section: DiffusionConfig, properties: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation for the normalisation of latents, each ``[c]``.

    ``global`` divides all channels by the root mean square of their standard deviations, so that a channel with little
    information stays small and has a smaller share in the loss.

    Args:
        section: The objective.
        properties: Properties of the latent set.
    """
    mean = [float(value) for value in properties["latent_mean"]]
    std = [float(value) for value in properties["latent_std"]]
    if section.latent_scaling == "global":
        std = [math.sqrt(sum(value**2 for value in std) / len(std))] * len(std)
    return mean, std


def schedule_settings(section: DiffusionConfig) -> dict[str, Any]:
    """Return the settings from which an exported pipeline rebuilds the noise schedule or the flow."""
    if section.prediction_type == "flow_velocity":
        return {
            "prediction_type": section.prediction_type,
            "num_timesteps": section.num_train_timesteps,
            "shift": section.flow.shift,
        }
    return {
        "schedule_kind": section.beta_schedule,
        "num_timesteps": section.num_train_timesteps,
        "beta_start": section.beta_start,
        "beta_end": section.beta_end,
        "zero_terminal_snr": section.zero_terminal_snr,
        "prediction_type": section.prediction_type,
    }


def check_sampler(sampler: SamplerName, section: DiffusionConfig) -> None:
    """Check before training that the sampler fits the objective.

    Raises:
        ConfigError: It does not.
    """
    scheduler_for(sampler, schedule_settings(section))


def denoiser(
    section: UNetConfig, *, seed: int, schema: LabelSchema, latent_shape: Sequence[int]
) -> ConditionalDenoiser:
    """Build the U-Net and its conditioner with random weights, by the seed alone.

    Args:
        section: Architecture.
        seed: Of the run.
        schema: Labels to condition on.
        latent_shape: ``(c, lh, lw)``.
    """
    channels, height, width = latent_shape
    if height != width:
        raise DataError(f"latents of {height} x {width} are not square")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(seed, "init", "denoiser") % 2**63)
        unet = build_unet(
            sample_size=height,
            latent_channels=channels,
            block_out_channels=section.block_out_channels,
            layers_per_block=section.layers_per_block,
            attention_levels=section.attention_levels,
            attention_head_dim=section.attention_head_dim,
            cross_attention_dim=section.cross_attention_dim,
            pooled_dim=section.cross_attention_dim,
            norm_num_groups=section.norm_num_groups,
            transformer_layers_per_block=section.transformer_layers_per_block,
            dropout=section.dropout,
            scale_shift_norm=section.scale_shift_norm,
        )
        conditioner = LabelConditioner(
            num_values=schema.num_values,
            ordinal=schema.ordinal,
            token_dim=section.cross_attention_dim,
            pooled_dim=section.cross_attention_dim,
        )
    return ConditionalDenoiser(unet=unet, conditioner=conditioner)


def model_setup(
    section: DiffusionConfig, latents: ShardSet, autoencoder: LatentAutoencoder, sampler: SamplerSettings
) -> ModelSetup:
    """Return the setup of a run's model; its recommended sampler is the configured one, or one that fits."""
    mean, std = latent_statistics(section, latents.properties)
    if section.prediction_type == "flow_velocity" and sampler.sampler not in FLOW_SAMPLERS:
        sampler = replace(sampler, sampler=FLOW_SAMPLERS[0])
    return ModelSetup(
        autoencoder=autoencoder,
        schedule_settings=schedule_settings(section),
        label_schema=latents.label_schema,
        latent_mean=tuple(mean),
        latent_std=tuple(std),
        image_size_px=int(latents.properties["image_size_px"]),
        latent_set_identity=latents.identity,
        autoencoder_fingerprint=str(latents.properties["autoencoder_fingerprint"]),
        recommended_sampling=sampler,
    )


def sampler_settings(
    section: SampleConfig, recommended: SamplerSettings | None = None, *, schema: LabelSchema | None = None
) -> SamplerSettings:
    """Return the settings of the sampler: as configured, else as the model recommends, else the defaults.

    Args:
        section: The configuration.
        recommended: What the model recommends.
        schema: Its labels, with which those of the guidance are checked; None = leave those out.

    Raises:
        ConfigError: A label that the schema does not have.
        DataError: A value that a label does not have.
    """
    base = SAMPLING_DEFAULTS if recommended is None else asdict(recommended)
    given = {name: getattr(section, name) for name in SAMPLING_DEFAULTS}
    chosen = {**base, **{name: value for name, value in given.items() if value not in (None, {})}}
    weights, negative = chosen.pop("guidance_weight"), chosen.pop("negative_label")
    if schema is None:
        return SamplerSettings(**chosen)
    values = {name: schema.check_value(name, value) for name, value in negative.items()}
    return SamplerSettings(
        **chosen,
        guidance_weight={schema[name].name: weight for name, weight in weights.items()},
        negative_label={name: value for name, value in values.items() if value is not None},
    )
