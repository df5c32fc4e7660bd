"""The plan of the whole chain: against published figures, counted launches, and itself."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from synfundus.config.loader import load_config
from synfundus.stages.plan.estimate import GOOD_EFFICIENCY, work_out
from synfundus.stages.plan.planned import Counts, PlannedRun, count_networks
from synfundus.stages.plan.report import advice, report
from synfundus.telemetry.console import SilentConsole
from synfundus.training.duration import LAUNCH_S, step_launches
from synfundus.training.memory.footprint import GPUS, PRODUCTS

PRESETS = ("fundus256", "fundus512", "fundus1024")


class Page(SilentConsole):
    """Keeps what is shown."""

    def __init__(self) -> None:
        self.tables: dict[str, list[list[str]]] = {}
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def warning(self, text: str) -> None:
        self.said.append(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        assert all(len(row) == len(columns) for row in rows)
        self.tables[title] = [list(row) for row in rows]


def run_of(preset: str, *settings: str) -> PlannedRun:
    return PlannedRun.of(load_config(preset=preset, file=None, settings=list(settings), flags=[]).config)


@functools.cache
def counted(preset: str) -> Counts:
    """Count a preset's networks once."""
    return count_networks(run_of(preset))


def planned(preset: str, *settings: str) -> dict[str, Any]:
    """Plan a preset with settings that leave its networks alone."""
    return work_out(run_of(preset, *settings), counted(preset))


def test_the_launches_of_fundus256_are_those_counted_on_a_cuda_build() -> None:
    """torch 2.13.0+cu130, DeepSpeed 0.19.8, one rank: 1,122 forward, some 4,100 a micro-batch, 3,127 in the update."""
    count = counted("fundus256").denoiser
    micro_batch, step = step_launches(
        forward=count.launches_forward,
        recomputed=0,
        bundles=count.bundles,
        accumulation_steps=1,
        ranks=1,
        compiled=False,
    )
    assert count.launches_forward == pytest.approx(1051, rel=0.03), "the network alone"
    assert micro_batch == pytest.approx(4100, rel=0.15)
    assert step - micro_batch == pytest.approx(3700, rel=0.15), "copies and fills included"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("gpu", GPUS)
def test_no_preset_is_planned_faster_than_the_host_launches_its_kernels(preset: str, gpu: str) -> None:
    summary = planned(preset, f"plan.gpu={gpu}", "plan.mfu=1", "launch.gpus_per_node=32")
    step_s = summary["global_batch_size"] / summary["images_per_s"]
    assert step_s >= summary["launches"] * summary["accumulation_steps"] * LAUNCH_S
    assert step_s >= 0.999999 * (summary["gpu_s"] + summary["network_s"])
    autoencoder = summary["stages"]["train-vae"]
    assert autoencoder["launching_s"] <= autoencoder["global_batch_size"] / autoencoder["images_per_s"]


def test_fewer_launches_are_planned_for_compiled_blocks_and_the_advice_says_so() -> None:
    small = ("train.loop.global_batch_size=256", "train.loop.micro_batch_size=32", "plan.mfu=0.9")
    eager, compiled = (planned("fundus256", *small, f"train.loop.compile={choice}") for choice in ("false", "true"))
    assert 0.7 * eager["launches"] < compiled["launches"] < 0.9 * eager["launches"]
    assert compiled["hours"] < eager["hours"]
    assert any("waits for the host" in line for line in advice(run_of("fundus256", *small), eager))


def test_the_plan_of_fundus512_is_the_published_rate_of_the_same_work() -> None:
    """MosaicML (github.com/mosaicml/diffusion, README): Stable Diffusion 2's U-Net, 2.42 TFLOP an image by our count,
    512 px, latents computed before, 8 A100: 290 images/s."""
    summary = planned("fundus512", "plan.gpu=a100", "launch.gpus_per_node=8")
    expected = 290 * 2.42e12 / summary["flops_per_image"]
    assert summary["images_per_s"] == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("preset", ["fundus512", "fundus1024"])
def test_an_h100_is_planned_as_much_faster_than_an_a100_as_published_trainings_are(preset: str) -> None:
    """Stability AI, "Putting the AI supercomputer to work" (2024): 595 and 381 images/s on 16, 1.56 times. NVIDIA,
    "H100 has 4.6x A100 performance" (TensorRT-LLM): twice in MLPerf with the same data types."""
    a100, h100 = (planned(preset, f"plan.gpu={gpu}")["images_per_s"] for gpu in ("a100", "h100"))
    assert 1.5 < h100 / a100 < 2.2


def test_every_card_has_a_utilisation_with_its_source_and_the_h100s_is_near_what_is_assumed_for_others() -> None:
    for name, gpu in GPUS.items():
        assert 0.1 < gpu.utilisation(weight_bytes=2, tf32=True) < (0.3 if gpu.native_bf16 else PRODUCTS)
        assert gpu.source.startswith("published" if gpu.published else "assumed"), name
    assert [name for name, gpu in GPUS.items() if gpu.published] == ["a100", "h100"]
    a100, h100 = GPUS["a100"], GPUS["h100"]
    rest_s = a100.rest_s * a100.memory_bytes_per_s / h100.memory_bytes_per_s
    assert 1 / (1 / PRODUCTS + h100.flops * rest_s) == pytest.approx(h100.published, rel=0.1)


def test_the_users_own_utilisation_is_that_of_every_stage() -> None:
    summary = planned("fundus512", "plan.mfu=0.4")
    assert {stage["hfu"] for stage in summary["stages"].values()} == {0.4}
    assert summary["gpu_s"] == pytest.approx(planned("fundus512")["gpu_s"] * 0.18 / 0.4)


@pytest.mark.parametrize(
    ("preset", "training", "encoding"),
    [("fundus256", 2.68e12, 0.273e12), ("fundus512", 10.9e12, 1.12e12), ("fundus1024", 42.3e12, 4.20e12)],
)
def test_the_chain_has_the_autoencoders_training_and_the_encoding(
    preset: str, training: float, encoding: float
) -> None:
    counts = counted(preset)
    assert counts.autoencoder.flops_model == pytest.approx(training, rel=0.01)
    assert counts.encoder.flops_forward == pytest.approx(encoding, rel=0.01)
    summary = planned(preset, "plan.price_per_gpu_hour=3", "plan.num_images=1300000")
    stages, total = summary["stages"], summary["total"]
    assert list(stages) == ["train-vae", "encode-latents", "train"]
    assert counts.autoencoder.flops_model < stages["train-vae"]["flops_per_image"] < 1.03 * training, "discriminator"
    for key in ("hours", "gpu_hours", "cost"):
        assert total[key] == pytest.approx(sum(stage[key] for stage in stages.values()))
        assert stages["train"][key] == summary[key]
    assert total["cost"] == pytest.approx(3 * total["gpu_hours"])
    # fp32 without TF32: far more than the bf16 of training would take for the same operations
    seconds = encoding * 1.3e6 / (8 * stages["encode-latents"]["hfu"] * GPUS["h100"].fp32_flops)
    assert stages["encode-latents"]["hours"] == pytest.approx(seconds / 3600, rel=0.01)
    fast = planned(preset, "encode_latents.precision=bf16", "plan.num_images=1300000")
    assert fast["stages"]["encode-latents"]["hours"] < stages["encode-latents"]["hours"] / 3
    tensor_cores = planned(preset, "encode_latents.tf32=true", "plan.num_images=1300000")["stages"]["encode-latents"]
    assert tensor_cores["hours"] < stages["encode-latents"]["hours"] / 2
    mirrored = planned(preset, "encode_latents.flip=true", "plan.num_images=1300000")["stages"]["encode-latents"]
    assert mirrored["hours"] == pytest.approx(2 * stages["encode-latents"]["hours"])


def test_a_card_without_bf16_is_planned_as_a_run_on_it_computes() -> None:
    """`auto` is fp32 there; bf16, asked for, is no faster, and the plan says so."""
    keys = ("train.loop.precision", "train_vae.loop.precision")
    for gpu in ("t4", "v100"):
        auto, fp32, bf16 = (
            run_of("fundus256", f"plan.gpu={gpu}", *(f"{key}={precision}" for key in keys))
            for precision in ("auto", "fp32", "bf16")
        )
        assert auto.weight_bytes("auto") == fp32.weight_bytes("fp32") == 4
        rates = [work_out(one, counted("fundus256"))["gpu_s"] for one in (auto, fp32, bf16)]
        assert rates[0] == rates[1] <= rates[2] * 2
        assert GPUS[auto.plan.gpu].peak(weight_bytes=2, tf32=True) == GPUS[auto.plan.gpu].fp32_flops
        page = Page()
        report(bf16, page, work_out(bf16, counted("fundus256")))
        assert any(f"{gpu} has no instructions for bf16" in line for line in page.said)
    page = Page()
    report(run_of("fundus256"), page, planned("fundus256"))
    assert not any("bf16" in line for line in page.said)


def test_samples_are_planned_if_their_number_is_given() -> None:
    def sampling(*settings: str) -> dict[str, Any]:
        known = ("sample.num_images=1000000", "plan.mfu=0.3", "sample.num_steps=30", "sample.precision=fp32")
        found = planned("fundus256", *known, *settings)["stages"]
        assert list(found) == ["train-vae", "encode-latents", "train", "sample"]
        stage: dict[str, Any] = found["sample"]
        return stage

    counts = counted("fundus256")
    decoder = counts.autoencoder.flops_forward - counts.encoder.flops_forward
    calls = 30 * 2 * counts.denoiser.flops_forward
    guided = sampling()
    assert guided["flops_per_image"] == calls + decoder
    seconds = (calls + decoder) / (0.3 * GPUS["h100"].tf32_flops)
    assert guided["gpu_hours"] == pytest.approx(1e6 * seconds / 3600)
    assert sampling("sample.guidance_scale=1")["flops_per_image"] == calls / 2 + decoder
    assert sampling("sample.guidance_interval=[0.25,0.75]")["flops_per_image"] == calls * 0.75 + decoder
    assert sampling("sample.sampler=heun")["calls"] == 59
    assert sampling("sample.precision=bf16")["hours"] < 0.6 * guided["hours"]
    one = sampling("sample.batch_size=1")
    assert one["images_per_s"] <= 8 / (30 * counts.denoiser.launches_forward * LAUNCH_S), "the host's launches"
    summary = planned("fundus256", "sample.num_images=1000000")
    assert summary["total"]["hours"] == pytest.approx(sum(stage["hours"] for stage in summary["stages"].values()))
    page = Page()
    report(run_of("fundus256", "sample.num_images=1000000"), page, summary)
    row = next(row for row in page.tables["the chain"] if row[0] == "sample")
    assert "1,000,000 images" in row[-1]
    assert "15 calls of the network" in row[-1]


def test_an_autoencoder_that_exists_is_not_trained_and_ones_own_is() -> None:
    def stages(*settings: str) -> list[str]:
        return list(planned("fundus512", *settings)["stages"])

    assert stages("encode_latents.vae=weights/sd") == ["encode-latents", "train"]
    ours = "train_vae.run_dir=runs/vae"
    assert stages(ours, "encode_latents.vae=weights/sd") == ["encode-latents", "train"]
    assert stages(ours, "encode_latents.vae=runs/vae-of-others") == ["encode-latents", "train"]
    for vae in ("runs/vae", "runs/vae/export/vae"):
        assert stages(ours, f"encode_latents.vae={vae}") == ["train-vae", "encode-latents", "train"]


def test_an_autoencoder_that_is_not_here_is_said_and_the_plan_made(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").touch()
    for name, said in (("vae", False), ("elsewhere", True)):
        run, page = run_of("fundus512", f"encode_latents.vae={tmp_path / name}"), Page()
        report(run, page, work_out(run, counted("fundus512")))
        assert any(f"there is no autoencoder in {tmp_path / name} here" in line for line in page.said) == said


def test_a_faster_network_and_fewer_ranks_wait_less() -> None:
    slow, fast = (planned("fundus512", "launch.nodes=2", f"plan.network_gbit={gbit}") for gbit in (100, 400))
    assert slow["network_s"] == pytest.approx(4 * fast["network_s"])
    assert fast["network_s"] == pytest.approx(fast["traffic_bytes"] / 50e9)
    inside = planned("fundus512", "plan.network_gbit=1")
    assert inside["network_s"] == pytest.approx(inside["traffic_bytes"] / 450e9), "NVLink"
    assert planned("fundus512", "launch.gpus_per_node=1")["network_s"] == 0
    unlinked = planned("fundus512", "plan.gpu=l40s", "launch.nodes=2", "plan.network_gbit=3200")
    assert unlinked["network_s"] == pytest.approx(unlinked["traffic_bytes"] / 32e9), "the slowest link of the ring"


@pytest.mark.parametrize("preset", PRESETS)
def test_the_best_number_of_nodes_is_the_largest_that_keeps_what_the_rule_says(preset: str) -> None:
    summary = planned(preset, "plan.price_per_gpu_hour=2", "plan.network_gbit=1600")
    rows = {row["nodes"]: row for row in summary["nodes"]}
    assert {1, 2, 4, 8} <= set(rows)
    assert rows[1]["efficiency"] == 1
    good = [nodes for nodes, row in rows.items() if row["efficiency"] >= GOOD_EFFICIENCY]
    assert summary["best_nodes"] == max(good)
    assert max(good) < max(rows), "a batch of a few images a GPU is never efficient"
    for nodes in (1, 4):
        alone = planned(preset, f"launch.nodes={nodes}", "plan.price_per_gpu_hour=2", "plan.network_gbit=1600")
        assert {key: rows[nodes][key] for key in ("hours", "cost")} == {key: alone[key] for key in ("hours", "cost")}
        share = alone["network_s"] * alone["images_per_s"] / alone["global_batch_size"]
        assert rows[nodes]["network_share"] == pytest.approx(share)


def test_an_autoencoders_batch_that_the_nodes_cannot_share_is_planned_on_fewer() -> None:
    settings = ("launch.nodes=16", "train_vae.loop.global_batch_size=64", "train.loop.global_batch_size=256")
    summary = planned("fundus512", *settings)
    assert (summary["ranks"], summary["stages"]["train-vae"]["ranks"]) == (128, 64)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_answers_come_first_and_figures_bring_their_source(preset: str) -> None:
    page, settings = Page(), ("plan.price_per_gpu_hour=2", "launch.nodes=4", "encode_latents.flip=true")
    summary = planned(preset, *settings)
    report(run_of(preset, *settings), page, summary)
    first = next(iter(page.tables.values()))
    assert [row[0] for row in first] == ["train-vae fits", "train fits", "time", "cost", "best nodes"]
    assert first[2][1] == f"{summary['total']['hours']:,.1f} h"
    assert first[3][1] == f"{summary['total']['cost']:,.0f}"
    assert f"{summary['largest_micro_batch_size']} fit" in first[1][2]
    assert [row[0] for row in page.tables["the chain"]] == ["train-vae", "encode-latents", "train", "all"]
    assert "mirrored" in page.tables["the chain"][1][-1]
    gpu = next(row for row in page.tables["a step of train"] if row[0] == "GPU")
    assert GPUS["h100"].source in gpu[2]
    own = Page()
    report(run_of(preset, "plan.mfu=0.4"), own, planned(preset, "plan.mfu=0.4"))
    assert "plan.mfu" in next(row for row in own.tables["a step of train"] if row[0] == "GPU")[2]


def test_a_larger_micro_batch_that_fits_and_fewer_nodes_are_advised() -> None:
    settings = ("train.loop.global_batch_size=256", "train.loop.micro_batch_size=8")
    said = advice(run_of("fundus512", *settings), planned("fundus512", *settings))
    assert any("train.loop.micro_batch_size=32 fits: 1 instead of 4" in line for line in said)
    many = ("launch.nodes=8", "train.loop.global_batch_size=256", "plan.network_gbit=100")
    summary = planned("fundus512", *many)
    assert any(f"{summary['best_nodes']} node(s)" in line for line in advice(run_of("fundus512", *many), summary))
