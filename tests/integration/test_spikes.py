"""A loss that spikes in a real run: what is done leaves the run as exact as before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_runs import assert_same_run, rows, train_here
from tiny_sets import flip_byte

from synfundus.distributed.world import World
from synfundus.errors import NumericalError
from synfundus.storage.manifest import ShardSet
from synfundus.training.step import LatentDiffusionStep
from synfundus.training.trainer import Trainer

SPIKE_AT = 232
"""The step from there to 240 images; the checkpoint before is at 160."""
WATCH = {"spike_window_steps": 10, "spike_factor": 10.0}


@pytest.fixture
def spike(monkeypatch: pytest.MonkeyPatch) -> None:
    original = LatentDiffusionStep.forward

    def forward(self: LatentDiffusionStep, batch: Mapping[str, Any], images_seen: int) -> Any:
        loss, sums = original(self, batch, images_seen)
        if images_seen == SPIKE_AT and torch.is_grad_enabled():
            return loss * 1e4, {**sums, "loss": sums["loss"] * 1e4}
        return loss, sums

    monkeypatch.setattr(LatentDiffusionStep, "forward", forward)


@pytest.mark.usefixtures("spike")
@pytest.mark.parametrize(("policy", "counter"), [("skip", "skipped_steps"), ("rewind", "rewinds")])
def test_a_run_with_a_spike_is_stopped_and_goes_on_to_the_same_bits(
    latent_set: ShardSet, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, counter: str
) -> None:
    train_here(latent_set, tmp_path / "whole", world, on_spike=policy, **WATCH)
    assert any(row.get(counter) == 1 for row in rows(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_run_periodic", stopping_at(272))
        with pytest.raises(KeyboardInterrupt):
            train_here(latent_set, tmp_path / "stopped", world, on_spike=policy, **WATCH)
    train_here(latent_set, tmp_path / "stopped", world, on_spike=policy, **WATCH)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def stopping_at(images: int) -> Callable[[Trainer, int], None]:
    original = Trainer._run_periodic

    def run(self: Trainer, before: int) -> None:
        original(self, before)
        if self.state.images_seen == images:
            raise KeyboardInterrupt

    return run


@pytest.mark.usefixtures("spike")
def test_a_rewind_brings_back_what_the_checkpoint_holds(
    latent_set: ShardSet, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[torch.Tensor] = []
    original = Trainer._leave_out

    def leave_out(self: Trainer, policy: str, key: str, fault: str) -> None:
        original(self, policy, key, fault)
        found.extend(master.clone() for master in self._engine.masters())

    monkeypatch.setattr(Trainer, "_leave_out", leave_out)
    train_here(latent_set, tmp_path / "run", world, on_spike="rewind", keep_checkpoints=9, **WATCH)
    folder = tmp_path / "run" / "checkpoints" / "images-000000000160"
    saved = safetensors.torch.load_file(folder / "zero" / "rank-00000-of-00001.safetensors")
    assert len(found) > 0
    for number, master in enumerate(found):
        assert torch.equal(master, saved[f"group{number}.master"])


@pytest.mark.usefixtures("spike")
def test_a_rewind_names_the_damaged_checkpoint_it_passes_over(
    latent_set: ShardSet, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._leave_out

    def leave_out(self: Trainer, policy: str, key: str, fault: str) -> None:
        self._saver.wait()  # damaged after it was written, not meanwhile
        flip_byte(
            tmp_path / "run" / "checkpoints" / "images-000000000160" / "unet" / "diffusion_pytorch_model.safetensors",
            1000,
        )
        original(self, policy, key, fault)

    monkeypatch.setattr(Trainer, "_leave_out", leave_out)
    _, lines = train_here(latent_set, tmp_path / "run", world, on_spike="rewind", budget_images=240, **WATCH)
    assert [line for line in lines if "images-000000000160" in line and "passed over" in line]
    assert [line for line in lines if "back to the weights of 80 images" in line]


@pytest.mark.usefixtures("spike")
def test_without_a_guard_a_spike_moves_the_weights_and_with_stop_the_run_ends(
    latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    with pytest.raises(NumericalError, match="is a spike in the step that ends at 240 images"):
        train_here(latent_set, tmp_path / "stop", world, on_spike="stop", **WATCH)
    train_here(latent_set, tmp_path / "off", world)
    assert any(row.get("loss", 0) > 100 for row in rows(tmp_path / "off"))
