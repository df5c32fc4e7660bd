"""A disk that is really full while a checkpoint is written: nobody waits, nothing is lost, figures are given."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from campaigns import report
from rank_processes import run_cli, run_ranks_with_fault
from safetensors.torch import save_file
from tiny_runs import assert_same_run, settings
from tiny_sets import write_config

from synfundus.distributed.world import LocalWorld
from synfundus.errors import StorageError
from synfundus.seeding import keyed_generator
from synfundus.storage.local_folder import folder_to_replace
from synfundus.storage.manifest import ShardSet
from synfundus.training.checkpoints.search import find_checkpoint

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
POINTS = 10
BUDGET = 240
FINAL = f"images-{BUDGET:012d}"
PARTITION = "images-000000000160.tmp/zero"
FULL = re.compile(
    r"No space left on device, [\d,]+ bytes are free"
    r"(, of [\d,]+ to be written.*images-000000000160\.tmp|.*metrics\.jsonl)",
    re.DOTALL,
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=False)
    if done.returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def command(latent_set: ShardSet, run_dir: Path, config: Path) -> tuple[str, ...]:
    path = write_config(config, settings(latent_set, run_dir, budget_images=BUDGET))
    return ("train", "--config", str(path), "--procs-per-node", "2")


def fill_while_saving(rank: int, room: int, *arguments: str) -> None:
    """Let a rank meet a full disk in its part of the second checkpoint; all ranks have to say so and leave.

    Training goes on while a checkpoint is written: rank 0 may meet the full disk first, with a row of metrics.
    """
    ended = run_ranks_with_fault(f"full:{PARTITION}:{room}", rank, *arguments, world_size=2, patience_s=60.0)
    for process in ended:
        assert process.returncode == StorageError.exit_code, "\n---\n".join(one.output for one in ended)
        assert FULL.search(process.output), process.output


@pytest.fixture(scope="module")
def straight(latent_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that met no fault."""
    folder = tmp_path_factory.mktemp("straight")
    run_cli(*command(latent_set, folder / "run", folder / "run.yaml")).check()
    return folder / "run"


def meet_and_go_on(latent_set: ShardSet, straight: Path, disk: Path, config: Path, *, rank: int, room: int) -> None:
    run_dir = disk / f"rank{rank}-{room}"
    arguments = command(latent_set, run_dir, config)
    fill_while_saving(rank, room, *arguments)
    found = find_checkpoint(str(run_dir / "checkpoints"), world=LocalWorld())
    assert found is not None
    assert (found.images_seen, found.passed_over) == (80, ())
    (disk / "ballast").unlink()
    run_cli(*arguments).check()
    assert_same_run(straight, run_dir, FINAL)
    subprocess.run(["rm", "-r", str(run_dir)], check=True)


def test_a_full_disk_ends_all_ranks_and_costs_no_bit(
    latent_set: ShardSet, straight: Path, small_disk: Path, tmp_path: Path
) -> None:
    meet_and_go_on(latent_set, straight, small_disk, tmp_path / "run.yaml", rank=1, room=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_full_disks_at_ten_points_on_either_rank(
    latent_set: ShardSet, straight: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partition = next((straight / "checkpoints").glob("images-*/zero/rank-00001*")).stat().st_size
    draws = keyed_generator(0, "full-disk-campaign")
    failures: list[str] = []
    for rank in (0, 1):
        for room in sorted({0, *(int(value) for value in draws.integers(partition, size=POINTS - 1))}):
            try:
                meet_and_go_on(latent_set, straight, small_disk, tmp_path / "run.yaml", rank=rank, room=room)
            except AssertionError as error:
                failures.append(f"rank {rank}, {room} bytes: {error}")
                (small_disk / "ballast").unlink(missing_ok=True)
    report("full_disk", failures, 2 * POINTS, capsys)


def test_a_disk_that_is_full_while_another_library_writes_is_named(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(62 << 20))
    with (
        pytest.raises(StorageError, match=r"No space left on device, [\d,]+ bytes are free") as caught,
        folder_to_replace(str(small_disk / "model"), last=("config.json",), own=".*") as work,
    ):
        save_file({"weights": torch.zeros(4 << 20)}, work / "model.safetensors")
    assert caught.value.where == str(small_disk / "model")
    assert caught.value.hint == "free some space"
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_dry_run_notices_a_disk_that_cannot_be_written_to(small_disk: Path) -> None:
    command = ["phantoms", "--num-images", "4", "--out", str(small_disk / "new" / "phantoms")]
    run_cli(*command, "--dry-run").check()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for more in ([], ["--dry-run"]):
        ended = run_cli(*command, *more)
        assert ended.returncode == 5, ended.output
        assert "Read-only file system" in ended.output
        assert "give a folder that can be written to" in ended.output
    run_cli(*command[:-1], str(small_disk.parent / "phantoms"), "--dry-run").check()
