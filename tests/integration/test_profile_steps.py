"""`profile_steps` writes a trace into the run and changes nothing else of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_runs import assert_same_run, rows, settings, state_hashes, train_here
from tiny_sets import tiny_config

from synfundus.distributed.world import World
from synfundus.stages.train_vae import job as train_vae
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole

SHORT: dict[str, Any] = {"budget_images": 160, "validate_every_images": 80}
FINAL = "images-000000000160"


def profiles(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "profile").glob("*"))


def test_a_recorded_run_has_the_same_bits_also_when_the_option_changes_at_a_resume(
    latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    plain, recorded = tmp_path / "plain", tmp_path / "recorded"
    train_here(latent_set, plain, world, **{**SHORT, "budget_images": 80})
    train_here(latent_set, recorded, world, **{**SHORT, "budget_images": 80, "profile_steps": 2})
    assert profiles(recorded) == ["images-000000000064.json.gz", "images-000000000064.txt"]

    train_here(latent_set, plain, world, **SHORT, profile_steps=1)
    train_here(latent_set, recorded, world, **SHORT)
    assert profiles(plain) == ["images-000000000136.json.gz", "images-000000000136.txt"]
    assert len(profiles(recorded)) == 2
    assert_same_run(plain, recorded, FINAL)


def test_the_autoencoder_s_training_is_recorded_too(
    image_set: ShardSet, vae_run: Path, world: World, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    changes = {"data": image_set.url, "run_dir": str(run_dir), "loop": {"profile_steps": 2}}
    train_vae.run(tiny_config({"train_vae": changes}), world, SilentConsole())
    assert [name.rpartition(".")[2] for name in profiles(run_dir)] == ["gz", "txt"]
    assert "aten::" in next((run_dir / "profile").glob("*.txt")).read_text()
    assert rows(run_dir) == rows(vae_run)
    final = "images-000000000096"
    assert state_hashes(run_dir, final) == state_hashes(vae_run, final)


def test_the_settings_of_a_recorded_run_are_no_part_of_its_identity(latent_set: ShardSet, tmp_path: Path) -> None:
    config = tiny_config(settings(latent_set, tmp_path, profile_steps=3))
    assert "profile_steps" not in str(config.train.identity_document())
    assert "profile_steps" not in str(config.train_vae.identity_document())
