"""Runs of `train` on tiny sets, and what two of them that should be the same are compared by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from tiny_sets import tiny_config

from synfundus.distributed.world import World
from synfundus.stages.train import job as train
from synfundus.storage.documents import read_lines
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole
from synfundus.training.progress import CLOCK_FIGURES

STEPS = 50
FINAL = "images-000000000400"


class Talk(SilentConsole):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)

    def warning(self, text: str) -> None:
        self.lines.append(f"warning: {text}")


def settings(latent_set: ShardSet, run_dir: Path, **loop: Any) -> dict[str, Any]:
    """Use all that is drawn at random: flips, label drops, dropout."""
    return {
        "train": {
            "latents": latent_set.url,
            "run_dir": str(run_dir),
            "diffusion": {"flip": True},
            "unet": {"dropout": 0.1},
            "optim": {"weight_decay": 0.01},
            "loop": loop,
        }
    }


def train_here(latent_set: ShardSet, run_dir: Path, world: World, **loop: Any) -> tuple[dict[str, Any], list[str]]:
    talk = Talk()
    return train.run(tiny_config(settings(latent_set, run_dir, **loop)), world, talk), talk.lines


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl without what depends on the clock."""
    return [
        {name: value for name, value in row.items() if name not in CLOCK_FIGURES}
        for row in read_lines(str(run_dir / "metrics.jsonl"))
    ]


def losses(run_dir: Path) -> list[float]:
    found = {row["images_seen"]: row["loss"] for row in rows(run_dir) if "loss" in row}
    assert list(found) == [8 * (step + 1) for step in range(len(found))], "a row for each step, in order"
    return list(found.values())


def state_hashes(run_dir: Path, name: str = FINAL) -> dict[str, str]:
    """Hash what a checkpoint holds: weights, fp32 partitions with moments and average, state."""
    folder = run_dir / "checkpoints" / name
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    assert any(path.parts[0] == "zero" for path in files)
    return {str(path): hashlib.sha256(files[path].read_bytes()).hexdigest() for path in sorted(files)}


def assert_same_run(one: Path, other: Path, name: str = FINAL) -> None:
    assert rows(one) == rows(other)
    assert state_hashes(one, name) == state_hashes(other, name)
    exported = [
        safetensors.torch.load_file(run / "export" / "unet" / "diffusion_pytorch_model.safetensors")
        for run in (one, other)
    ]
    assert all(exported[0][name].equal(exported[1][name]) for name in exported[0])


def relative_difference(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) / abs(a) for a, b in zip(one, other, strict=True))


def without_dropout(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dropout is drawn by rank: the one thing that another number of ranks changes."""
    return {**config, "train": {**config["train"], "unet": {}}}
