"""Two hundred ways to damage the newest checkpoint: each is found before anything is loaded, the one before is used."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from campaigns import report
from tiny_runs import train_here
from tiny_sets import flip_byte

from synfundus.distributed.world import LocalWorld, World
from synfundus.seeding import keyed_generator
from synfundus.storage.manifest import ShardSet
from synfundus.training.checkpoints.search import find_checkpoint

DAMAGES = 200
OLDER, NEWER = "images-000000000080", "images-000000000160"
KINDS = ("cut", "flipped bit", "missing", "garbage", "empty", "grown", "swapped", "zeros")


@pytest.fixture(scope="module")
def trained(latent_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints; not to be written to."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    train_here(latent_set, run_dir, world, budget_images=160)
    assert {OLDER, NEWER} <= {path.name for path in (run_dir / "checkpoints").iterdir()}
    return run_dir


def damage(path: Path, kind: str, draws: np.random.Generator) -> None:
    """Spoil one file."""
    data = path.read_bytes()
    place = int(draws.integers(len(data)))
    if kind == "missing":
        path.unlink()
    elif kind == "flipped bit":
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << int(draws.integers(8))]) + data[place + 1 :])
    elif kind == "zeros":  # what a file system leaves that lost its journal
        path.write_bytes(data[:place] + bytes(len(data) - place))
    else:
        spoilt = {
            "cut": data[:place],
            "garbage": draws.bytes(len(data)),
            "empty": b"",
            "grown": data + draws.bytes(1 + place),
            "swapped": data[place:] + data[:place] + b"\0",
        }
        path.write_bytes(spoilt[kind])


def test_damaged_newest_checkpoints_are_found_and_the_one_before_is_used(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draws = keyed_generator(0, "damaged-checkpoints")
    failures: list[str] = []
    for number in range(DAMAGES):
        root = tmp_path / f"{number}"
        shutil.copytree(trained / "checkpoints", root)
        files = sorted(path for path in (root / NEWER).rglob("*") if path.is_file())
        kind, path = KINDS[number % len(KINDS)], files[int(draws.integers(len(files)))]
        before = path.read_bytes()
        damage(path, kind, draws)
        if path.exists() and path.read_bytes() == before:  # zeros over zeros at the very end
            path.write_bytes(before[:-1])
        found = find_checkpoint(str(root), world=LocalWorld())
        place = path.relative_to(root)
        if found is None or found.images_seen != 80 or len(found.passed_over) != 1 or NEWER not in found.passed_over[0]:
            failures.append(f"{kind} {place}: {found}")
        shutil.rmtree(root)
    report("damaged_checkpoints", failures, DAMAGES, capsys)


def test_a_run_goes_on_from_the_checkpoint_before_and_names_the_damaged_one(
    latent_set: ShardSet, trained: Path, world: World, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(trained, run_dir)
    flip_byte(run_dir / "checkpoints" / NEWER / "unet" / "diffusion_pytorch_model.safetensors", 1000)
    _, lines = train_here(latent_set, run_dir, world, budget_images=160)
    assert any(NEWER in line and "damaged" in line for line in lines), lines
    assert any("80 images" in line for line in lines), lines
