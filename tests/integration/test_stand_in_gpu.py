"""Every verb that computes, on a stand-in GPU: it ends well, and asks the GPU for no more than it should.

The CUDA build of torch is real, the GPU is not (tests/stand_in_gpu/README.md): no figure or time here is one of a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from rank_processes import Ended
from stand_in_gpu.runs import HOW_TO_GET_ONE, StandIn, document, find_stand_in, report
from tiny_sets import merged, phantom_samples, tiny_config, write_config, write_set

from synfundus.diffusion.sampling import FLOW_SAMPLERS, SamplerName
from synfundus.distributed.world import World
from synfundus.stages.encode_latents import job as encode_latents
from synfundus.stages.train_vae import job as train_vae
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
SCRIPTS = Path(__file__).parents[1] / "stand_in_gpu"
GPU = ("--device", "cuda")
LOOP: dict[str, Any] = {
    "budget_images": 16,
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "precision": "bf16",
    "checkpoint_every_images": 8,
    "validate_every_images": 0,
    "validation_images": 4,
    "preview_every_images": 0,
    "watchdog_s": 0,
}
WHOLE: dict[str, Any] = {
    "loop": {**LOOP, "validate_every_images": 8, "preview_every_images": 8},
    "ema": {"half_life_images": 20, "sigma_rel": [0.05, 0.1], "snapshot_every_images": 8},
}
"""All that a training does beside its steps."""
FUNDUS: dict[str, Any] = {
    "unet": {
        "block_out_channels": [64, 128, 192, 256],
        "layers_per_block": 2,
        "attention_levels": [False, True, True, True],
        "attention_head_dim": 64,
        "cross_attention_dim": 64,
        "norm_num_groups": 32,
        "dropout": 0.1,
    },
    # micro-batches whose arrays are larger than 64 KiB each
    "loop": {
        **LOOP,
        "budget_images": 48,
        "global_batch_size": 16,
        "micro_batch_size": 8,
        "checkpoint_every_images": 48,
    },
}
"""The U-Net of fundus256 at a third of its width: the same layers, so the same launches."""
MOST_SYNCS_A_STEP = 3
"""All in the engine's update: one for the norm, one in DeepSpeed for each of the two groups of it."""
SYNCS = ("stream_syncs", "device_syncs", "event_syncs")
LAUNCHES = ("kernels", "matrix_products", "convolutions", "memsets", "copies_on_device")


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    found = find_stand_in(tmp_path_factory.mktemp("stand-in"))
    if found is None:
        pytest.skip(HOW_TO_GET_ONE)
    return found


def train(
    gpu: StandIn, latents: ShardSet, run_dir: Path, changes: Mapping[str, Any], *more: str | Path, **options: Any
) -> Ended:
    """Train on the stand-in GPU."""
    config = write_config(run_dir.with_suffix(".yaml"), {"train": changes})
    command = ("train", "--config", config, "--latents", latents.url, "--run-dir", run_dir, *GPU)
    return gpu.synfundus(*command, *more, **options)


# ---- the verbs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(gpu: StandIn, latent_set: ShardSet, vae_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that a training does, resumed with a larger budget."""
    run_dir = tmp_path_factory.mktemp("train") / "run"
    for budget in (16, 24):
        more = merged(WHOLE, {"loop": {"budget_images": budget}})
        ended = train(gpu, latent_set, run_dir, more, "--vae", vae_run, name=f"train to {budget} images")
        assert ("resumed at 16 images" in ended.output) is (budget == 24)
    return run_dir


def test_a_training_validates_previews_resumes_and_exports(trained: Path) -> None:
    assert (trained / "export" / "synfundus.json").exists()
    assert sorted(path.stem for path in (trained / "previews").glob("*.png")) == [
        f"images-{images:012d}" for images in (8, 16, 24)
    ]
    assert "validation" in (trained / "metrics.jsonl").read_text()


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp", "euler", "heun"])
def test_sampling(gpu: StandIn, trained: Path, tmp_path: Path, sampler: str) -> None:
    config = write_config(tmp_path / "run.yaml")
    where = ("--model", trained, "--out", tmp_path / "samples", "--num-images", "4", "--config", config, *GPU)
    gpu.synfundus("sample", *where, "--sampler", sampler, name=f"sample with {sampler}")
    assert len(list((tmp_path / "samples").rglob("*.png"))) >= 4


def test_other_averages_and_exports_of_a_run(gpu: StandIn, trained: Path, tmp_path: Path) -> None:
    gpu.synfundus("ema", "--run-dir", trained, "--sigma-rel", "0.08", "--out", tmp_path / "average")
    assert (tmp_path / "average" / "synfundus.json").exists()
    gpu.synfundus("export", "--run-dir", trained, "--out", tmp_path / "exported")
    assert (tmp_path / "exported" / "synfundus.json").exists()


def test_an_autoencoder_with_its_adversary_and_latents(gpu: StandIn, image_set: ShardSet, tmp_path: Path) -> None:
    adversary = {"adversarial_weight": 0.1, "adversarial_start_images": 8, "structural_weight": 0.25}
    whole = {**LOOP, "preview_every_images": 8, "validate_every_images": 8}
    sections = {"train_vae": {"loop": whole, "loss": adversary}, "verify_latents": {"min_psnr_db": 0}}
    config = write_config(tmp_path / "run.yaml", sections)
    vae, latents, images = tmp_path / "vae", tmp_path / "latents", ("--data", image_set.url)
    gpu.synfundus("train-vae", *images, "--run-dir", vae, "--config", config, *GPU)
    gpu.synfundus("encode-latents", *images, "--vae", vae, "--out", latents, "--flip", "--config", config, *GPU)
    gpu.synfundus("verify-latents", "--latents", latents, "--vae", vae, "--config", config, *GPU)


def test_two_ranks_with_a_gpu_each(
    gpu: StandIn, image_set: ShardSet, latent_set: ShardSet, vae_run: Path, trained: Path, tmp_path: Path
) -> None:
    two: dict[str, Any] = {"devices": 2}
    ranks = ("--procs-per-node", "2", *GPU)
    ended = train(gpu, latent_set, tmp_path / "run", WHOLE, "--vae", vae_run, *ranks[:2], **two, name="train, 2 ranks")
    assert "2 ranks x 1 steps x 4 images" in ended.output
    adversary = {"adversarial_weight": 0.1, "adversarial_start_images": 8}
    config = write_config(tmp_path / "vae.yaml", {"train_vae": {"loop": LOOP, "loss": adversary}})
    images = ("--data", image_set.url, "--config", config)
    gpu.synfundus("train-vae", *images, "--run-dir", tmp_path / "vae", *ranks, **two, name="train-vae, 2 ranks")
    encoded = ("--vae", tmp_path / "vae", "--out", tmp_path / "latents")
    gpu.synfundus("encode-latents", *images, *encoded, *ranks, **two, name="encode-latents, 2 ranks")
    drawn = ("--model", trained, "--out", tmp_path / "samples", "--num-images", "4")
    gpu.synfundus("sample", *drawn, "--config", config, *ranks, **two, name="sample, 2 ranks")


def test_without_a_compiler_triton_is_missing_and_the_training_goes_on(
    gpu: StandIn, latent_set: ShardSet, tmp_path: Path
) -> None:
    lacking = {"CC": "/nonexistent/cc", "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    ended = train(gpu, latent_set, tmp_path / "run", {"loop": LOOP}, name="train, no compiler", environment=lacking)
    assert ended.output.count("group norms turn NHWC memory into NCHW") == 1
    assert "/nonexistent/cc" in ended.output


@pytest.mark.parametrize(
    ("loop", "more", "said"),
    [
        ({"deterministic": True}, (), "deterministic"),
        ({"micro_batch_size": "auto", "channels_last": "auto"}, (), "micro-batch 8 found"),
        ({"gradient_checkpointing": True, "on_spike": "skip"}, (), ""),
        ({}, ("--set", "launch.ds_config=zero2_offload.json"), "fused AdamW in host memory"),
        ({"compile": True, "gradient_checkpointing": True}, (), "blocks are compiled"),
    ],
    ids=["deterministic", "auto", "checkpointing", "offload", "compile"],
)
def test_ways_to_train(
    gpu: StandIn,
    latent_set: ShardSet,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    loop: Mapping[str, Any],
    more: tuple[str, ...],
    said: str,
) -> None:
    name = f"train, {request.node.callspec.id}"
    ended = train(gpu, latent_set, tmp_path / "run", {"loop": {**LOOP, **loop}}, *more, name=name, timeout_s=1800)
    assert said in ended.output


# ---- what the GPU is asked for ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fundus_latents(world: World, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Latents of 4 x 32 x 32, as fundus256 has them."""
    from synfundus.storage.manifest import load_shard_set

    folder = tmp_path_factory.mktemp("fundus")
    samples = phantom_samples(20, image_size_px=256)
    properties = {"image_size_px": 256, "crop": "none"}
    images = write_set(folder / "images", samples, shards={"train": (8, 8), "val": (4,)}, properties=properties)
    loop = {"budget_images": 8, "checkpoint_every_images": 8, "validation_images": 4}
    vae: dict[str, Any] = {"data": images.url, "run_dir": str(folder / "vae"), "loop": loop}
    train_vae.run(tiny_config({"train_vae": vae}), world, SilentConsole())
    section = {"data": images.url, "vae": str(folder / "vae"), "out": str(folder / "latents")}
    encode_latents.run(tiny_config({"encode_latents": section}), world, SilentConsole())
    return load_shard_set(str(folder / "latents"), kind="latents")


def counted_training(
    gpu: StandIn, latents: ShardSet, run_dir: Path, *, name: str, major: int = 8, **loop: Any
) -> Mapping[str, Any]:
    """Train the U-Net of fundus256's shape; return what was counted."""
    config = write_config(run_dir.with_suffix(".yaml"), {"train": merged(FUNDUS, {"loop": loop})})
    # times mean nothing there: a kernel chosen by them, and so the launches, would be another one each time
    where = ("--config", config, "--latents", latents.url, "--run-dir", run_dir, "--set", "launch.attention=sdpa", *GPU)
    script = SCRIPTS / "counted_training.py"
    return document(gpu.run(script, "train", *where, name=name, major=major, timeout_s=2000))


def launches(counts: Mapping[str, int]) -> int:
    return sum(counts[name] for name in LAUNCHES)


@pytest.fixture(scope="module")
def eager(gpu: StandIn, fundus_latents: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What a training asked for, step by step."""
    return counted_training(gpu, fundus_latents, tmp_path_factory.mktemp("eager") / "run", name="train, counted")


def test_a_micro_batch_waits_for_nothing_and_copies_nothing_large_from_pageable_memory(
    eager: Mapping[str, Any],
) -> None:
    steps = eager["steps"]
    assert len(steps) == 3
    assert all(len(step["micro_batches"]) == 2 for step in steps)
    first, *others = [micro for step in steps for micro in step["micro_batches"]]
    report("first micro-batch, waits", **{name: first[name] for name in SYNCS})  # constants go to the device once
    for micro in others:
        assert {name: micro[name] for name in SYNCS} == dict.fromkeys(SYNCS, 0)
    for micro in (first, *others):
        assert micro["kernels"] > 100, "nothing was counted"
        assert micro["large_copies_in_pageable"] == 0
        assert micro["copies_in_pinned"] == 1
        assert micro["collectives"] <= 2


def test_an_optimizer_step_waits_a_handful_of_times(eager: Mapping[str, Any]) -> None:
    for step in eager["steps"]:
        syncs = sum(step[part][name] for part in ("update", "after") for name in SYNCS)
        report("optimizer step, waits", syncs=syncs, launches=launches(step["update"]))
        assert 1 <= syncs <= MOST_SYNCS_A_STEP
        assert step["update"]["kernels"] > 10


def test_every_convolution_gets_nhwc_memory(eager: Mapping[str, Any]) -> None:
    nhwc, total = eager["layouts"]
    report("3x3 convolutions with NHWC input and weight", nhwc=nhwc, total=total)
    assert (nhwc, total) == (52, 52)


def counted_inference(gpu: StandIn, *command: str | Path, name: str) -> Mapping[str, Any]:
    """Encode or sample; return what the last calls of the networks were given and asked for."""
    return document(gpu.run(SCRIPTS / "counted_inference.py", *command, *GPU, name=name))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_encoding_and_sampling_give_every_convolution_nhwc_memory(
    gpu: StandIn, image_set: ShardSet, vae_run: Path, trained: Path, tmp_path: Path, precision: str
) -> None:
    sections = {"encode_latents": {"precision": precision}, "sample": {"precision": precision}}
    config = ("--config", write_config(tmp_path / "run.yaml", sections))
    encode = ("encode-latents", "--data", image_set.url, "--vae", vae_run, "--out", tmp_path / "latents")
    sample = ("sample", "--model", trained, "--out", tmp_path / "samples", "--num-images", "4")
    for command, calls in ((encode, ["encode"]), (sample, ["decode", "forward", "sample_latents"])):
        name = f"{command[0]}, counted, {precision}"
        counted = counted_inference(gpu, *command, *config, name=name)
        assert sorted(counted) == calls
        for call, found in counted.items():
            nhwc, total = found["layouts"]
            report(f"{name}, {call}", nhwc=nhwc, total=total, launches=launches(found["counts"]))
            assert total > 10
            # weights alone are enough for the first: torch turns what a network is given
            assert {layer.rpartition(".")[2] for layer in found["others"]} <= {"conv_in"}, found["others"]


def test_kernels_are_launched_where_their_images_are(gpu: StandIn) -> None:
    found = document(gpu.run(SCRIPTS / "kernel_devices.py", name="kernels of two GPUs", devices=2))
    assert found == {"threads": 1, "here": 0, "launched": [[1, 1]]}


@pytest.fixture(scope="module")
def flow(gpu: StandIn, latent_set: ShardSet, vae_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that predicts the flow's velocity."""
    run_dir = tmp_path_factory.mktemp("flow") / "run"
    no_schedule = {"beta_schedule": "scaled_linear", "zero_terminal_snr": False, "min_snr_gamma": None}
    changes = {
        "loop": {**LOOP, "budget_images": 8},
        "diffusion": {"prediction_type": "flow_velocity", **no_schedule},
    }
    train(gpu, latent_set, run_dir, changes, "--vae", vae_run, name="train, flow")
    return run_dir


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [*(("trained", name) for name in get_args(SamplerName)), *(("flow", name) for name in FLOW_SAMPLERS)],
)
def test_the_steps_of_a_sampler_wait_for_nothing(
    gpu: StandIn, request: pytest.FixtureRequest, tmp_path: Path, kind: str, sampler: str
) -> None:
    config = write_config(tmp_path / "run.yaml", {"sample": {"batch_size": 2}})
    model: Path = request.getfixturevalue(kind)
    where = ("--model", model, "--out", tmp_path / "samples", "--num-images", "4", "--config", config)
    counted = counted_inference(gpu, "sample", *where, "--sampler", sampler, name=f"sample, counted, {kind}, {sampler}")
    counts = counted["sample_latents"]["counts"]  # of the second batch: the first takes constants to the device
    assert {name: counts[name] for name in SYNCS} == dict.fromkeys(SYNCS, 0)
    assert counts["kernels"] > 100, "nothing was counted"


def test_compiled_blocks_need_fewer_launches(
    gpu: StandIn, fundus_latents: ShardSet, eager: Mapping[str, Any], tmp_path: Path
) -> None:
    compiled = counted_training(gpu, fundus_latents, tmp_path / "run", name="train, counted, compiled", compile=True)
    counts = [counted["steps"][-1]["micro_batches"][-1] for counted in (eager, compiled)]
    assert compiled["steps"][0]["micro_batches"][-1]["kernels"] == counts[1]["kernels"], (
        "compiled in the first step alone"
    )
    report(
        "launches a micro-batch, U-Net of fundus256 at a third of its width",
        **{
            f"{way}_{name}": part[name]
            for way, part in zip(("eager", "compiled"), counts, strict=True)
            for name in LAUNCHES
        },
        eager=launches(counts[0]),
        compiled=launches(counts[1]),
    )
    assert 0 < launches(counts[1]) < launches(counts[0])
    assert counts[1]["kernels"] > 0
    assert {name: counts[1][name] for name in SYNCS} == dict.fromkeys(SYNCS, 0)


# ---- attention -------------------------------------------------------------------------------------------------

HEADS_OF_64 = ("4096x4096x64", "4096x16x64", "1024x1024x64", "1024x16x64")
HEADS_OF_512 = ("4096x4096x512", "1024x1024x512")


@pytest.fixture(scope="module", params=[8, 9], ids=["sm_80", "sm_90"])
def kernels(gpu: StandIn, request: pytest.FixtureRequest) -> tuple[int, Mapping[str, Any]]:
    """The card's compute capability, and what each kernel did for each shape."""
    script = SCRIPTS / "attention_kernels.py"
    command = ("-W", "ignore", script, *HEADS_OF_64, *HEADS_OF_512)
    ended = gpu.run(*command, name=f"attention kernels of sm_{request.param}0", major=request.param)
    return request.param, document(ended)


def test_pytorch_chooses_flash_attention_on_an_a100(kernels: tuple[int, Mapping[str, Any]]) -> None:
    major, found = kernels
    report(f"sdpa on sm_{major}0", **{shape: one["sdpa"] for shape, one in found.items()})
    assert {found[shape]["sdpa"] for shape in HEADS_OF_512} == {"EFFICIENT_ATTENTION"}
    if major == 8:
        assert {found[shape]["sdpa"] for shape in HEADS_OF_64} == {"FLASH_ATTENTION"}


def test_what_cannot_run_here_is_named_and_the_rest_passes(kernels: tuple[int, Mapping[str, Any]]) -> None:
    for shape, one in kernels[1].items():
        assert "efficient" in one["passed"], one
        assert ("flash" in one["passed"]) is (shape in HEADS_OF_64), one
        assert one["obstacles"]["cudnn"], "cuDNN's attention is refused by the stand-in"
        if shape in HEADS_OF_64:
            assert "not supported by the stand-in GPU" in one["obstacles"]["cudnn"]


def test_a_fitting_xformers_has_an_operator_for_every_shape(
    gpu: StandIn, kernels: tuple[int, Mapping[str, Any]]
) -> None:
    if not gpu.has_xformers:
        pytest.skip("no xformers there: make gpu-stand-in ATTENTION=xformers")
    for shape, one in kernels[1].items():
        assert "xformers" in one["passed"], one
        forward, backward = one["xformers"]
        report(f"xformers on sm_{kernels[0]}0, {shape}", forward=forward, backward=backward)
        expected = ("fa2F", "fa2B") if shape in HEADS_OF_64 else ("cutlassF", "cutlassB")
        assert (forward.partition("@")[0].partition("-")[0], backward.partition("@")[0].partition("-")[0]) == expected


def test_a_training_on_a_card_for_which_pytorch_wants_cudnn_takes_another_kernel(
    gpu: StandIn, latent_set: ShardSet, tmp_path: Path
) -> None:
    ended = train(gpu, latent_set, tmp_path / "run", {"loop": LOOP}, name="train, sm_90", major=9)
    said = next(line for line in ended.output.splitlines() if line.startswith("attention: "))
    assert said.split()[1] in ("sdpa", "flash", "efficient", "xformers")
    assert "cudnn: " in said
    assert "not supported by the stand-in GPU" in said


def test_a_training_with_xformers(gpu: StandIn, latent_set: ShardSet, tmp_path: Path) -> None:
    if not gpu.has_xformers:
        pytest.skip("no xformers there: make gpu-stand-in ATTENTION=xformers")
    more = ("--set", "launch.attention=xformers")
    ended = train(gpu, latent_set, tmp_path / "run", {"loop": LOOP}, *more, name="train, xformers")
    assert "xformers (as configured; forward and backward agree with plain products)" in ended.output
