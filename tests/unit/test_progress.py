"""Rates, utilisation, waits and the time left, by arithmetic."""

from __future__ import annotations

import copy
import math
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_engine import run_ranks
from torch import nn

from synfundus.config.loader import load_config
from synfundus.distributed.world import LocalWorld, World
from synfundus.stages.training_setup import warn_of_long_run
from synfundus.telemetry.console import SilentConsole
from synfundus.training.memory.footprint import GIB, find_gpu
from synfundus.training.progress import (
    CLOCK_FIGURES,
    RATE_HALF_LIFE_S,
    Interval,
    Meter,
    StepCost,
    mean_waits_and_peak,
    peak_memory_bytes,
)
from synfundus.training.step_cost import count_network, long_run, meta_copy

INTERVAL = Interval(images=800, training_s=8.0, wall_s=10.0, waited_s=2.0, stalled_s=1.5, peak_bytes=3 * GIB)


def figures(cost: StepCost | None = None, *, ranks: int = 4) -> dict[str, float]:
    return Meter(budget_images=10_000, ranks=ranks, cost=cost).figures(800, INTERVAL)


def test_rates_are_of_the_training_time_and_stalls_of_the_time_on_the_wall() -> None:
    row = figures()
    assert (row["images_per_s"], row["images_per_s_per_gpu"]) == (100.0, 25.0)
    assert (row["data_wait_percent"], row["checkpoint_stall_percent"]) == (25.0, 15.0)
    assert row["peak_memory_gib"] == 3.0
    assert not {"mfu", "hfu", "tflops_per_s", "flops_per_image"} & set(row)


def test_utilisation_is_what_arrives_of_the_peak_of_all_gpus() -> None:
    row = figures(StepCost(flops_per_image=2e12, recomputed=1.0, peak_flops=100e12))
    assert row["tflops_per_s"] == pytest.approx(200.0)
    assert row["mfu"] == pytest.approx(0.5), "200 of 4 x 100"
    assert "hfu" not in row
    half = figures(StepCost(flops_per_image=2e12, recomputed=1.0, peak_flops=100e12), ranks=8)
    assert half["mfu"] == pytest.approx(row["mfu"] / 2)


def test_what_is_computed_again_counts_for_the_hardware_only() -> None:
    row = figures(StepCost(flops_per_image=2e12, recomputed=4 / 3, peak_flops=100e12))
    assert row["mfu"] == pytest.approx(0.5)
    assert row["hfu"] == pytest.approx(2 / 3)


def test_a_processor_without_a_known_peak_has_operations_but_no_utilisation() -> None:
    row = figures(StepCost(flops_per_image=2e12, recomputed=1.0, peak_flops=None))
    assert (row["flops_per_image"], row["tflops_per_s"]) == (2e12, 200.0)
    assert "mfu" not in row


def test_at_a_steady_rate_the_time_left_is_exact_and_holds_what_is_done_in_between() -> None:
    meter = Meter(budget_images=8000, ranks=1, cost=None)
    left = [meter.figures(800 * number, INTERVAL)["eta_s"] for number in range(1, 11)]
    assert left == pytest.approx([10.0 * (10 - number) for number in range(1, 11)])


def test_a_rate_that_changed_is_believed_after_a_while() -> None:
    meter = Meter(budget_images=10**9, ranks=1, cost=None)
    slow, fast = (replace(INTERVAL, wall_s=RATE_HALF_LIFE_S, images=images) for images in (100, 200))
    for _ in range(30):
        meter.figures(0, slow)
    per_image = [meter.figures(0, fast)["eta_s"] / 10**9 for _ in range(20)]
    assert RATE_HALF_LIFE_S / 200 < per_image[0] < RATE_HALF_LIFE_S / 100
    assert per_image[0] == pytest.approx(RATE_HALF_LIFE_S / 150), "half of what it knew"
    assert per_image[-1] == pytest.approx(RATE_HALF_LIFE_S / 200, rel=1e-4)


def test_before_any_image_the_time_left_is_unknown() -> None:
    assert math.isnan(Meter(budget_images=8, ranks=1, cost=None).figures(0, replace(INTERVAL, images=0))["eta_s"])


def test_waits_are_means_and_memory_is_that_of_the_fullest_rank() -> None:
    def work(world: World) -> tuple[float, float, int]:
        return mean_waits_and_peak(world, waited_s=float(world.rank), stalled_s=2.0, peak_bytes=10 * world.rank)

    assert run_ranks(3, work) == [(1.0, 2.0, 20)] * 3


def test_the_peak_of_a_process_on_the_host_is_at_least_what_it_has_now() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert 0.9 * pages * resource.getpagesize() < peak_memory_bytes(torch.device("cpu")) < 2**40


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", None),
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
        ("NVIDIA T4G", None),
        ("NVIDIA B200", "b200"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_a_gpu_is_known_by_the_name_cuda_gives_it_and_a_weaker_sister_is_not(name: str, gpu: str | None) -> None:
    assert find_gpu(name) == gpu


def test_a_copy_on_the_meta_device_counts_as_the_network_and_leaves_it_alone() -> None:
    network = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    network[2].weight.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    shadow = meta_copy(network)
    assert {tensor.device.type for tensor in shadow.state_dict().values()} == {"meta"}
    count = count_network(shadow, torch.empty(3, 8, device="meta"))
    assert count.flops_forward == 2 * 3 * (8 * 4 + 4 * 2)
    assert count.parameters == sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert all(network.state_dict()[name].equal(tensor) for name, tensor in before.items())


def test_the_figures_of_the_clock_are_all_named() -> None:
    row = figures(StepCost(flops_per_image=2e12, recomputed=4 / 3, peak_flops=100e12))
    assert set(row) - {"budget_images", "flops_per_image"} == set(CLOCK_FIGURES)


class Warned(SilentConsole):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def test_a_run_on_processors_of_more_than_a_month_is_told_before_it_starts() -> None:
    per_image, rate = 5e11, 1e11
    assert long_run(images=518_000, flops_per_image=per_image, flops_per_s=rate) is None
    assert "at least 30 days" in str(long_run(images=518_500, flops_per_image=per_image, flops_per_s=rate))
    said = str(long_run(images=20_000_000, flops_per_image=per_image, flops_per_s=rate))
    assert "at least 3 years" in said
    assert "--preset demo-cpu" in said


def test_the_default_network_and_budget_are_too_much_for_a_processor_and_those_of_the_demo_are_not() -> None:
    cost = StepCost(flops_per_image=6e11, recomputed=1.0, peak_flops=None)
    fp32 = ["train.loop.precision=fp32"]
    default, demo = (
        load_config(preset=name, file=None, settings=fp32, flags=[]).config.train for name in (None, "demo-cpu")
    )
    for section, flops, expected in ((default, 6e11, 1), (demo, 5e9, 0)):
        console = Warned()
        warn_of_long_run(replace(cost, flops_per_image=flops), section.loop, LocalWorld(), console)
        warn_of_long_run(None, section.loop, LocalWorld(), console)  # another rank than 0
        assert len(console.warnings) == expected
