"""What a figure on held-out patients left out is named and counted: it does not compare with one that has all."""

from __future__ import annotations

import shutil
from pathlib import Path

from tiny_sets import UNEVEN_SHARDS, flip_byte, tiny_config

from synfundus.distributed.world import World
from synfundus.shards.reader import ShardSetReader
from synfundus.stages.train import job as train
from synfundus.stages.train_vae import job as train_vae
from synfundus.storage.documents import read_lines
from synfundus.storage.manifest import SetKind, ShardSet, load_shard_set
from synfundus.telemetry.console import SilentConsole

HELD_OUT = sum(UNEVEN_SHARDS["val"])
LOOP = {"budget_images": 16, "checkpoint_every_images": 16, "validate_every_images": 0, "validation_images": 99}


class Listening(SilentConsole):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def damaged_copy(shard_set: ShardSet, folder: Path, kind: SetKind) -> ShardSet:
    """Copy a set and flip a byte of the picture or the moments of its second held-out sample."""
    shutil.copytree(shard_set.url, folder)
    copy = load_shard_set(str(folder), kind=kind)
    reader = ShardSetReader(copy, split="val")
    (start,) = [at for name, at, *_ in reader.shard(0).index.members(1) if name in {"png", "moments.npy"}]
    flip_byte(folder / "val" / "000000.tar", start + 200)
    reader.close()
    return copy


def left_out(console: Listening) -> list[str]:
    return [text for text in console.warnings if "is left out" in text]


def test_training_says_how_many_held_out_samples_its_loss_is_the_mean_of(
    latent_set: ShardSet, world: World, tmp_path: Path
) -> None:
    copy, console = damaged_copy(latent_set, tmp_path / "latents", "latents"), Listening()
    section = {"train": {"latents": [copy.url], "run_dir": str(tmp_path / "run"), "loop": LOOP}}
    train.run(tiny_config(section), world, console)
    judged = [row for row in read_lines(str(tmp_path / "run" / "metrics.jsonl")) if "validation_loss" in row]
    assert [row["validation_images"] for row in judged] == [HELD_OUT - 1]
    (said,) = left_out(console)
    assert "val/000000.tar#1" in said
    assert "checksum" in said


def test_the_autoencoder_is_judged_on_the_rest_and_says_so(image_set: ShardSet, world: World, tmp_path: Path) -> None:
    copy, console = damaged_copy(image_set, tmp_path / "images", "images"), Listening()
    section = {"train_vae": {"data": copy.url, "run_dir": str(tmp_path / "run"), "loop": LOOP}}
    assert train_vae.run(tiny_config(section), world, console)["evaluated_images"] == HELD_OUT - 1
    (said,) = left_out(console)
    assert "val/000000.tar#1" in said
