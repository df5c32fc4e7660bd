"""Ranks that are aborted, or whose GPU fails, on a real SLURM of three nodes: queued again elsewhere, or stopped.

NCCL's watchdog ends a rank with SIGABRT; an Xid or an ECC error is a RuntimeError of CUDA, which a GPU does not raise
on command: here `failing_rank.py` does.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import failing_rank
import pytest
from slurm_cluster import SlurmCluster, what_is_missing
from slurm_runs import (
    INTERVAL,
    PATIENCE_S,
    PER_TASK,
    SHORT_IMAGES,
    cluster,
    final,
    finish,
    process_of,
    short,
    submit,
    wait_for_images,
    write_run,
)
from tiny_runs import assert_same_run

from synfundus.storage.manifest import ShardSet

__all__ = ["cluster", "short"]
pytestmark = [
    pytest.mark.skipif(bool(what_is_missing()), reason=f"no SLURM here: {what_is_missing()}"),
    pytest.mark.timeout(900),
    pytest.mark.slow,
]


@pytest.fixture(autouse=True)
def _no_reports_left() -> Iterator[None]:
    """What jobs that ended badly leave beside their logs, here in the current folder."""
    yield
    for folder in Path.cwd().glob(".faults-*"):
        shutil.rmtree(folder)


SINGLE = ("--nodes=1", "--ntasks-per-node=2", *PER_TASK)
"""A job that still finds a node when two are left out."""


@pytest.fixture(scope="module")
def on_one_node(latent_set: ShardSet, cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nothing disturbed."""
    folder = tmp_path_factory.mktemp("single")
    config, run_dir = write_run(latent_set, folder, images=SHORT_IMAGES)
    finish(cluster, submit(cluster, folder, config=config, shape=SINGLE), folder, restarts=0)
    return run_dir


def abort(job: str, rank: int) -> None:
    """End a rank as NCCL's watchdog does."""
    os.kill(process_of(job, rank), signal.SIGABRT)


def nodes_of(cluster: SlurmCluster, job: str) -> list[str]:
    """Return the nodes of a job, by rank."""
    return cluster.client("scontrol", "show", "hostnames", cluster.job(job)["NodeList"]).split()


def wait_for_restart(cluster: SlurmCluster, job: str, restarts: int) -> None:
    """Wait until a job runs for the n-th time again."""
    ends = time.monotonic() + PATIENCE_S
    while (cluster.job(job)["Restarts"], cluster.job(job)["JobState"]) != (str(restarts), "RUNNING"):
        assert time.monotonic() < ends, cluster.job(job)
        time.sleep(0.2)


def reports(job: str) -> list[Path]:
    return sorted(Path.cwd().glob(f".faults-{job}/*"))


@pytest.mark.parametrize("rank", [0, 3])
def test_an_aborted_rank_costs_one_interval_and_its_node(
    latent_set: ShardSet, cluster: SlurmCluster, short: Path, tmp_path: Path, rank: int
) -> None:
    config, run_dir = write_run(latent_set, tmp_path, images=SHORT_IMAGES)
    job = submit(cluster, tmp_path, config=config)
    wait_for_images(run_dir, INTERVAL + 100)
    node = nodes_of(cluster, job)[rank // 2]
    abort(job, rank)
    log = finish(cluster, job, tmp_path, restarts=1)
    assert "Fatal Python error: Aborted" in log
    assert f"a rank failed on {node}: again without this node" in log
    assert cluster.job(job)["ExcNodeList"] == node
    assert node not in nodes_of(cluster, job)
    assert_same_run(short, run_dir, final(SHORT_IMAGES))
    assert not reports(job)


def test_a_fault_on_a_second_node_stops_when_no_checkpoint_lies_between(
    latent_set: ShardSet, cluster: SlurmCluster, tmp_path: Path
) -> None:
    config, run_dir = write_run(latent_set, tmp_path, images=SHORT_IMAGES)
    job = submit(cluster, tmp_path, config=config, shape=SINGLE)
    wait_for_images(run_dir, 50)
    (first,) = nodes_of(cluster, job)
    abort(job, 0)
    wait_for_restart(cluster, job, 1)
    (second,) = nodes_of(cluster, job)
    wait_for_starts(tmp_path / "job.log", 2)
    abort(job, 1)
    ended = cluster.wait_for(job, "FAILED", timeout_s=PATIENCE_S)
    log = (tmp_path / "job.log").read_text()
    assert second != first
    assert f"a rank failed on {second} and, since the last checkpoint, on {first}: it is not the node" in log
    assert (ended["Restarts"], ended["ExitCode"]) == ("1", "134:0")


def test_faults_with_a_checkpoint_between_are_counted_apart(
    latent_set: ShardSet, cluster: SlurmCluster, on_one_node: Path, tmp_path: Path
) -> None:
    config, run_dir = write_run(latent_set, tmp_path, images=SHORT_IMAGES)
    job = submit(cluster, tmp_path, config=config, shape=SINGLE)
    used = []
    for restarts, images in enumerate((50, INTERVAL + 50)):
        wait_for_images(run_dir, images)
        used += nodes_of(cluster, job)
        abort(job, 1)
        wait_for_restart(cluster, job, restarts + 1)
    finish(cluster, job, tmp_path, restarts=2)
    assert cluster.job(job)["ExcNodeList"].split(",") == used
    assert len({*used, *nodes_of(cluster, job)}) == 3
    assert_same_run(on_one_node, run_dir, final(SHORT_IMAGES))


def failing_python(folder: Path, *faults: str) -> str:
    """Return an interpreter whose GPU fails: ``NODE STEP``, each once."""
    mark, program = folder / "faults", folder / "python"
    mark.write_text("".join(f"{fault}\n" for fault in faults))
    program.write_text(f'#!/bin/bash\nexec {sys.executable} {failing_rank.__file__} {mark} "$@"\n')
    program.chmod(0o755)
    return str(program)


def test_a_failed_gpu_costs_one_interval_and_its_node(
    latent_set: ShardSet, cluster: SlurmCluster, on_one_node: Path, tmp_path: Path
) -> None:
    config, run_dir = write_run(latent_set, tmp_path, images=SHORT_IMAGES)
    # after the last checkpoint but one: the run that goes on has fewer steps left than that
    python = failing_python(tmp_path, *(f"node{number} 110" for number in (1, 2, 3)))
    job = submit(cluster, tmp_path, config=config, shape=SINGLE, python=python)
    log = finish(cluster, job, tmp_path, restarts=1)
    (node,) = cluster.job(job)["ExcNodeList"].split(",")
    assert f"the GPU of rank 0 on {node} failed: CUDA error: uncorrectable ECC error encountered" in log
    assert f"a rank failed on {node}: again without this node" in log
    assert_same_run(on_one_node, run_dir, final(SHORT_IMAGES))


def test_a_fault_of_the_program_on_every_node_stops(
    latent_set: ShardSet, cluster: SlurmCluster, tmp_path: Path
) -> None:
    config, _ = write_run(latent_set, tmp_path, images=SHORT_IMAGES)
    python = failing_python(tmp_path, *(f"node{number} 5" for number in (1, 2, 3)))
    job = submit(cluster, tmp_path, config=config, shape=SINGLE, python=python)
    ended = cluster.wait_for(job, "FAILED", timeout_s=PATIENCE_S)
    assert (ended["Restarts"], ended["ExitCode"]) == ("1", "71:0")
    assert "it is not the node" in (tmp_path / "job.log").read_text()


def wait_for_starts(log: Path, starts: int) -> None:
    """Wait until the ranks of a job have begun to work so often: one that still starts would be ended by TERM, 143."""
    ends = time.monotonic() + PATIENCE_S
    while log.read_text().count("global batch 8 = 2 ranks") < starts:
        assert time.monotonic() < ends, f"{log} does not show {starts} starts"
        time.sleep(0.1)
