"""`synfundus ema` on a run with snapshots."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from rank_processes import run_cli, run_cli_killed_at
from tiny_runs import settings, train_here
from tiny_sets import flip_byte, hashes, merged, tiny_config, write_config

from synfundus.artifacts.ema_snapshots import find_snapshots, read_snapshot
from synfundus.artifacts.model_folder import find_pipeline, load_pipeline
from synfundus.distributed.world import LocalWorld, World
from synfundus.errors import CheckpointError, ConfigError
from synfundus.stages.ema import job as ema
from synfundus.stages.train import job as train
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole

WIDTHS = (0.05, 0.1)
EMA = {"sigma_rel": [*WIDTHS, 0.07], "snapshot_every_images": 40}


def with_averages(latent_set: ShardSet, run_dir: Path) -> dict[str, object]:
    return merged(settings(latent_set, run_dir), {"train": {"ema": EMA}})


@pytest.fixture(scope="module")
def run_dir(latent_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tracked three widths; not to be written to."""
    folder = tmp_path_factory.mktemp("averages") / "run"
    train.run(tiny_config(with_averages(latent_set, folder)), world, SilentConsole())
    return folder


def make(run_dir: Path, out: Path, **section: object) -> dict[str, object]:
    config = tiny_config({"ema": {"run_dir": str(run_dir), "out": str(out), **section}})
    return ema.run(config, LocalWorld(), SilentConsole())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_pipeline(find_pipeline(str(folder)), device=torch.device("cpu")).denoiser.state_dict()


def test_snapshots_are_taken_in_time_and_at_the_end(run_dir: Path) -> None:
    found = [(one.profile.images_seen, one.profile.sigma_rel) for one in find_snapshots(str(run_dir))]
    assert found == [(images, width) for images in range(40, 401, 40) for width in (0.05, 0.07, 0.1)]


def test_a_finished_run_makes_what_it_lacks(latent_set: ShardSet, run_dir: Path, world: World, tmp_path: Path) -> None:
    """One of three snapshots of the end, without which a signal or a kill may have left it, and the last validation."""
    again = tmp_path / "run"
    shutil.copytree(run_dir, again)
    rows = (again / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "validation_loss" in rows[-1]
    (again / "metrics.jsonl").write_text("".join(rows[:-1]))
    name = "sigma-rel-0.0700-images-000000000400"
    (again / "ema" / f"{name}.json").unlink()
    (again / "ema" / f"{name}.safetensors").write_bytes(b"half of it")
    for _ in range(2):
        train.run(tiny_config(with_averages(latent_set, again)), world, SilentConsole())
        assert (again / "metrics.jsonl").read_text().splitlines(keepends=True) == rows
        assert hashes(again / "ema") == hashes(run_dir / "ema")
        assert hashes(again / "checkpoints") == hashes(run_dir / "checkpoints")


def test_a_width_that_was_tracked_comes_out_of_the_others(run_dir: Path, tmp_path: Path) -> None:
    """What the two outer widths say of the one between is what was tracked."""
    others = tmp_path / "others"
    others.mkdir()
    for name in ("export", "run.json"):
        (others / name).symlink_to(run_dir / name)
    (others / "ema").mkdir()
    for path in (run_dir / "ema").iterdir():
        if "0.0700" not in path.name:
            (others / "ema" / path.name).symlink_to(path)
    summary = make(others, tmp_path / "made", sigma_rel=0.07)
    assert summary["snapshots"] == 20
    made = weights(tmp_path / "made")
    narrow, tracked, wide = (read_snapshot(one) for one in find_snapshots(str(run_dir))[-3:])
    apart = sum(float((made[name] - tensor).square().sum()) for name, tensor in tracked.items()) ** 0.5
    range_ = sum(float((narrow[name] - tensor).square().sum()) for name, tensor in wide.items()) ** 0.5
    assert apart < 0.1 * range_


def test_a_run_killed_and_gone_on_has_the_same_snapshots(latent_set: ShardSet, run_dir: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    command = ("train", "--config", str(write_config(tmp_path / "run.yaml", with_averages(latent_set, again))))
    run_cli_killed_at("step:33", *command)
    run_cli(*command).check()
    names = sorted(path.name for path in (run_dir / "ema").iterdir())
    assert names == sorted(path.name for path in (again / "ema").iterdir())
    for name in names:
        assert (again / "ema" / name).read_bytes() == (run_dir / "ema" / name).read_bytes(), name


def test_the_command_line_writes_a_model_that_samples(run_dir: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "images"
    said = run_cli("ema", "--run-dir", run_dir, "--sigma-rel", "0.08", "--out", model).check().output
    assert "average of width 0.08 at 400 images from 30 snapshots" in said
    run_cli("sample", "--model", model, "--out", out, "--num-images", "2", "--set", "sample.num_steps=2").check()
    assert len(list((out / "images").glob("*.png"))) == 2
    assert "0.08" in (model / "synfundus.json").read_text()


def test_a_damaged_snapshot_is_named(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("export", "run.json"):
        (copy / name).symlink_to(run_dir / name)
    (copy / "ema").mkdir()
    for path in (run_dir / "ema").iterdir():
        (copy / "ema" / path.name).write_bytes(path.read_bytes())
    damaged = find_snapshots(str(copy))[4]
    flip_byte(Path(damaged.url), 5000)
    with pytest.raises(CheckpointError, match="do not match their hash") as caught:
        make(copy, tmp_path / "out", sigma_rel=0.08)
    assert caught.value.where == damaged.url
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_is_refused(latent_set: ShardSet, world: World, run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the last snapshot is of 400 images"):
        make(run_dir, tmp_path / "out", sigma_rel=0.08, at_images=401)
    train_here(latent_set, tmp_path / "plain", world, budget_images=8)
    with pytest.raises(CheckpointError, match="no snapshots"):
        make(tmp_path / "plain", tmp_path / "out", sigma_rel=0.08)
    ended = run_cli("ema", "--run-dir", run_dir)
    assert ended.returncode == 2
    assert "--sigma-rel is missing" in ended.output
