"""Runs as jobs of a real SLURM of three nodes, and what a test does to them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rank_processes import REPOSITORY, run_cli
from slurm_cluster import SlurmCluster
from tiny_runs import rows, settings
from tiny_sets import write_config

from synfundus.storage.manifest import ShardSet

QUICK_IMAGES = 640
"""What CI trains on."""
SHORT_IMAGES = 1200
IMAGES = 2400
"""Long enough for whatever happens to a job to happen while it trains."""
INTERVAL = 400
"""Images between two checkpoints."""
SCRIPT = REPOSITORY / "slurm" / "ldm.sh"
PER_TASK = ("--cpus-per-task=1", "--gpus-per-node=0")
SHAPE = ("--nodes=2", "--ntasks-per-node=2", *PER_TASK)
SMALL_SHAPE = ("--nodes=2", "--ntasks-per-node=1", *PER_TASK)
ONE_RANK = ("--nodes=1", "--ntasks-per-node=1", *PER_TASK)
PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Three nodes; what a test kills or cuts off it brings back."""
    cluster = SlurmCluster.at(tmp_path_factory.mktemp("slurm"))
    try:
        yield cluster
    finally:
        cluster.stop()


def write_run(latent_set: ShardSet, folder: Path, *, images: int = IMAGES, **more: Any) -> tuple[Path, Path]:
    """Describe a run; returns its configuration and its directory."""
    folder.mkdir(exist_ok=True)
    run_dir = folder / "run"
    loop = {"budget_images": images, "checkpoint_every_images": INTERVAL, "validate_every_images": 0, "workers": 1}
    return write_config(folder / "run.yaml", settings(latent_set, run_dir, **loop, **more)), run_dir


def final(images: int) -> str:
    """Return the name of a run's last checkpoint."""
    return f"images-{images:012d}"


def submit(
    cluster: SlurmCluster,
    folder: Path,
    *options: str,
    config: Path,
    shape: Sequence[str] = SHAPE,
    most_restarts: int = 20,
    python: str = sys.executable,
) -> str:
    """Hand ldm.sh to sbatch as a user does; returns the job's number."""
    extra = {"SYNFUNDUS_PYTHON": python, "SYNFUNDUS_MAX_RESTARTS": str(most_restarts)}
    log = f"--output={folder}/job.log"
    return cluster.client(
        "sbatch", "--parsable", *shape, log, *options, str(SCRIPT), "--config", str(config), extra=extra
    ).strip()


def wait_for_images(run_dir: Path, images: int) -> None:
    """Wait until a run has trained on so many images."""
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        if (run_dir / "metrics.jsonl").exists() and (found := rows(run_dir)) and found[-1]["images_seen"] >= images:
            return
        time.sleep(0.1)
    raise AssertionError(f"{run_dir} did not get to {images} images")


def process_of(job: str, rank: int) -> int:
    """Return the process of a rank of a job; its loader workers, which it started later, are others."""
    wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().split(b"\0")
            if command[1:3] == [b"-m", b"synfundus"] and wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                found.append(int(folder.name))
    assert found, f"no process of rank {rank} of job {job}"
    return min(found)


def finish(cluster: SlurmCluster, job: str, folder: Path, *, restarts: int, timeout_s: float = PATIENCE_S) -> str:
    """Wait until a job has ended well, after so many restarts; returns its log."""
    log = folder / "job.log"
    try:
        ended = cluster.wait_for(job, "COMPLETED", timeout_s=timeout_s)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text(errors='replace')[-4000:]}") from None
    assert ended["Restarts"] == str(restarts), log.read_text()
    return log.read_text()


def run_undisturbed(latent_set: ShardSet, cluster: SlurmCluster, folder: Path, images: int) -> Path:
    """Return the run directory of a job on two nodes with two ranks each."""
    config, run_dir = write_run(latent_set, folder, images=images)
    log = finish(cluster, submit(cluster, folder, config=config), folder, restarts=0)
    assert "restart 0" in log
    return run_dir


@pytest.fixture(scope="module")
def short(latent_set: ShardSet, cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that nothing disturbed."""
    return run_undisturbed(latent_set, cluster, tmp_path_factory.mktemp("short"), SHORT_IMAGES)


@pytest.fixture(scope="module")
def quick(latent_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shortest run, of two ranks on one machine, that nothing disturbed."""
    config, run_dir = write_run(latent_set, tmp_path_factory.mktemp("quick") / "on-one", images=QUICK_IMAGES)
    run_cli("train", "--config", config, "--procs-per-node", "2").check()
    return run_dir
