"""What a run costs, by formula and counted."""

from __future__ import annotations

import functools
from typing import Any, get_args

import pytest
import torch
import torch.utils.checkpoint
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from synfundus.config.loader import list_presets, load_config
from synfundus.config.machine import PlanConfig
from synfundus.distributed.world import LocalWorld
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.stages import build
from synfundus.stages.plan import job as plan
from synfundus.stages.plan.estimate import work_out
from synfundus.stages.plan.planned import Counts, PlannedRun, count_networks
from synfundus.stages.plan.report import report
from synfundus.telemetry.console import SilentConsole
from synfundus.training.duration import stage_time
from synfundus.training.memory.footprint import (
    GPUS,
    checkpoint_bytes,
    latent_set_bytes,
    snapshot_bytes,
    state_bytes,
)
from synfundus.training.periodic import Periodic
from synfundus.training.step_cost import Kernels, count_network, denoiser_cost


class Talk(SilentConsole):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@functools.cache
def counted(preset: str, checkpointing: bool) -> Counts:
    """Count a preset's networks once."""
    choice = f"train.loop.gradient_checkpointing={str(checkpointing).lower()}"
    return count_networks(PlannedRun.of(load_config(preset=preset, file=None, settings=[choice], flags=[]).config))


def planned(preset: str, *settings: str, talk: Talk | None = None) -> dict[str, Any]:
    """Plan a preset with settings that leave its networks alone."""
    run = PlannedRun.of(load_config(preset=preset, file=None, settings=list(settings), flags=[]).config)
    summary = work_out(run, counted(preset, run.train.loop.gradient_checkpointing))
    report(run, talk or Talk(), summary)
    return summary


@given(st.integers(1, 10**10), st.integers(1, 4096))
def test_the_states_of_bf16_are_2p_and_16_shares_and_averages_4_more(parameters: int, ranks: int) -> None:
    def states(num_averages: int) -> int:
        return state_bytes(
            parameters=parameters,
            ranks=ranks,
            weight_bytes=2,
            num_averages=num_averages,
        ).total

    assert 0 <= states(0) - (2 * parameters + 16 * parameters / ranks) < 16
    assert 0 <= states(2) - (2 * parameters + 24 * parameters / ranks) < 24


def test_a_checkpoint_and_a_latent_set_have_the_size_they_have_on_disk() -> None:
    assert checkpoint_bytes(parameters=1000, num_averages=1) == 4 * 1000 * 5
    assert latent_set_bytes(num_images=10, latent_shape=(4, 64, 64), with_flip=False) == 10 * 65536
    assert latent_set_bytes(num_images=10, latent_shape=(4, 64, 64), with_flip=True) == 20 * 65536


@pytest.mark.parametrize(("every", "times"), [(0, 1), (25, 4), (30, 4), (100, 1), (400, 1)])
def test_snapshots_are_taken_at_boundaries_and_at_the_end(every: int, times: int) -> None:
    """As `train` takes them: at 100 of 100 images, and before."""
    work = Periodic("snapshots", every, lambda _: None, at_end=True)
    taken = sum(work.due(before, before + 5, 100) for before in range(0, 100, 5))
    assert taken == times
    size = snapshot_bytes(parameters=1000, num_widths=2, budget_images=100, every_images=every)
    assert size == 4 * 1000 * 2 * times


def test_twice_the_gpus_take_half_the_hours_and_as_many_gpu_hours() -> None:
    one, two = (stage_time(images=10**6, images_per_s=30.0 * gpus, gpus=gpus, price=2.0) for gpus in (1, 2))
    gpu_hours = 10**6 / 30 / 3600
    assert one["hours"] == pytest.approx(gpu_hours)
    assert two["hours"] == pytest.approx(gpu_hours / 2)
    for stage in (one, two):
        assert stage["gpu_hours"] == pytest.approx(gpu_hours)
        assert stage["cost"] == pytest.approx(2 * gpu_hours)
    assert stage_time(images=1, images_per_s=1.0, gpus=1, price=None)["cost"] is None


class Attention(nn.Module):
    """A linear layer and attention of its output to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.linear(inputs)
        return torch.nn.functional.scaled_dot_product_attention(hidden, hidden, hidden)


def test_counting_is_exact_for_a_layer_one_can_count_by_hand() -> None:
    with torch.device("meta"):
        count = count_network(Attention(), torch.empty(2, 4, 32, 16))
    tokens, width = 2 * 4 * 32, 16
    assert count.parameters == width * width
    assert count.flops_forward == 2 * tokens * width * width + 4 * tokens * 32 * width
    # kept: the input, the hidden tensor once though it is query, key and value, and the output
    assert count.activation_bytes == 3 * tokens * width * 4


def stable_diffusion_2() -> UNet2DConditionModel:
    """Return the U-Net of Stable Diffusion 2 at 512 px, without its weights."""
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
    )


def test_a_published_run_comes_out_at_a_utilisation_within_the_usual() -> None:
    """MosaicML 2023, Stable Diffusion 2 from precomputed latents: 128 A100, 512 px, 4,590 images/s."""
    with torch.device("meta"):
        count = count_network(stable_diffusion_2(), torch.empty(1, 4, 64, 64), torch.zeros(1), torch.empty(1, 77, 1024))
    assert count.parameters == pytest.approx(865.9e6, rel=1e-3)
    assert 0.25 < 4590 * count.flops_model / (128 * GPUS["a100"].flops) < 0.31


def test_at_the_same_hfu_recomputation_lowers_rate_and_mfu_by_the_same_factor() -> None:
    plain, checkpointed = (
        planned("fundus512", "plan.mfu=0.4", f"train.loop.gradient_checkpointing={choice}")
        for choice in ("false", "true")
    )
    more = 1 + checkpointed["flops_recomputed"] / checkpointed["flops_per_image"]
    assert 1.2 < more < 4 / 3
    assert checkpointed["gpu_s"] == pytest.approx(plain["gpu_s"] * more)
    for run, factor in ((plain, 1.0), (checkpointed, more)):
        step_s = run["global_batch_size"] / run["images_per_s"]
        assert step_s == pytest.approx(run["gpu_s"] + run["network_s"])
        assert run["hfu"] == 0.4
        assert run["mfu"] * factor == pytest.approx(0.4 * run["gpu_s"] / step_s), "of the whole step"


class Stack(nn.Module):
    """Linear layers, some of them under a checkpoint, or all under one more."""

    def __init__(self, checkpointed: int, *, nested: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(4))
        self.checkpointed, self.nested = checkpointed, nested

    def run(self, inputs: torch.Tensor) -> torch.Tensor:
        for number, layer in enumerate(self.layers):
            if number < self.checkpointed:
                inputs = torch.utils.checkpoint.checkpoint(layer, inputs, use_reentrant=False)
            else:
                inputs = layer(inputs)
        return inputs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.nested:
            whole: torch.Tensor = torch.utils.checkpoint.checkpoint(self.run, inputs, use_reentrant=False)
            return whole
        return self.run(inputs)


@pytest.mark.parametrize("checkpointed", range(5))
def test_checkpointing_adds_one_forward_pass_of_what_is_checkpointed(checkpointed: int) -> None:
    with torch.device("meta"):
        count = count_network(Stack(checkpointed), torch.empty(3, 8))
        nested = count_network(Stack(checkpointed, nested=True), torch.empty(3, 8))
    layer = 2 * 3 * 8 * 8
    assert count.flops_forward == nested.flops_forward == 4 * layer
    assert count.flops_recomputed == checkpointed * layer
    assert nested.flops_recomputed == (4 + checkpointed) * layer
    assert count.flops_model == 3 * 4 * layer
    assert count.flops_hardware == count.flops_model + checkpointed * layer
    # a product of matrices: one launch a layer
    assert count.launches_forward == nested.launches_forward == 4
    assert count.launches_recomputed == checkpointed
    assert nested.launches_recomputed == 4 + checkpointed


def test_what_is_counted_as_recomputed_is_what_a_backward_pass_of_the_u_net_computes_again() -> None:
    done = {}
    for checkpointed in (False, True):
        with torch.device("meta"):
            unet = UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(32, 64),
                down_block_types=("DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D"),
                mid_block_type="UNetMidBlock2D",
                cross_attention_dim=16,
            ).train()
            inputs = (torch.empty(1, 4, 8, 8), torch.zeros(1), torch.empty(1, 5, 16))
        if checkpointed:
            unet.enable_gradient_checkpointing()
        count = count_network(unet, *inputs)
        counter = FlopCounterMode(display=False)
        with counter, torch.utils.checkpoint.set_checkpoint_early_stop(False):
            unet(*inputs).sample.sum().backward()
        done[checkpointed] = counter.get_total_flops(), count
    (plain, without), (again, with_it) = done[False], done[True]
    assert without.flops_recomputed == 0
    assert without.flops_forward == with_it.flops_forward
    assert 0 < with_it.flops_recomputed == again - plain


@pytest.mark.parametrize("checkpointing", [False, True])
def test_plan_and_run_count_the_same_operations(checkpointing: bool) -> None:
    settings = [f"train.loop.gradient_checkpointing={str(checkpointing).lower()}", "plan.mfu=0.4"]
    config = load_config(preset="fundus256", file=None, settings=settings, flags=[]).config
    summary = plan.run(config, LocalWorld(), Talk())
    with torch.device("meta"):
        denoiser = build.denoiser(
            config.train.unet, seed=config.seed, schema=DEFAULT_LABEL_SCHEMA, latent_shape=(4, 32, 32)
        )
    cost = denoiser_cost(
        denoiser,
        latent_shape=(4, 32, 32),
        num_labels=len(DEFAULT_LABEL_SCHEMA.labels),
        kernels=Kernels(bf16=True, tf32=config.train.loop.tf32, gradient_checkpointing=checkpointing),
        world=LocalWorld(),
    )
    assert cost is not None
    assert cost.flops_per_image == summary["flops_per_image"]
    assert cost.recomputed == pytest.approx(1 + summary["flops_recomputed"] / summary["flops_per_image"])
    work = cost.flops_per_image * cost.recomputed * summary["global_batch_size"] / summary["ranks"]
    assert summary["gpu_s"] == pytest.approx(work / (0.4 * GPUS["h100"].flops))
    assert (1.25 < cost.recomputed < 4 / 3) if checkpointing else cost.recomputed == 1.0


def test_every_gpu_that_can_be_asked_for_is_known() -> None:
    assert set(get_args(PlanConfig.model_fields["gpu"].annotation)) == set(GPUS)


@pytest.mark.parametrize("preset", list_presets())
def test_every_preset_is_planned_and_fits_its_gpus(preset: str) -> None:
    talk = Talk()
    config = load_config(preset=preset, file=None, settings=["plan.price_per_gpu_hour=2"], flags=[]).config
    summary = plan.run(config, LocalWorld(), talk)
    assert summary["fits"], summary["memory"]
    assert not talk.warnings
    assert summary["largest_micro_batch_size"] >= summary["micro_batch_size"]
    assert summary["cost"] == pytest.approx(2 * summary["gpu_hours"])
    assert summary["hours"] * summary["images_per_s"] * 3600 == pytest.approx(config.train.loop.budget_images)


def test_a_micro_batch_that_is_found_at_start_is_planned_as_the_largest_that_fits() -> None:
    def run(micro: int | str, gpu: str) -> dict[str, Any]:
        settings = ["train.loop.global_batch_size=6144", f"train.loop.micro_batch_size={micro}", f"plan.gpu={gpu}"]
        return planned("fundus512", *settings)

    small, large = run("auto", "a100-40"), run("auto", "h200")
    assert small["micro_batch_size"] < large["micro_batch_size"]
    for summary, gpu in ((small, "a100-40"), (large, "h200")):
        size, share = summary["micro_batch_size"], 6144 // summary["ranks"]
        assert summary["fits"]
        assert share % size == 0
        larger = next(count for count in range(size + 1, share + 1) if share % count == 0)
        assert run(size, gpu)["fits"]
        assert not run(larger, gpu)["fits"]


def test_a_run_in_fp32_is_planned_with_the_peak_of_fp32() -> None:
    def gpu_s(*settings: str) -> float:
        return float(planned("fundus512", "plan.gpu=a100", *settings)["gpu_s"])

    fp32, slow = "train.loop.precision=fp32", "train.loop.tf32=false"
    bf16 = gpu_s("plan.mfu=0.3")
    assert gpu_s("plan.mfu=0.3", fp32) == pytest.approx(2 * bf16)
    assert gpu_s("plan.mfu=0.3", fp32, slow) == pytest.approx(16 * bf16)
    # at the card's own utilisation: products far below the tensor cores' speed leave the memory less to hold up
    assert gpu_s(fp32) == pytest.approx(2 * gpu_s())
    assert 5 * gpu_s() < gpu_s(fp32, slow) < 12 * gpu_s()
    for gpu in GPUS.values():
        assert gpu.flops > gpu.tf32_flops >= gpu.fp32_flops


def test_states_that_are_offloaded_are_planned_in_the_memory_of_the_node() -> None:
    talk = Talk()
    here = planned("fundus512", talk=talk)
    assert here["host_memory"] == 0
    assert not any("offloaded" in line for line in talk.lines)
    away = planned("fundus512", "launch.ds_config=zero2_offload.json", talk=talk)
    assert away["memory"]["weights"] == here["memory"]["weights"]
    assert {away["memory"][name] for name in ("gradients", "masters", "moments", "averages")} == {0}
    assert away["host_memory"] == here["states"] - away["states"] > 0
    assert away["largest_micro_batch_size"] > here["largest_micro_batch_size"]
    assert any("offloaded to the memory of a node" in line for line in talk.lines)


def test_what_does_not_fit_is_said_with_what_would() -> None:
    talk = Talk()
    settings = [
        "train.loop.micro_batch_size=64",
        "train.loop.global_batch_size=512",
        "train.loop.gradient_checkpointing=false",
    ]
    summary = planned("fundus512", *settings, "plan.gpu=a100-40", talk=talk)
    assert not summary["fits"]
    largest = summary["largest_micro_batch_size"]
    warning = next(text for text in talk.warnings if text.startswith("train: "))
    assert f"train.loop.micro_batch_size={largest} fits" in warning
    assert "gradient_checkpointing" in warning
    smaller = ["train.loop.micro_batch_size=" + str(2 ** (largest.bit_length() - 1)), *settings[1:], "plan.gpu=a100-40"]
    assert planned("fundus512", *smaller)["fits"]
