"""Training on a real SLURM of three nodes: whatever ends a job, the run ends with the bits of the undisturbed one.

Skipped where Debian's packages `slurmd slurmctld slurm-client munge iproute2` are not installed, or without root.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, what_is_missing
from slurm_runs import (
    IMAGES,
    INTERVAL,
    ONE_RANK,
    PATIENCE_S,
    QUICK_IMAGES,
    SCRIPT,
    SHORT_IMAGES,
    cluster,
    final,
    finish,
    process_of,
    quick,
    run_undisturbed,
    submit,
    wait_for_images,
    write_run,
)
from tiny_runs import assert_same_run, rows

from synfundus.storage.manifest import ShardSet

__all__ = ["cluster", "quick"]
pytestmark = [
    pytest.mark.skipif(bool(what_is_missing()), reason=f"no SLURM here: {what_is_missing()}"),
    pytest.mark.timeout(900),
]
LONG_IMAGES = 7200
"""Longer than SLURM's shortest time limit."""


def check_loss(log: str, images: int) -> None:
    """Check that a job went on from a checkpoint no further back than one interval and one that was being written."""
    found = re.findall(r"resumed at ([\d,]+) images", log)
    assert found, log
    resumed_at = int(found[-1].replace(",", ""))
    print(json.dumps({"name": "images redone after a loss", "at": images, "resumed_at": resumed_at}))
    assert images - 2 * INTERVAL <= resumed_at <= IMAGES
    assert resumed_at > 0


@pytest.fixture(scope="module")
def undisturbed(latent_set: ShardSet, cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    return run_undisturbed(latent_set, cluster, tmp_path_factory.mktemp("undisturbed"), IMAGES)


@pytest.mark.slow
def test_a_job_on_two_nodes_is_four_ranks(undisturbed: Path) -> None:
    assert rows(undisturbed)[-1]["images_seen"] == IMAGES
    partitions = sorted(path.name for path in (undisturbed / "checkpoints" / final(IMAGES) / "zero").iterdir())
    assert len([name for name in partitions if name.startswith("rank-")]) == 4, partitions


def test_a_job_of_the_command_line_on_two_nodes_has_the_bits_of_two_ranks_and_frozen_settings(
    latent_set: ShardSet, cluster: SlurmCluster, quick: Path, tmp_path: Path
) -> None:
    """What is written into run.yaml after the submission reaches no start of the job, also after a warning."""
    config, run_dir = write_run(latent_set, tmp_path, images=QUICK_IMAGES)
    answer = cluster.client(
        sys.executable, "-m", "synfundus", "train", "--config", str(config), "--nodes", "2", "--procs-per-node", "1",
        "--set", "launch.cpus_per_task=1",
    )  # fmt: skip
    config.write_text("loop: {budget_images: 1}\n")
    number = re.search(r"\d+", answer)
    assert number is not None, answer
    (kept,) = (run_dir / "submissions").iterdir()
    wait_for_images(run_dir, 100)
    cluster.client("scancel", "--batch", "--signal=USR2", number[0])
    log = finish(cluster, number[0], kept, restarts=1)
    assert "everything is saved" in log
    assert f"Submitted batch job {number[0]}" in json.loads((kept / "argv.json").read_text())["answer"]
    assert log.index("restart 0 of 20") < log.index("restart 1 of 20")
    assert "submitted with" not in log
    assert (kept / "job.log").stat().st_mode & 0o077 == 0
    assert_same_run(quick, run_dir, final(QUICK_IMAGES))


@pytest.mark.slow
def test_a_second_submission_of_a_run_waits_for_the_first_also_while_that_is_requeued(
    latent_set: ShardSet, cluster: SlurmCluster, tmp_path: Path
) -> None:
    """A job of another run does not wait for them; there are three nodes. WANDB_MODE reaches the ranks."""
    config, run_dir = write_run(latent_set, tmp_path / "one", images=SHORT_IMAGES)
    other, _ = write_run(latent_set, tmp_path / "two", images=INTERVAL)
    extra = {"WANDB_MODE": "offline", "WANDB_API_KEY": "no-key"}

    def submit_run(file: Path) -> str:
        command = [sys.executable, "-m", "synfundus", "train", "--config", str(file), "--submit"]
        small = ["--procs-per-node", "1", "--set", "launch.cpus_per_task=1"]
        number = re.search(r"\d+", cluster.client(*command, *small, extra=extra))
        assert number is not None
        return number[0]

    first, second, third = submit_run(config), submit_run(config), submit_run(other)
    assert cluster.job(first)["JobName"] == cluster.job(second)["JobName"] != cluster.job(third)["JobName"]
    wait_for_images(run_dir, 100)
    waiting = cluster.job(second)
    assert (waiting["JobState"], waiting["Reason"]) == ("PENDING", "Dependency")
    variables = Path(f"/proc/{process_of(first, 0)}/environ").read_bytes().split(b"\0")
    assert b"WANDB_MODE=offline" in variables
    assert not [one for one in variables if one.startswith(b"WANDB_API_KEY")]
    cluster.client("scancel", "--batch", "--signal=USR2", first)
    ended = cluster.wait_for(first, "COMPLETED", timeout_s=PATIENCE_S)
    assert ended["Restarts"] == "1"
    cluster.wait_for(third, "COMPLETED", timeout_s=PATIENCE_S)
    late = cluster.wait_for(second, "COMPLETED", timeout_s=PATIENCE_S)
    assert late["StartTime"] >= ended["EndTime"]
    assert rows(run_dir)[-1]["images_seen"] == SHORT_IMAGES
    logs = [path.read_text() for path in sorted((run_dir / "submissions").glob("*/job.log"))]
    assert re.search(r"(?m)^\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d node\d\] ", logs[0])


@pytest.mark.slow
@pytest.mark.parametrize("to", [("--batch",), ()], ids=["to the script, as before a time limit", "to the tasks"])
def test_a_warning_saves_and_requeues(
    latent_set: ShardSet, cluster: SlurmCluster, undisturbed: Path, tmp_path: Path, to: tuple[str, ...]
) -> None:
    config, run_dir = write_run(latent_set, tmp_path)
    job = submit(cluster, tmp_path, config=config)
    wait_for_images(run_dir, 1000)
    cluster.client("scancel", *to, "--signal=USR2", job)
    log = finish(cluster, job, tmp_path, restarts=1)
    assert "everything is saved" in log
    assert_same_run(undisturbed, run_dir, final(IMAGES))


def test_a_cancelled_job_stays_cancelled(latent_set: ShardSet, cluster: SlurmCluster, tmp_path: Path) -> None:
    config, run_dir = write_run(latent_set, tmp_path)
    job = submit(cluster, tmp_path, config=config, shape=ONE_RANK)
    wait_for_images(run_dir, 100)
    cluster.client("scancel", job)
    cluster.wait_for(job, "CANCELLED", timeout_s=PATIENCE_S)
    time.sleep(5)
    assert cluster.job(job)["JobState"] == "CANCELLED"


def test_a_failed_job_is_not_requeued(latent_set: ShardSet, cluster: SlurmCluster, tmp_path: Path) -> None:
    config, _ = write_run(latent_set, tmp_path)
    extra = {"SYNFUNDUS_PYTHON": sys.executable}
    arguments = (str(SCRIPT), "--config", str(config), "--vae", str(tmp_path))
    log = f"--output={tmp_path}/job.log"
    job = cluster.client("sbatch", "--parsable", *ONE_RANK, log, *arguments, extra=extra).strip()
    cluster.wait_for(job, "FAILED", timeout_s=PATIENCE_S)
    assert "no autoencoder here" in (tmp_path / "job.log").read_text()
    time.sleep(5)
    assert (cluster.job(job)["JobState"], cluster.job(job)["Restarts"]) == ("FAILED", "0")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_that_outlives_its_time_limit_comes_back_as_often_as_it_takes(
    latent_set: ShardSet, cluster: SlurmCluster, tmp_path: Path
) -> None:
    """The shortest limit is a minute. SLURM looks at it every thirty seconds, so the warning may come half a minute
    after the start, of which a slow machine needs most for starting: there the limit is longer, as the run is.
    """
    config, whole = write_run(latent_set, tmp_path / "undisturbed", images=LONG_IMAGES)
    began = time.monotonic()
    finish(cluster, submit(cluster, config.parent, config=config), config.parent, restarts=0, timeout_s=4 * PATIENCE_S)
    limit_min = max(1, int((time.monotonic() - began) / 90))
    config, run_dir = write_run(latent_set, tmp_path / "limited", images=LONG_IMAGES)
    job = submit(cluster, config.parent, f"--time={limit_min}", "--signal=B:USR2@10", config=config, most_restarts=60)
    ended = cluster.wait_for(job, "COMPLETED", timeout_s=4 * PATIENCE_S)
    log = (config.parent / "job.log").read_text()
    restarts = int(ended["Restarts"])
    assert restarts >= 1, log
    assert log.count("error (stopped by a signal): stopped by SIGUSR2") >= 1, log
    # SLURM never had to end it: each time it had left before the limit
    assert "DUE TO TIME LIMIT" not in log
    figures = {"minutes": limit_min, "images": LONG_IMAGES, "restarts": restarts}
    print(json.dumps({"name": "a job that outlives its limit", **figures}))
    assert_same_run(whole, run_dir, final(LONG_IMAGES))


@pytest.mark.slow
def test_a_preempted_job_saves_and_comes_back(
    latent_set: ShardSet, cluster: SlurmCluster, undisturbed: Path, tmp_path: Path
) -> None:
    config, run_dir = write_run(latent_set, tmp_path)
    job = submit(cluster, tmp_path, "--partition=low", config=config)
    wait_for_images(run_dir, 1000)
    cluster.client("srun", "--partition=main", "--nodes=3", "--exclusive", "sleep", "1")
    log = finish(cluster, job, tmp_path, restarts=1)
    assert "everything is saved" in log
    assert_same_run(undisturbed, run_dir, final(IMAGES))


@pytest.mark.slow
def test_a_requeued_job_comes_back(
    latent_set: ShardSet, cluster: SlurmCluster, undisturbed: Path, tmp_path: Path
) -> None:
    config, run_dir = write_run(latent_set, tmp_path)
    job = submit(cluster, tmp_path, config=config)
    wait_for_images(run_dir, 1000)
    cluster.client("scontrol", "requeue", job)
    finish(cluster, job, tmp_path, restarts=1)
    assert_same_run(undisturbed, run_dir, final(IMAGES))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 3])
def test_a_stopped_rank_ends_the_job_and_it_comes_back(
    latent_set: ShardSet, cluster: SlurmCluster, undisturbed: Path, tmp_path: Path, rank: int
) -> None:
    """srun has to kill it, so SLURM sees 137 of the job and not the 75 of the ranks that noticed."""
    config, run_dir = write_run(latent_set, tmp_path, watchdog_s=15.0)
    job = submit(cluster, tmp_path, config=config)
    wait_for_images(run_dir, 1000)
    images = rows(run_dir)[-1]["images_seen"]
    os.kill(process_of(job, rank), signal.SIGSTOP)
    log = finish(cluster, job, tmp_path, restarts=1, timeout_s=2 * PATIENCE_S)
    assert "Nothing moves" in log
    check_loss(log, images)
    assert_same_run(undisturbed, run_dir, final(IMAGES))
    assert not list(Path.cwd().glob(f".stalled-{job}-*"))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["first", "second"])
def test_a_dead_node_costs_one_interval_at_most(
    latent_set: ShardSet, cluster: SlurmCluster, undisturbed: Path, tmp_path: Path, place: str
) -> None:
    config, run_dir = write_run(latent_set, tmp_path)
    job = submit(cluster, tmp_path, config=config)
    wait_for_images(run_dir, 1000)
    used = cluster.client("scontrol", "show", "hostnames", cluster.job(job)["NodeList"]).split()
    dead = used[0] if place == "first" else used[1]
    images = rows(run_dir)[-1]["images_seen"]
    cluster.crash(dead)
    try:
        check_loss(finish(cluster, job, tmp_path, restarts=1), images)
    finally:
        cluster.boot(dead)
    assert_same_run(undisturbed, run_dir, final(IMAGES))


@pytest.mark.slow
def test_a_cut_network_costs_one_interval_at_most(
    latent_set: ShardSet, cluster: SlurmCluster, undisturbed: Path, tmp_path: Path
) -> None:
    config, run_dir = write_run(latent_set, tmp_path)
    job = submit(cluster, tmp_path, config=config)
    wait_for_images(run_dir, 1000)
    used = cluster.client("scontrol", "show", "hostnames", cluster.job(job)["NodeList"]).split()
    images = rows(run_dir)[-1]["images_seen"]
    cluster.cut(used[1])
    try:
        check_loss(finish(cluster, job, tmp_path, restarts=1), images)
    finally:
        cluster.heal(used[1])
    assert_same_run(undisturbed, run_dir, final(IMAGES))
