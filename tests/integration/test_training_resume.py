"""A run that is killed goes on by itself and ends with the same bits; ranks change nothing but the last digits."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from rank_processes import REPOSITORY, run_cli, run_cli_killed_at
from tiny_runs import (
    FINAL,
    STEPS,
    Talk,
    assert_same_run,
    losses,
    relative_difference,
    rows,
    settings,
    state_hashes,
    train_here,
    without_dropout,
)
from tiny_sets import flip_byte, tiny_config, write_config

from synfundus.distributed.world import World
from synfundus.errors import CheckpointError
from synfundus.shards.reader import ShardSetReader
from synfundus.stages.train import job as train
from synfundus.storage.documents import read_lines
from synfundus.storage.manifest import ShardSet, load_shard_set
from synfundus.telemetry.console import SilentConsole
from synfundus.training.checkpoints.search import MANIFEST_NAME


@pytest.fixture(scope="module")
def straight(latent_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one rank that nothing interrupted."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    summary, _ = train_here(latent_set, run_dir, world)
    assert summary["engine"] == "DeepSpeedZeroOptimizer"
    assert summary["zero_stage"] == 2
    return run_dir


def test_a_run_logs_every_step_and_learns(straight: Path) -> None:
    found = losses(straight)
    assert len(found) == STEPS
    assert sum(found[-15:]) < sum(found[:15])
    assert [row["images_seen"] for row in rows(straight) if "validation_loss" in row] == [160, 320, 400]


def test_a_run_killed_at_three_points_ends_with_the_same_bits(
    latent_set: ShardSet, straight: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    command = ("train", "--config", str(write_config(tmp_path / "run.yaml", settings(latent_set, run_dir))))
    checkpoints = run_dir / "checkpoints"

    # in the middle of step 14: the weights are new, the average and the metrics are not
    run_cli_killed_at("settled:14", *command)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["images-000000000080", "latest"]
    assert rows(run_dir)[-1]["images_seen"] == 104

    # in the middle of a file of the checkpoint at 160 images
    run_cli_killed_at("write:images-000000000160.tmp/unet/diffusion_pytorch_model.safetensors", *command)
    assert not (checkpoints / "images-000000000160").exists()
    assert (checkpoints / "images-000000000160.tmp" / "zero").is_dir()

    # right after the next checkpoint was published, before its name is noted and old ones are dropped
    run_cli_killed_at("write:checkpoints/latest", *command)
    names = sorted(path.name for path in checkpoints.iterdir() if path.name.startswith("images"))
    assert names == ["images-000000000080", "images-000000000160"]

    ended = run_cli(*command).check()
    assert "resumed at 160 images" in ended.output
    assert rows(straight)[:5] == rows(run_dir)[:5]
    assert_same_run(straight, run_dir)


def test_a_damaged_newest_checkpoint_is_passed_over_by_name_and_the_end_is_the_same(
    latent_set: ShardSet, straight: Path, world: World, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    flip_byte(run_dir / "checkpoints" / FINAL / "zero" / "rank-00000-of-00001.safetensors", 5000)
    (run_dir / "checkpoints" / "images-000000000320" / "state.json").unlink()
    _, lines = train_here(latent_set, run_dir, world)
    warnings = [line for line in lines if line.startswith("warning")]
    assert len(warnings) == 2
    assert FINAL in warnings[0]
    assert "does not match its hash" in warnings[0]
    assert "images-000000000320" in warnings[1]
    assert "state.json" in warnings[1] or "not found" in warnings[1]
    assert any("resumed at 240 images" in line for line in lines)
    assert_same_run(straight, run_dir)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(
    latent_set: ShardSet, straight: Path, world: World, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    for folder in (run_dir / "checkpoints").glob("images-*"):
        flip_byte(folder / "unet" / "diffusion_pytorch_model.safetensors", 3000)
    with pytest.raises(CheckpointError, match="all 3 checkpoints are damaged"):
        train_here(latent_set, run_dir, world)


def test_a_run_over_damaged_samples_names_them_once_and_resumes_to_the_same_bits(
    latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    damaged = tmp_path / "latents"
    shutil.copytree(latent_set.url, damaged)
    copy = load_shard_set(str(damaged), kind="latents")
    reader = ShardSetReader(copy, split="train")
    for shard, sample in ((0, 3), (2, 20)):
        flip_byte(damaged / "train" / f"{shard:06d}.tar", reader.shard(shard).index.span(sample)[1] - 1)
    reader.close()
    whole, again = tmp_path / "whole", tmp_path / "again"
    summary, _ = train_here(copy, whole, world, max_bad_fraction=0.1)
    ledger = read_lines(str(whole / "ledger.jsonl"))
    naming, epochs = ([row for row in ledger if ("samples" in row) is names] for names in (True, False))
    named = [sample["place"].rsplit("/", 1)[-1] for row in naming for sample in row["samples"]]
    # 400 images of 72: each of the two comes five or six times
    assert {name: named.count(name) in (5, 6) for name in named} == {"000000.tar#3": True, "000002.tar#20": True}
    assert summary["quarantined_images"] == len(named) == naming[-1]["quarantined"]
    assert all(row["planned"] == row["delivered"] + row["quarantined"] for row in naming)
    assert all(row["planned"] == row["delivered"] + sum(row["quarantined"].values()) for row in epochs)
    assert sum(row["planned"] for row in epochs) == 400
    assert sum(sum(row["quarantined"].values()) for row in epochs) == len(named)

    shutil.copytree(whole, again)
    for name in ("images-000000000320", FINAL):
        shutil.rmtree(again / "checkpoints" / name)
    train_here(copy, again, world, max_bad_fraction=0.1)
    assert_same_run(whole, again)
    assert read_lines(str(again / "ledger.jsonl")) == ledger


def test_a_finished_run_started_again_exports_and_changes_nothing(
    latent_set: ShardSet, straight: Path, world: World, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    shutil.rmtree(run_dir / "export")
    summary, _ = train_here(latent_set, run_dir, world)
    assert summary["images_seen"] == 400
    assert_same_run(straight, run_dir)
    before, after = (
        json.loads((run / "export" / "synfundus.json").read_text())["training"] for run in (straight, run_dir)
    )
    assert after["loss"] == before["loss"] == losses(straight)[-1], (
        "nothing was trained, and the figures are still there"
    )
    assert after["validation_loss"] == before["validation_loss"] > 0


@pytest.mark.parametrize("owed", [[], ["validation"], ["preview", "something that there is no more"]])
def test_a_checkpoint_of_an_earlier_version_that_notes_what_was_owed_goes_on(
    latent_set: ShardSet, straight: Path, world: World, tmp_path: Path, owed: list[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / FINAL)
    folder = run_dir / "checkpoints" / "images-000000000320"
    state = json.loads((folder / "state.json").read_text())
    assert "owed" not in state
    (folder / "state.json").write_text(json.dumps({**state, "owed": owed}))
    data = (folder / "state.json").read_bytes()
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest["files"]["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    _, lines = train_here(latent_set, run_dir, world)
    assert any("resumed at 320 images" in line for line in lines)
    assert not [line for line in lines if line.startswith("warning")]
    assert_same_run(straight, run_dir)


@pytest.mark.parametrize("budget", [320, 160])
def test_a_budget_below_what_was_trained_changes_nothing_and_exports(
    latent_set: ShardSet, straight: Path, world: World, tmp_path: Path, budget: int
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    shutil.rmtree(run_dir / "export")
    summary, _ = train_here(latent_set, run_dir, world, budget_images=budget)
    assert summary["images_seen"] == 400
    assert rows(run_dir) == rows(straight)
    assert state_hashes(run_dir) == state_hashes(straight)
    assert (run_dir / "export" / "synfundus.json").exists()


def test_a_budget_raised_at_a_boundary_keeps_its_rows_and_judges_there_once(
    latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    train_here(latent_set, run_dir, world, budget_images=160)  # a checkpoint and a validation fall on its end
    before = rows(run_dir)
    assert [row["images_seen"] for row in before if "validation_loss" in row] == [160]
    train_here(latent_set, run_dir, world)
    assert rows(run_dir)[: len(before)] == before
    assert len(losses(run_dir)) == STEPS
    assert [row["images_seen"] for row in rows(run_dir) if "validation_loss" in row] == [160, 320, 400]


def test_a_larger_budget_goes_on_from_the_end(
    latent_set: ShardSet, straight: Path, world: World, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    summary, lines = train_here(latent_set, run_dir, world, budget_images=424)
    assert any("resumed at 400 images" in line for line in lines)
    assert summary["images_seen"] == 424
    assert len(losses(run_dir)) == 53
    assert losses(run_dir)[:STEPS] == losses(straight)


@pytest.fixture(scope="module")
def one_rank(latent_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one rank without dropout."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    train.run(tiny_config(without_dropout(settings(latent_set, run_dir))), world, SilentConsole())
    return run_dir


def test_how_a_global_batch_is_computed_does_not_change_the_losses(
    latent_set: ShardSet, one_rank: Path, world: World, tmp_path: Path
) -> None:
    how = {"micro_batch_size": 2, "prefetch_batches": 0, "gradient_checkpointing": True, "channels_last": False}
    config = without_dropout(settings(latent_set, tmp_path / "run", **how))
    train.run(tiny_config(config), world, SilentConsole())
    assert relative_difference(losses(one_rank), losses(tmp_path / "run")) < 1e-5


def test_one_and_two_ranks_see_the_same_global_batches_and_noise(
    latent_set: ShardSet, one_rank: Path, world: World, tmp_path: Path
) -> None:
    two = write_config(tmp_path / "two.yaml", without_dropout(settings(latent_set, tmp_path / "two")))
    run_cli("train", "--config", two, "--procs-per-node", "2").check()
    one_losses, two_losses = losses(one_rank), losses(tmp_path / "two")
    assert len(one_losses) == STEPS
    assert relative_difference(one_losses, two_losses) < 1e-5

    # elastic: what two ranks saved at 240 images, one rank takes up
    run_dir = tmp_path / "elastic"
    shutil.copytree(tmp_path / "two", run_dir)
    for name in ("images-000000000320", FINAL):
        shutil.rmtree(run_dir / "checkpoints" / name)
    talk = Talk()
    train.run(tiny_config(without_dropout(settings(latent_set, run_dir))), world, talk)
    assert any("resumed at 240 images" in line for line in talk.lines)
    elastic = losses(run_dir)
    assert elastic[:30] == two_losses[:30]
    assert relative_difference(two_losses, elastic) < 1e-5
    assert relative_difference(one_losses, elastic) < 1e-5
    assert (run_dir / "checkpoints" / FINAL / "zero" / "rank-00000-of-00001.safetensors").exists()


@pytest.fixture
def small_buckets(tmp_path: Path) -> str:
    """Buckets that most parameters are larger than, which takes another way through the engine."""
    document = json.loads((REPOSITORY / "ds_configs" / "zero2_cpu.json").read_text())
    document["zero_optimization"]["reduce_bucket_size"] = 200
    (tmp_path / "small_buckets.json").write_text(json.dumps(document))
    return str(tmp_path / "small_buckets.json")


def test_small_buckets_give_the_same_sums(
    latent_set: ShardSet, one_rank: Path, world: World, small_buckets: str, tmp_path: Path
) -> None:
    config = without_dropout(settings(latent_set, tmp_path / "run"))
    train.run(tiny_config({**config, "launch": {"ds_config": small_buckets}}), world, SilentConsole())
    assert losses(tmp_path / "run") == losses(one_rank)
    assert state_hashes(tmp_path / "run") == state_hashes(one_rank)


@pytest.mark.slow
def test_small_buckets_give_two_ranks_the_same_sums(latent_set: ShardSet, small_buckets: str, tmp_path: Path) -> None:
    for name, options in (("two", ()), ("small", ("--set", f"launch.ds_config={small_buckets}"))):
        config = write_config(tmp_path / f"{name}.yaml", without_dropout(settings(latent_set, tmp_path / name)))
        run_cli("train", "--config", config, "--procs-per-node", "2", *options).check()
    assert losses(tmp_path / "small") == losses(tmp_path / "two")
    assert state_hashes(tmp_path / "small") == state_hashes(tmp_path / "two")


def test_an_autoencoder_run_that_is_killed_ends_with_the_same_bits(
    image_set: ShardSet, vae_run: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    config = write_config(tmp_path / "run.yaml", {"train_vae": {"data": image_set.url, "run_dir": str(run_dir)}})
    run_cli_killed_at("settled:9", "train-vae", "--config", config)
    assert rows(run_dir)[-1]["images_seen"] == 64
    ended = run_cli("train-vae", "--config", config).check()
    assert "resumed at 48 images" in ended.output
    final = "images-000000000096"
    assert rows(run_dir) == rows(vae_run)
    assert state_hashes(run_dir, final) == state_hashes(vae_run, final)
    name = "diffusion_pytorch_model.safetensors"
    exported = [(run / "export" / "vae" / name).read_bytes() for run in (run_dir, vae_run)]
    assert exported[0] == exported[1]
