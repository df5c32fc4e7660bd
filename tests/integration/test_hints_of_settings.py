"""Hints about configuration, labels and launch are true: each error is met, its hint followed, and it is gone."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_pipeline import SCHEDULE, SCHEMA, write_tiny_pipeline
from told import Shell, refusal

from synfundus import api
from synfundus.cli.app import run_command
from synfundus.cli.report import report_usage
from synfundus.config.assets import find_asset
from synfundus.config.auto import definite, settle_precision
from synfundus.config.loader import leaf_fields, load_config
from synfundus.config.schema import RunConfig
from synfundus.diffusion.flow import FlowPath
from synfundus.diffusion.flow_schedulers import build_flow_scheduler
from synfundus.diffusion.parametrisation import check_prediction_type
from synfundus.diffusion.schedule import NoiseSchedule, build_schedule
from synfundus.diffusion.schedulers import build_scheduler
from synfundus.distributed.ds_config import check_ds_file, plan_batch
from synfundus.distributed.rank_info import gpu_index, rank_info, require_one_device, require_own_gpus
from synfundus.distributed.world import resolve_device
from synfundus.labels.plan import plan_labels
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.launch.plan import MachineFacts, Resources, plan_launch
from synfundus.models.attention import AttentionShape, choose_attention
from synfundus.models.unet import build_unet
from synfundus.phantoms.draw import draw_phantom
from synfundus.stages.doctor.job import Check, check_attention, check_cuda, check_s3
from synfundus.storage.manifest import ShardSet

ROOT = Path(__file__).resolve().parents[2]
GOOD = b"train:\n  loop:\n    budget_images: 1000\n"
FILES: Mapping[str, tuple[bytes, str, bytes]] = {
    "too long": (GOOD + b"# " + b"x" * 2**21, "a run.yaml is a few KiB", GOOD),
    "another encoding": (
        "seed: 1 # größer".encode("latin-1"),
        "save it as UTF-8",
        "seed: 1 # größer".encode(),
    ),
    "binary": (b"seed: 1\0", "a config is YAML text", b"seed: 1"),
    "tabs": (b"train:\n\tloop: {}\n", "YAML indents with blanks", b"train:\n  loop: {}\n"),
    "no YAML": (b"seed: 1\ntrain: [1\n", "see the line named above", b"seed: 1\n"),
    "two documents": (b"seed: 1\n---\ntrain: {}\n", "remove the ---", b"seed: 1\ntrain: {}\n"),
    "an alias": (
        b"train: {loop: &a {budget_images: 8}}\ntrain_vae: {loop: *a}\n",
        "write it out",
        b"train: {loop: {budget_images: 8}}\ntrain_vae: {loop: {budget_images: 8}}\n",
    ),
    "a tag": (b"seed: !!int '1'\n", "write plain values", b"seed: 1\n"),
    "a key twice": (b"seed: 1\nseed: 2\n", "keep one of them", b"seed: 2\n"),
    "a list": (b"- loop\n", "like `loop:` and below it `budget_images: 1000`", GOOD),
}
"""A broken config file, its hint, and the file after it was followed."""


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.mark.parametrize("case", FILES)
def test_a_config_file(case: str, shell: Shell, tmp_path: Path) -> None:
    broken, hint, mended = FILES[case]
    path = tmp_path / "run.yaml"
    path.write_bytes(broken)
    line = ("plan", "--config", path, "--dry-run")
    shell.refused(hint, *line)
    path.write_bytes(mended)
    shell.done(*line)


def test_a_config_file_that_is_elsewhere(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(GOOD)
    shell.refused("check the path after --config", "plan", "--dry-run", "--config", tmp_path / "rum.yaml")
    shell.done("plan", "--dry-run", "--config", tmp_path / "run.yaml")


def test_an_unknown_key_is_looked_up_where_the_hint_says(shell: Shell) -> None:
    told = shell.refused("lists all keys", "plan", "--dry-run", "--set", "train.optim.learning_rate=1")
    schema, show = (command.split()[1:] for command in re.findall(r"`(.*?)`", told.hint))
    assert [show[:2], schema] == [["config", "show"], ["config", "schema"]]
    keys = yaml.safe_load(shell.done(*show[:2], "train.optim"))["train"]["optim"]
    assert "lr" in keys
    listed = json.loads(shell.done(*schema))["$defs"].values()
    names = {name for section in listed for name in section.get("properties", ())}
    assert {part for leaf in leaf_fields() for part in leaf.split(".")[1:]} <= names
    shell.done("plan", "--dry-run", "--set", "train.optim.lr=1")


def test_names_that_hints_list_are_taken(shell: Shell) -> None:
    """Presets, sections, shipped files: what a hint offers instead of a wrong name."""
    told = shell.refused("a file of your own goes to --config", "plan", "--dry-run", "--preset", "frobnicate")
    for name in told.hint.partition("presets: ")[2].partition(";")[0].split(", "):
        shell.done("config", "show", name)
        load_config(preset=name, file=None, settings=[], flags=[])
    told = shell.refused("label-schema", "config", "show", "frobnicate")
    presets, sections, schema = told.hint.split("; ")
    for name in [*presets.split(": ")[1].split(", "), *sections.split(": ")[1].split(", "), schema]:
        shell.done("config", "show", name)
    with refusal("shipped: ") as caught:
        find_asset("ds_configs", "frobnicate.json")
    for name in caught.value.hint.removeprefix("shipped: ").split(", "):
        assert find_asset("ds_configs", name).is_file()


def test_an_unknown_flag(shell: Shell) -> None:
    told = shell.refused("set it by its key: --set", "plan", "--lr", "0.1", "--dry-run")
    for key in re.findall(r"--set (\S+)=", told.hint):
        shell.done("plan", "--dry-run", "--set", f"{key}=0.1")
    shell.refused("leave it out: `doctor` runs on the machine it is started on", "doctor", "--nodes", "2", "--dry-run")
    shell.done("doctor", "--dry-run")
    told = shell.refused("see `synfundus plan --help`", "plan", "--frobnicate")
    assert "--dry-run" in shell.done(*told.hint.split("`")[1].split()[1:])
    told = shell.refused("see `synfundus --help`", "frobnicate")
    assert "train-vae" in shell.done(*told.hint.split("`")[1].split()[1:])


def test_a_word_without_its_option(shell: Shell, tmp_path: Path) -> None:
    told = shell.refused("name what it is: `synfundus phantoms --out ...`", "phantoms", tmp_path / "new", "--dry-run")
    verb, option = told.hint.split("`")[1].split()[1:3]
    shell.done(verb, option, tmp_path / "new", "--dry-run")
    shell.refused("name what it is: `synfundus watch --run-dir ...`", "watch", tmp_path)
    shell.refused("see `synfundus judge --help`", "judge", tmp_path)  # either of two


def test_help_shows_what_is_missing(shell: Shell) -> None:
    told = shell.refused("see `synfundus export --help`", "export")
    (flag, *_) = re.findall(r"(--[\w-]+) is missing", told.said)
    assert flag in shell.done(*told.hint.split("`")[1].split()[1:])


def test_a_label_of_the_command_line(shell: Shell, tmp_path: Path) -> None:
    model = write_tiny_pipeline(tmp_path / "model")
    line = ("sample", "--model", model, "--out", tmp_path / "out", "--num-images", 2, "--device", "cpu", "--dry-run")
    told = shell.refused("for example --label dr_grade=3", *line, "--label", "dr_grade")
    shell.done(*line, *told.hint.split()[2:])


def planned(labels: Mapping[str, int | str | None], plan: bytes | None = None) -> int:
    return len(plan_labels(plan=plan, labels=labels, num_images=None if plan else 1, schema=SCHEMA, where=""))


def test_names_and_values_of_labels() -> None:
    with refusal("write dr_grade for DR-Grade") as caught:
        planned({}, b"DR-Grade\n3\n")
    assert planned({}, f"{caught.value.hint.split()[1]}\n3\n".encode()) == 1
    with refusal("leave it out, or correct its name"):
        planned({"frobnicate": 1})
    with refusal("give another --label"):
        planned({"dr_grade": 9})
    assert planned({}) == planned({"is_gc": 1}) == planned({"dr_grade": 4}) == 1


def test_the_number_of_images_and_the_plan(shell: Shell, tmp_path: Path) -> None:
    model = write_tiny_pipeline(tmp_path / "model")
    (tmp_path / "plan.csv").write_text("dr_grade\n1\n2\n")
    line = ("sample", "--model", model, "--out", tmp_path / "out", "--device", "cpu", "--dry-run")
    with refusal("give --num-images or --labels"):
        plan_labels(plan=None, labels={}, num_images=None, schema=SCHEMA, where="")
    shell.done(*line, "--num-images", 3)
    shell.done(*line, "--labels", tmp_path / "plan.csv")
    shell.refused("leave --num-images out, or add rows", *line, "--labels", tmp_path / "plan.csv", "--num-images", 3)
    assert "2 images of" in shell.done(*line, "--labels", tmp_path / "plan.csv")
    (tmp_path / "plan.csv").write_text("dr_grade\n1\n2\n3\n")
    shell.done(*line, "--labels", tmp_path / "plan.csv", "--num-images", 3)


def test_names_of_labels_and_splits_and_settings(image_set: ShardSet, tmp_path: Path) -> None:
    with refusal("labels of this schema: ") as caught:
        _ = DEFAULT_LABEL_SCHEMA["frobnicate"]
    for name in caught.value.hint.partition(": ")[2].split(", "):
        assert DEFAULT_LABEL_SCHEMA[name].name == name
    with refusal("one of train") as caught:
        api.open_dataset(image_set.url, split="frobnicate")
    with refusal("one of train"):
        api.read_manifest(image_set.url).num_samples("frobnicate")
    for name in caught.value.hint.removeprefix("one of ").split(", "):
        assert len(api.open_dataset(image_set.url, split=name)) == image_set.num_samples(name) > 0
    folder = str(write_tiny_pipeline(tmp_path / "model"))
    with refusal("auto, cpu, cuda or cuda:1"):
        api.load_model(folder, device="frobnicate")
    model = api.load_model(folder, device="cpu")
    with refusal("there are ") as caught:
        model.sample(num_images=1, steps=2)
    assert "num_steps" in caught.value.hint.removeprefix("there are ").split(", ")
    (image,) = model.sample(num_images=1, num_steps=1)
    with refusal("give a name that ends in .png"):
        api.save_image(image, str(tmp_path / "image.jpg"))
    api.save_image(image, str(tmp_path / "image.png"))
    assert len(model.sample(num_images=1, num_steps=2)) == 1


def test_a_precision_that_a_program_has_to_settle() -> None:
    with refusal("synfundus.config.auto.settle_precision"):
        definite(RunConfig().train.loop.precision)
    assert definite(settle_precision(RunConfig(), native_bf16=False).train.loop.precision) == "fp32"


def schedule(kind: str, *, zero_terminal_snr: bool = False) -> NoiseSchedule:
    given: Any = kind
    return build_schedule(
        kind=given, num_timesteps=20, beta_start=0.001, beta_end=0.02, zero_terminal_snr=zero_terminal_snr
    )


def test_names_of_the_mathematics() -> None:
    with refusal("one of ") as caught:
        schedule("frobnicate")
    kinds = caught.value.hint.removeprefix("one of ").split(", ")
    assert all(schedule(kind) for kind in kinds)
    with refusal("one of ") as caught:
        check_prediction_type("frobnicate", schedule("cosine"))
    for name in caught.value.hint.removeprefix("one of ").split(", "):
        check_prediction_type(name, FlowPath(20) if name == "flow_velocity" else schedule("cosine"))
    for name, wrong in (("flow_velocity", schedule("cosine")), ("epsilon", FlowPath(20))):
        with refusal("flow_velocity is for a flow, the others are for a noise schedule"):
            check_prediction_type(name, wrong)
    with refusal("set the prediction type to v_prediction or sample, or turn zero-terminal SNR off"):
        check_prediction_type("epsilon", schedule("cosine", zero_terminal_snr=True))
    for name in ("v_prediction", "sample"):
        check_prediction_type(name, schedule("cosine", zero_terminal_snr=True))
    check_prediction_type("epsilon", schedule("cosine"))


def test_samplers() -> None:
    settings = {name: value for name, value in SCHEDULE.items() if name != "zero_terminal_snr"}
    settings |= {"zero_terminal_snr": False}
    wrong: Any = "frobnicate"
    with refusal("one of ") as caught:
        build_scheduler(sampler=wrong, **settings)
    for name in caught.value.hint.removeprefix("one of ").split(", "):
        build_scheduler(sampler=name, **settings)  # type: ignore[arg-type]
    with refusal("--sampler, or sample.sampler in the config") as caught:
        build_flow_scheduler(sampler="ddim", num_timesteps=20, shift=1.0)
    for name in caught.value.hint.removeprefix("use one of ").partition(":")[0].split(", "):
        build_flow_scheduler(sampler=name, num_timesteps=20, shift=1.0)


def test_a_batch_that_the_ranks_cannot_share(shell: Shell) -> None:
    for size, world_size in ((10, 4), (3, 4)):
        with refusal("nearest: ") as caught:
            plan_batch(global_batch_size=size, max_micro_batch_size=2, world_size=world_size)
        for nearest in map(int, re.findall(r"\d+", caught.value.hint)):
            plan_batch(global_batch_size=nearest, max_micro_batch_size=2, world_size=world_size)


def ds_file(**changes: Any) -> dict[str, Any]:
    document = json.loads((ROOT / "ds_configs" / "zero2.json").read_text())
    zero = {**document["zero_optimization"], **changes.pop("zero", {})}
    kept = {key: value for key, value in zero.items() if value is not ...}
    return {**document, "zero_optimization": kept, **changes}


DS_FILES: Mapping[str, tuple[dict[str, Any], str, tuple[dict[str, Any], ...]]] = {
    "auto": (
        {"zero": {"overlap_comm": "auto"}},
        "set a value or remove the key",
        ({"zero": {"overlap_comm": False}}, {"zero": {"overlap_comm": ...}}),
    ),
    "data types": (
        {"data_types": {"grad_accum_dtype": "bf16"}},
        'remove the key, or set it to {"grad_accum_dtype": "fp32"}',
        ({}, {"data_types": {"grad_accum_dtype": "fp32"}}),
    ),
    "a bucket": (
        {"zero": {"reduce_bucket_size": 0}},
        "zero2.json uses 200000000 on GPUs",
        ({"zero": {"reduce_bucket_size": 200000000}},),
    ),
    "an odd bucket": ({"zero": {"allgather_bucket_size": 7}}, "take 8", ({"zero": {"allgather_bucket_size": 8}},)),
    "offload": (
        {"zero": {"offload_optimizer": {"device": "nvme"}}},
        'remove the key, or set it to {"device": "cpu"} as in zero2_offload.json',
        ({"zero": {"offload_optimizer": ...}}, {"zero": {"offload_optimizer": {"device": "cpu"}}}),
    ),
}


@pytest.mark.parametrize("case", DS_FILES)
def test_a_deepspeed_file(case: str) -> None:
    broken, hint, ways = DS_FILES[case]
    with refusal(hint):
        check_ds_file(ds_file(**broken), where="")
    for way in ways:
        check_ds_file(ds_file(**way), where="")


def test_what_a_deepspeed_file_may_hold_and_where_the_rest_is_set() -> None:
    with refusal("allowed: ") as caught:
        check_ds_file(ds_file(frobnicate=1), where="")
    allowed = caught.value.hint.removeprefix("allowed: ").split(", ")
    assert set(ds_file()) <= set(allowed)
    check_ds_file(ds_file(wall_clock_breakdown=False), where="")
    with refusal("of the loop section, and the optim section") as caught:
        check_ds_file(ds_file(train_batch_size=8), where="")
    for key in re.findall(r"\w+_batch_size|precision", caught.value.hint):
        assert f"train.loop.{key}" in leaf_fields()
    assert "train.optim.lr" in leaf_fields()
    sizes = {
        name: json.loads((ROOT / "ds_configs" / name).read_text())["zero_optimization"]["reduce_bucket_size"]
        for name in ("zero2.json", "zero2_cpu.json")
    }
    assert sizes["zero2_cpu.json"] < sizes["zero2.json"] == 200000000
    offload = json.loads((ROOT / "ds_configs" / "zero2_offload.json").read_text())["zero_optimization"]
    assert offload["offload_optimizer"]["device"] == "cpu"


def launched(*, nodes: int = 2, script: str | None = "ldm.sh", **resources: Any) -> str:
    given = {"partition": None, "account": None, "time_limit": "1:00:00", "gpus_per_node": 2, "cpus_per_task": 1}
    machine = MachineFacts({}, frozenset({"sbatch"}), 0, 2, sys.executable, is_rank=False)
    return plan_launch(
        arguments=("train",),
        nodes=nodes,
        procs_per_node=1,
        device="cpu",
        resources=Resources(**{**given, "sbatch_args": (), "submit": False, **resources}),
        script=script,
        machine=machine,
    ).kind


LAUNCHES: Mapping[str, tuple[dict[str, Any], str, tuple[dict[str, Any], ...]]] = {
    "gres": (
        {"sbatch_args": ("--gres=gpu:4",)},
        "give the same number in both, or leave the GPUs out of --gres",
        ({"sbatch_args": ("--gres=gpu:2",)}, {"sbatch_args": ("--gres=gpu:4",), "gpus_per_node": 4}, {}),
    ),
    "a name": ({"partition": "a b"}, "letters, digits, _ . -", ({"partition": "a_b.c-1"},)),
    "a time limit": ({"time_limit": "soon"}, "like 24:00:00", ({"time_limit": "24:00:00"},)),
    "a verb of one node": ({"script": None}, "remove --nodes", ({"script": None, "nodes": 1},)),
}


@pytest.mark.parametrize("case", LAUNCHES)
def test_a_launch(case: str) -> None:
    broken, hint, ways = LAUNCHES[case]
    with refusal(hint):
        launched(**broken)
    for way in ways:
        assert launched(**way) == ("in_process" if way.get("nodes") == 1 else "sbatch")


def test_a_job_that_sbatch_refuses(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs_elsewhere: None
) -> None:
    del inputs_elsewhere
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho no such partition >&2\nexit 1\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    line = ("train", "--nodes", 2, "--latents", "latents", "--run-dir", "run", "--set", "launch.partition=frobnicate")
    told = shell.refused("--dry-run shows its arguments", *line)
    assert "--partition=frobnicate" in shell.done(*line, told.hint.split()[0])


def test_a_secret_in_a_submission(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs_elsewhere: None
) -> None:
    del inputs_elsewhere
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho Submitted batch job 1\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("PROJECT_TOKEN", "frobnicate-8472")
    monkeypatch.chdir(tmp_path)
    line = ("train", "--nodes", 2, "--latents", "latents", "--run-dir")
    shell.refused("use another value, or rename the variable", *line, "frobnicate-8472")
    shell.done(*line, "another")
    monkeypatch.delenv("PROJECT_TOKEN")
    monkeypatch.setenv("PROJECT_NAME", "frobnicate-8472")
    shell.done(*line, "frobnicate-8472")


def unet(**changes: Any) -> Callable[[], object]:
    given: dict[str, Any] = {
        "sample_size": 8,
        "latent_channels": 2,
        "block_out_channels": [16, 16],
        "layers_per_block": 1,
        "attention_levels": [False, True],
        "attention_head_dim": 8,
        "cross_attention_dim": 8,
        "pooled_dim": 8,
        "norm_num_groups": 4,
        "transformer_layers_per_block": 1,
        "dropout": 0.0,
        "scale_shift_norm": False,
    }
    return lambda: build_unet(**{**given, **changes})


def test_a_network() -> None:
    with refusal("give one true/false per level"):
        unet(attention_levels=[True])()
    with refusal("use fewer levels, or an image size that is a multiple of a higher power of two"):
        unet(sample_size=9)()
    unet()()
    unet(sample_size=9, block_out_channels=[16], attention_levels=[True])()


def test_an_attention_kernel_that_is_not_here() -> None:
    shapes = [AttentionShape(4, 4, 1, 8)]
    given: dict[str, Any] = {"shapes": shapes, "dtype": torch.float32, "device": torch.device("cpu")}
    with refusal("set launch.attention to auto; make install-gpu ATTENTION=xformers"):
        choose_attention(requested="xformers", **given)
    assert choose_attention(requested="auto", **given).backend == "math"


def test_a_phantom() -> None:
    with refusal("use ") as caught:
        draw_phantom(seed=1, index=0, image_size_px=8)
    size = int(caught.value.hint.split()[1])
    assert draw_phantom(seed=1, index=0, image_size_px=size).pixels.shape[0] == size
    with refusal("photographs are counted from 0"):
        draw_phantom(seed=1, index=-1, image_size_px=size)


def test_wandb_that_is_not_installed(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synfundus.cli.request.find_spec", lambda name: None)
    monkeypatch.setattr("synfundus.cli.run.rehearse", lambda request, **_: "")
    line = ("train-vae", "--data", tmp_path, "--run-dir", tmp_path / "run", "--device", "cpu", "--dry-run")
    told = shell.refused("or leave telemetry.wandb_project empty", *line, "--set", "telemetry.wandb_project=mine")
    extra = re.findall(r"synfundus\[(\w+)\]", told.hint)
    assert f"\n{extra[0]} = [" in (ROOT / "pyproject.toml").read_text()
    shell.done(*line, "--set", "telemetry.wandb_project=")
    shell.done(*line)


def test_a_usage_error_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    report_usage("No such option: --budget-image", ["train", "--budget-image"])
    assert "--set train.loop.budget_images" in capsys.readouterr().err


def test_ranks_and_their_gpus() -> None:
    task = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
    task |= {"SLURM_TASKS_PER_NODE": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_ID": "0"}
    with refusal("start through slurm/*.sh or launchers/srun.sh, which set them for all tasks"):
        rank_info(task)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        assert all(name in (ROOT / place).read_text() for place in ("slurm/ldm.sh", "launchers/srun.sh"))
    assert rank_info({**task, "MASTER_ADDR": "here", "MASTER_PORT": "1"}).rank == 1
    with refusal("start one task per GPU (--ntasks-per-node equal to --gpus-per-node), or use --gpus-per-task=1"):
        gpu_index(2, 4, visible=3)
    assert (gpu_index(2, 4, visible=4), gpu_index(2, 4, visible=1)) == (2, 0)
    with refusal("start one task per GPU"):
        require_own_gpus([("a", "0"), ("a", "0")])
    require_own_gpus([("a", "0"), ("a", "1")])
    with refusal("on that node, or exclude it (sbatch --exclude)"):
        require_one_device([("a", "cuda"), ("b", "cpu")])
    require_one_device([("a", "cuda")])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """`doctor` says why there is none where it is asked for one, and only there."""
    with refusal("`synfundus doctor --device cuda` says why") as caught:
        resolve_device("cuda")
    assert resolve_device("auto") == "cpu"
    asked: list[str] = []

    def examine(environment: Mapping[str, str], *, device: str) -> list[Check]:
        del environment
        asked.append(device)
        return []

    monkeypatch.setattr("synfundus.stages.doctor.job.examine", examine)
    assert run_command(caught.value.hint.split("`")[1].split()[1:]) == 0
    assert asked == ["cuda"]
    facts: dict[str, Any] = {"devices": [], "cuda": None}
    assert check_cuda(facts, wanted="cuda", driver=None).hint == "make install-gpu"
    assert check_cuda(facts, wanted="auto", driver=None).hint == ""


def test_what_doctor_says_of_half_a_key() -> None:
    half = {"AWS_ACCESS_KEY_ID": "key"}
    found = check_s3(half, credentials_file=False)
    assert found.hint == "set AWS_SECRET_ACCESS_KEY too, or neither"
    assert check_s3({**half, found.hint.split()[1]: "secret"}, credentials_file=False).status == "ok"
    assert check_s3({}, credentials_file=False).status == "ok"
    assert check_attention({}, {"error": "killed"}).hint == "launch.attention=math works"
    load_config(preset=None, file=None, settings=["launch.attention=math"], flags=[])
