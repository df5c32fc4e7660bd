"""What `test_training_resume` shows of a run of one rank in fp32, of others: bf16, and autoencoders on two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from rank_processes import run_cli, run_cli_killed_at, run_ranks_killed_at
from tiny_runs import assert_same_run, relative_difference, rows, settings, state_hashes
from tiny_sets import write_config

from synfundus.storage.manifest import ShardSet

LAST = "images-000000000048"
SHORT = {"budget_images": 48, "checkpoint_every_images": 24, "validate_every_images": 0, "validation_images": 4}


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_in_bf16_that_is_killed_ends_with_the_same_bits(ranks: int, latent_set: ShardSet, tmp_path: Path) -> None:
    def command(name: str) -> tuple[str, ...]:
        config = write_config(
            tmp_path / f"{name}.yaml", settings(latent_set, tmp_path / name, precision="bf16", **SHORT)
        )
        return ("train", "--config", str(config), "--procs-per-node", str(ranks))

    run_cli(*command("straight")).check()
    if ranks == 1:
        run_cli_killed_at("settled:5", *command("killed"))
    else:
        run_ranks_killed_at("settled:5", 1, *command("killed"), world_size=2)
    assert rows(tmp_path / "killed")[-1]["images_seen"] == 32
    assert "resumed at 24 images" in run_cli(*command("killed")).check().output
    assert_same_run(tmp_path / "straight", tmp_path / "killed", LAST)
    masters = safetensors.torch.load_file(
        tmp_path / "killed" / "checkpoints" / LAST / "unet" / "diffusion_pytorch_model.safetensors"
    )
    assert {tensor.dtype for tensor in masters.values()} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in masters.values()), "finer than bf16"


def autoencoder(image_set: ShardSet, folder: Path, name: str, ranks: int, **loss: Any) -> tuple[str, ...]:
    loop = {**SHORT, "micro_batch_size": 2}
    section = {"data": image_set.url, "run_dir": str(folder / name), "loop": loop, "loss": loss}
    config = write_config(folder / f"{name}.yaml", {"train_vae": section})
    return ("train-vae", "--config", str(config), "--procs-per-node", str(ranks))


def losses(run_dir: Path) -> list[float]:
    return [float(row["loss"]) for row in rows(run_dir) if "loss" in row]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_autoencoder_on_two_ranks_learns_as_on_one_and_survives_a_kill(image_set: ShardSet, tmp_path: Path) -> None:
    adversarial = {"adversarial_weight": 0.1, "adversarial_start_images": 16}
    run_cli(*autoencoder(image_set, tmp_path, "one", 1, **adversarial)).check()
    run_cli(*autoencoder(image_set, tmp_path, "two", 2, **adversarial)).check()
    assert len(losses(tmp_path / "one")) == 6
    assert relative_difference(losses(tmp_path / "one"), losses(tmp_path / "two")) < 1e-5

    killed = autoencoder(image_set, tmp_path, "killed", 2, **adversarial)
    run_ranks_killed_at("settled:5", 0, *killed, world_size=2)
    assert "resumed at 24 images" in run_cli(*killed).check().output
    assert rows(tmp_path / "killed") == rows(tmp_path / "two")
    assert state_hashes(tmp_path / "killed", LAST) == state_hashes(tmp_path / "two", LAST)
    rest = safetensors.torch.load_file(tmp_path / "killed" / "checkpoints" / LAST / "model.safetensors")
    assert any(name.startswith("discriminator.") for name in rest)

    # elastic: one rank goes on from what two have saved
    elastic = autoencoder(image_set, tmp_path, "elastic", 2, **adversarial)
    run_ranks_killed_at("settled:5", 0, *elastic, world_size=2)
    run_cli(*autoencoder(image_set, tmp_path, "elastic", 1, **adversarial)).check()
    assert relative_difference(losses(tmp_path / "two"), losses(tmp_path / "elastic")) < 1e-5
