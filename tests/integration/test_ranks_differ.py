"""Ranks that were started with different things are refused at once, all of them, with the rank and the thing named."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from phantom_clinic import write_clinic
from rank_processes import REPOSITORY, Ended, rank_environments, run_processes
from tiny_pipeline import write_tiny_pipeline
from tiny_runs import settings
from tiny_sets import flip_byte, tiny_config, write_config

from synfundus.artifacts.autoencoder_folder import find_autoencoder, open_autoencoder
from synfundus.artifacts.model_export import save_pipeline
from synfundus.stages import build
from synfundus.stages.reading import latent_shape_of
from synfundus.storage.manifest import ShardSet

WITHIN_S = 30.0
"""The second rank ends within this time after the first, or is killed."""


def some_of(cases: Iterable[str], always: str) -> list[Any]:
    """Return all cases, of which one runs always."""
    return [case if case == always else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def start(
    commands: list[list[str]], *, sizes: tuple[int, int] = (2, 2), paths: tuple[str, str] | None = None
) -> list[Ended]:
    environments = rank_environments(2)
    for number, size in enumerate(sizes):
        environments[number]["WORLD_SIZE"] = str(size)
        if paths is not None:
            environments[number]["PYTHONPATH"] = paths[number]
    return run_processes(commands, environments, timeout_s=120, patience_s=WITHIN_S)


def refused(ended: list[Ended], *words: str) -> None:
    for one in ended:
        assert one.returncode == 7, "\n".join(other.output for other in ended)
        assert "Traceback" not in one.output
        for word in ("rank 1 was started with something else than rank 0", *words):
            assert word in one.output, one.output


TRAIN: dict[str, tuple[dict[str, object], str]] = {
    "a value": ({"train.optim.lr": 5e-3}, "train.optim.lr is 0.005"),
    "the seed": ({"seed": 5}, "seed is 5"),
    "the budget": ({"train.loop.budget_images": 80}, "train.loop.budget_images is 80"),
    "the preset": ({"--preset": "fundus512"}, "is "),
}


@pytest.mark.parametrize("what", some_of(TRAIN, "a value"))
def test_another_value_is_refused(what: str, latent_set: ShardSet, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", settings(latent_set, tmp_path / "run"))
    changes, words = TRAIN[what]
    options: list[str] = []
    for name, value in changes.items():
        options += [name, str(value)] if name.startswith("--") else ["--set", f"{name}={json.dumps(value)}"]
    command = [sys.executable, "-m", "synfundus", "train", "--config", str(config)]
    refused(start([command, [*command, *options]]), words)
    assert not (tmp_path / "run").exists()


def test_another_world_size_is_refused(latent_set: ShardSet, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", settings(latent_set, tmp_path / "run"))
    command = [sys.executable, "-m", "synfundus", "train", "--config", str(config)]
    refused(start([command, command], sizes=(2, 3)), "the world size is 3, 2 on rank 0")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_version_of_the_code_is_refused(latent_set: ShardSet, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    for folder in ("synfundus", "ds_configs", "slurm", "launchers"):
        shutil.copytree(root / folder, tmp_path / "other" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "other" / "synfundus" / "seeding.py").open("a") as source:
        source.write("\n# a later version\n")
    config = write_config(tmp_path / "run.yaml", settings(latent_set, tmp_path / "run"))
    commands = [in_folder(folder, "train", "--config", str(config)) for folder in (root, tmp_path / "other")]
    refused(start(commands, paths=(str(root), str(tmp_path / "other"))), "the source is")
    assert not (tmp_path / "run").exists()


def in_folder(folder: Path, *arguments: str) -> list[str]:
    code = f"import os; os.chdir({str(folder)!r}); from synfundus.cli import main; main()"
    return [sys.executable, "-c", code, *arguments]


@pytest.fixture
def hosts(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    return tmp_path / "here", tmp_path / "there"


def differ_in_set(hosts: tuple[Path, Path], latent_set: ShardSet, image_set: ShardSet, vae_run: Path) -> list[str]:
    del image_set, vae_run
    for host in hosts:
        shutil.copytree(latent_set.url, host / "latents")
    manifest = hosts[1] / "latents" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["properties"]["encoder_batch_size"] = 99
    manifest.write_text(json.dumps(document))
    config = settings(latent_set, hosts[0].parent / "run")
    config["train"]["latents"] = "latents"
    return ["train", "--config", str(write_config(hosts[0].parent / "run.yaml", config))]


def differ_in_schema(hosts: tuple[Path, Path], latent_set: ShardSet, image_set: ShardSet, vae_run: Path) -> list[str]:
    command = differ_in_set(hosts, latent_set, image_set, vae_run)
    manifest = hosts[1] / "latents" / "manifest.json"
    document = json.loads((hosts[0] / "latents" / "manifest.json").read_text())
    spec = document["label_schema"][0]
    spec["ordinal"] = not spec.get("ordinal", False)
    manifest.write_text(json.dumps(document))
    return command


def differ_in_autoencoder(
    hosts: tuple[Path, Path], latent_set: ShardSet, image_set: ShardSet, vae_run: Path
) -> list[str]:
    del latent_set
    shutil.copytree(vae_run, hosts[0] / "vae")
    write_tiny_pipeline(hosts[1] / "vae" / "export")
    options = ["--data", image_set.url, "--vae", "vae", "--out", str(hosts[0].parent / "run"), "--device", "cpu"]
    return ["encode-latents", *options]


def differ_in_model(hosts: tuple[Path, Path], latent_set: ShardSet, image_set: ShardSet, vae_run: Path) -> list[str]:
    del latent_set, image_set, vae_run
    write_tiny_pipeline(hosts[0] / "model" / "export")
    write_tiny_pipeline(hosts[1] / "model" / "export", seed=5)
    options = ["--model", "model", "--num-images", "4", "--out", str(hosts[0].parent / "run"), "--device", "cpu"]
    return ["sample", *options]


def differ_in_ds_file(hosts: tuple[Path, Path], latent_set: ShardSet, image_set: ShardSet, vae_run: Path) -> list[str]:
    del image_set, vae_run
    document = json.loads((REPOSITORY / "ds_configs" / "zero2_cpu.json").read_text())
    for number, host in enumerate(hosts):
        document["zero_optimization"]["reduce_bucket_size"] += number
        (host / "own.json").write_text(json.dumps(document))
    config = write_config(hosts[0].parent / "run.yaml", settings(latent_set, hosts[0].parent / "run"))
    return ["train", "--config", str(config), "--set", "launch.ds_config=own.json"]


def differ_in_photographs(
    hosts: tuple[Path, Path], latent_set: ShardSet, image_set: ShardSet, vae_run: Path
) -> list[str]:
    del latent_set, image_set, vae_run
    for host in hosts:
        write_clinic(host / "in", 4)
    flip_byte(hosts[1] / "in" / "clinic" / "002.jpg", 1000)
    places = ["--out", str(hosts[0].parent / "run"), "--crosswalk", str(hosts[0].parent / "names")]
    return ["prepare", "--source", "in", "--labels", "in/labels.csv", *places, "--image-size", "64", "--workers", "0"]


def write_export(folder: Path, latents: ShardSet, vae_run: Path, *, seed: int) -> None:
    """Write an untrained model for latents."""
    config = tiny_config()
    autoencoder, _ = open_autoencoder(find_autoencoder(str(vae_run)), device=torch.device("cpu"), dtype=torch.float32)
    setup = build.model_setup(config.train.diffusion, latents, autoencoder, build.sampler_settings(config.sample))
    shape = latent_shape_of(latents)
    denoiser = build.denoiser(config.train.unet, seed=seed, schema=latents.label_schema, latent_shape=shape)
    summary = {"images_seen": 0, "training_images": 0, "validation_loss": float("nan")}
    save_pipeline(folder, denoiser=denoiser, setup=setup, training_summary=summary)


def differ_in_start(hosts: tuple[Path, Path], latent_set: ShardSet, image_set: ShardSet, vae_run: Path) -> list[str]:
    del image_set
    for seed, host in enumerate(hosts):
        write_export(host / "m", latent_set, vae_run, seed=seed)
    config = write_config(hosts[0].parent / "run.yaml", settings(latent_set, hosts[0].parent / "run"))
    return ["train", "--config", str(config), "--init-from", "m", "--set", "train.unet.dropout=0"]


COPIES: dict[str, tuple[Callable[..., list[str]], str]] = {
    "the set": (differ_in_set, "latents is"),
    "the label schema": (differ_in_schema, "latents is"),
    "the autoencoder": (differ_in_autoencoder, "autoencoder_fingerprint is"),
    "the model": (differ_in_model, "model_fingerprint is"),
    "the weights to start from": (differ_in_start, "the weights to start from is"),
    "the DeepSpeed file": (differ_in_ds_file, "the DeepSpeed file is"),
    "the photographs": (differ_in_photographs, "the photographs is"),
}


@pytest.mark.parametrize("what", some_of(COPIES, "the set"))
def test_another_copy_of_a_file_on_one_host_is_refused(
    what: str, hosts: tuple[Path, Path], latent_set: ShardSet, image_set: ShardSet, vae_run: Path
) -> None:
    make, words = COPIES[what]
    command = make(hosts, latent_set, image_set, vae_run)
    refused(start([in_folder(host, *command) for host in hosts]), words)
    assert not (hosts[0].parent / "run").exists()


def test_what_one_host_lacks_ends_all_ranks(
    hosts: tuple[Path, Path], latent_set: ShardSet, image_set: ShardSet, vae_run: Path
) -> None:
    command = differ_in_set(hosts, latent_set, image_set, vae_run)
    shutil.rmtree(hosts[1] / "latents")
    for one in start([in_folder(host, *command) for host in hosts]):
        assert one.returncode == 2, one.output
        assert "'latents' does not exist" in one.output
    assert not (hosts[0].parent / "run").exists()
