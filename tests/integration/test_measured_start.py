"""Micro-batch and layout measured at start: a run with `auto` has the bits of one with the same values given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import run_cli
from tiny_runs import Talk, losses, relative_difference, settings, state_hashes, without_dropout
from tiny_sets import tiny_config, write_config

from synfundus.distributed.world import World
from synfundus.errors import ConfigError, DataError
from synfundus.stages import measured_start
from synfundus.stages.measured_start import remembered_format, remembered_size
from synfundus.stages.train import job as train
from synfundus.stages.train_vae import job as train_vae
from synfundus.storage.manifest import ShardSet
from synfundus.training.memory.measuring import FormatChoice
from synfundus.training.memory.rehearsal import Rehearsal

SHORT = {"budget_images": 48, "checkpoint_every_images": 24, "validate_every_images": 0}
HALFWAY, LAST = "images-000000000024", "images-000000000048"
AUTO = {"micro_batch_size": "auto", "channels_last": "auto"}


def run_train(latent_set: ShardSet, run_dir: Path, world: World, **loop: Any) -> list[str]:
    """Train with dropout, which draws from torch's generators; returns what was said."""
    talk = Talk()
    train.run(tiny_config(settings(latent_set, run_dir, **{**SHORT, **loop})), world, talk)
    return talk.lines


def run_vae(image_set: ShardSet, run_dir: Path, world: World, **loop: Any) -> list[str]:
    """Train the autoencoder with a discriminator; returns what was said."""
    talk = Talk()
    vae = {"data": image_set.url, "run_dir": str(run_dir), "loop": {**SHORT, **loop}}
    loss = {"adversarial_weight": 0.1, "adversarial_start_images": 16}
    train_vae.run(tiny_config({"train_vae": {**vae, "loss": loss}}), world, talk)
    return talk.lines


def machine(run_dir: Path) -> dict[str, Any]:
    """Return what a run remembers of its start."""
    document: dict[str, Any] = json.loads((run_dir / "machine.json").read_text())
    return document


def stopped_halfway(run_dir: Path, copy: Path) -> Path:
    """Return a copy of a run as if it had been killed after its first checkpoint."""
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "checkpoints" / LAST)
    return copy


def never(*_: object, **__: object) -> Any:
    raise AssertionError("measured again")


@pytest.fixture
def too_little_for_eight(latent_set: ShardSet, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A host with one byte less than a pass over all eight images of a step takes; returns its bytes."""
    lines = run_train(latent_set, tmp_path / "enough", world, micro_batch_size="auto")
    assert any(line.startswith("micro-batch 8 found: all of a rank's share (") for line in lines)
    budget = int(machine(tmp_path / "enough")["micro_batch"]["need"]["bytes"]) - 1
    monkeypatch.setattr(measured_start, "budget_bytes", lambda device, world: budget)
    return budget


def test_a_run_that_finds_its_micro_batch_has_the_bits_of_one_that_is_given_it(
    latent_set: ShardSet,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    too_little_for_eight: int,
) -> None:
    lines = run_train(latent_set, tmp_path / "auto", world, micro_batch_size="auto")
    assert any(line.startswith("micro-batch 4 found (8 would need up to ") for line in lines)
    assert "global batch 8 = 1 ranks x 2 steps x 4 images" in lines
    found = machine(tmp_path / "auto")["micro_batch"]
    assert (found["size"], found["world_size"], found["device"]) == (4, 1, "cpu")
    assert found["need"]["budget_bytes"] == too_little_for_eight
    larger, need = found["refused"]
    assert larger == 8
    assert need["bytes"] >= too_little_for_eight + 1, "what was forecast is what it takes, or more"
    assert not (tmp_path / "given" / "machine.json").exists()
    run_train(latent_set, tmp_path / "given", world, micro_batch_size=4)
    assert state_hashes(tmp_path / "auto", LAST) == state_hashes(tmp_path / "given", LAST)

    # the run goes on where there is room for more, and keeps what it began with
    monkeypatch.setattr(Rehearsal, "peak_bytes", never)
    resumed = stopped_halfway(tmp_path / "auto", tmp_path / "resumed")
    lines = run_train(latent_set, resumed, world, micro_batch_size="auto")
    assert "micro-batch 4, as this run began with (machine.json)" in lines
    assert state_hashes(resumed, LAST) == state_hashes(tmp_path / "auto", LAST)


def test_where_not_one_image_fits_the_run_says_so_and_starts_nothing(
    latent_set: ShardSet, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured_start, "budget_bytes", lambda device, world: 1000)
    with pytest.raises(ConfigError, match="not even one image fits") as caught:
        run_train(latent_set, tmp_path / "run", world, micro_batch_size="auto")
    assert caught.value.where == "train.loop.micro_batch_size"
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("wins", [False, True])
def test_a_run_takes_the_layout_that_won_and_keeps_it(
    latent_set: ShardSet, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wins: bool
) -> None:
    choice = FormatChoice(channels_last=wins, contiguous_s=0.2, channels_last_s=0.1 if wins else 0.3, pairs=3)

    def measured(step_s: Any) -> FormatChoice:
        assert step_s(True) > 0
        assert step_s(False) > 0
        return choice

    monkeypatch.setattr(measured_start, "measure_format", measured)
    lines = run_train(latent_set, tmp_path / "auto", world, channels_last="auto")
    assert choice.describe() in lines
    assert machine(tmp_path / "auto")["channels_last"]["channels_last"] is wins
    run_train(latent_set, tmp_path / "given", world, channels_last=wins)
    assert state_hashes(tmp_path / "auto", LAST) == state_hashes(tmp_path / "given", LAST)

    monkeypatch.setattr(measured_start, "measure_format", never)
    resumed = stopped_halfway(tmp_path / "auto", tmp_path / "resumed")
    lines = run_train(latent_set, resumed, world, channels_last="auto")
    assert f"channels_last {'on' if wins else 'off'}, as this run began with (machine.json)" in lines
    assert state_hashes(resumed, LAST) == state_hashes(tmp_path / "auto", LAST)


@pytest.mark.slow
def test_an_autoencoder_with_a_discriminator_measures_both_and_goes_on_with_them(
    image_set: ShardSet, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, tuple[bool, ...]]] = []
    original = Rehearsal.peak_bytes

    def peak_bytes(self: Rehearsal[Any], size: int, layouts: tuple[bool, ...]) -> int | None:
        seen.append((size, layouts))
        return original(self, size, layouts)

    monkeypatch.setattr(Rehearsal, "peak_bytes", peak_bytes)
    run_vae(image_set, tmp_path / "auto", world, **AUTO)
    assert seen == [(size, (True, False)) for size in (1, 2, 4, 8)]
    begun = machine(tmp_path / "auto")
    run_vae(image_set, tmp_path / "given", world, channels_last=begun["channels_last"]["channels_last"])
    assert begun["micro_batch"]["size"] == 8
    assert state_hashes(tmp_path / "auto", LAST) == state_hashes(tmp_path / "given", LAST)

    monkeypatch.setattr(Rehearsal, "peak_bytes", never)
    monkeypatch.setattr(Rehearsal, "seconds", never)
    resumed = stopped_halfway(tmp_path / "auto", tmp_path / "resumed")
    run_vae(image_set, resumed, world, **AUTO)
    assert state_hashes(resumed, LAST) == state_hashes(tmp_path / "auto", LAST)
    assert machine(resumed) == begun


@pytest.mark.slow
def test_two_ranks_agree_and_one_rank_that_goes_on_looks_again(
    latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    one = without_dropout(settings(latent_set, tmp_path / "one", **SHORT))
    train.run(tiny_config(one), world, Talk())
    two = without_dropout(settings(latent_set, tmp_path / "two", **{**SHORT, "channels_last": "auto"}))
    command = ("train", "--config", write_config(tmp_path / "two.yaml", two), "--procs-per-node", "2")
    ended = run_cli(*command, "--micro-batch", "auto").check()
    assert ended.output.count("micro-batch 4 found: all of a rank's share (") == 1
    assert "2 ranks x 1 steps x 4 images" in ended.output
    assert relative_difference(losses(tmp_path / "one"), losses(tmp_path / "two")) < 1e-5

    resumed = stopped_halfway(tmp_path / "two", tmp_path / "alone")
    begun = machine(resumed)
    talk = Talk()
    alone = without_dropout(settings(latent_set, resumed, **{**SHORT, **AUTO}))
    train.run(tiny_config(alone), world, talk)
    assert any(line.startswith("micro-batch 8 found") for line in talk.lines)
    now = machine(resumed)
    assert now["micro_batch"]["world_size"] == 1
    assert now["channels_last"] == begun["channels_last"], "the layout is kept for any number of ranks"
    assert relative_difference(losses(tmp_path / "one"), losses(resumed)) < 1e-5


def test_without_auto_nothing_is_measured_or_written(
    latent_set: ShardSet, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured_start, "Rehearsal", never)
    run_train(latent_set, tmp_path / "run", world)
    assert not (tmp_path / "run" / "machine.json").exists()


def test_a_damaged_memory_of_the_start_is_refused(latent_set: ShardSet, world: World, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_train(latent_set, run_dir, world)
    (run_dir / "machine.json").write_text('{"format": "synfundus-machine", "schema_version": 2}')
    with pytest.raises(DataError, match="version 2"):
        run_train(latent_set, run_dir, world, micro_batch_size="auto")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_real_gpu_a_run_finds_and_keeps_both(latent_set: ShardSet, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = write_config(tmp_path / "run.yaml", settings(latent_set, run_dir, **{**SHORT, **AUTO}))
    command = ("train", "--config", config, "--device", "cuda", "--procs-per-node", "1")
    ended = run_cli(*command).check()
    assert "micro-batch 8 found: all of a rank's share (" in ended.output
    begun = machine(run_dir)
    assert begun["micro_batch"]["device"] == torch.cuda.get_device_name(0)
    assert 0 < begun["micro_batch"]["need"]["bytes"] < begun["micro_batch"]["need"]["budget_bytes"]
    assert begun["channels_last"]["contiguous_s"] > 0
    shutil.rmtree(run_dir / "checkpoints" / LAST)
    ended = run_cli(*command).check()
    assert "micro-batch 8, as this run began with (machine.json)" in ended.output
    assert machine(run_dir) == begun


HERE = {"world_size": 2, "device": "cpu"}


@pytest.mark.parametrize(
    ("found", "share", "size"),
    [
        ({**HERE, "size": 4}, 8, 4),
        ({**HERE, "size": 3}, 8, None),
        ({**HERE, "size": 4, "world_size": 1}, 8, None),
        ({**HERE, "size": 4, "device": "NVIDIA H100 80GB HBM3"}, 8, None),
        ({**HERE, "size": "4"}, 8, None),
        ({**HERE, "size": 0}, 8, None),
        (HERE, 8, None),
        (None, 8, None),
        ([], 8, None),
    ],
)
def test_what_is_remembered_counts_for_the_same_ranks_device_and_share(
    found: object, share: int, size: int | None
) -> None:
    assert remembered_size(found, HERE, share=share) == size


@pytest.mark.parametrize(
    ("found", "layout"),
    [({"channels_last": True}, True), ({"channels_last": False}, False), ({"channels_last": 1}, None), ({}, None)],
)
def test_a_layout_that_is_remembered_is_one_of_two(found: object, layout: bool | None) -> None:
    assert remembered_format(found) is layout
    assert remembered_format(None) is None
