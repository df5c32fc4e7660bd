"""The whole chain as jobs of a real SLURM, and what makes a job start again: a preemption, and no more than a cap."""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rank_processes import REPOSITORY, run_cli
from slurm_cluster import SlurmCluster, what_is_missing
from slurm_runs import cluster
from tiny_pipeline import write_tiny_pipeline
from tiny_sets import write_config

from synfundus.storage.manifest import load_shard_set

__all__ = ["cluster"]
pytestmark = [
    pytest.mark.skipif(bool(what_is_missing()), reason=f"no SLURM here: {what_is_missing()}"),
    pytest.mark.timeout(1200),
    pytest.mark.slow,
]
SCRIPTS = ("prepare.sh", "vae.sh", "encode_latents.sh", "ldm.sh", "sample.sh")
SHAPE = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0")
PATIENCE_S = 400.0
NUM_IMAGES = 480


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs") / "photos"
    run_cli("phantoms", "--out", folder, "--num-images", "48", "--image-size", "96", "--workers", "1").check()
    return folder


def describe_chain(folder: Path, photographs: Path, *, vae: Mapping[str, Any]) -> Path:
    """Write the run.yaml of the smallest chain."""
    at = {name: str(folder / name) for name in ("set", "vae", "latents", "run", "samples")}
    shared = {"precision": "fp32", "budget_images": 32, "checkpoint_every_images": 16, "validation_images": 4}
    chain: dict[str, Any] = {
        "prepare": {
            "source": str(photographs),
            "labels": str(photographs / "labels.csv"),
            "out": at["set"],
            "image_size_px": 64,
            "workers": 1,
        },
        "train_vae": {"data": at["set"], "run_dir": at["vae"], "loop": shared, **vae},
        "encode_latents": {"data": at["set"], "vae": at["vae"], "out": at["latents"]},
        "train": {"latents": at["latents"], "run_dir": at["run"], "loop": shared},
        "sample": {"model": at["run"], "out": at["samples"], "num_images": 4, "num_steps": 2},
        "launch": {"device": "cpu"},
    }
    return write_config(folder / "run.yaml", chain)


def submit_chain(cluster: SlurmCluster, config: Path) -> dict[str, str]:
    """Start slurm/pipeline.sh as a user does; returns the number of each script's job."""
    options = (*SHAPE, f"--output={config.parent}/%x.log")
    extra = {"SYNFUNDUS_PYTHON": sys.executable}
    said = cluster.client(str(REPOSITORY / "slurm" / "pipeline.sh"), str(config), *options, extra=extra)
    jobs = dict(re.findall(r"^(\w+\.sh): job (\d+)$", said, re.MULTILINE))
    assert tuple(jobs) == SCRIPTS, said
    return jobs


def logs(folder: Path) -> str:
    return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-3000:]}" for log in sorted(folder.glob("*.log")))


def test_the_chain_goes_from_photographs_to_samples(cluster: SlurmCluster, photographs: Path, tmp_path: Path) -> None:
    jobs = submit_chain(cluster, describe_chain(tmp_path, photographs, vae={}))
    for script, job in jobs.items():
        try:
            ended = cluster.wait_for(job, "COMPLETED", timeout_s=PATIENCE_S)
        except AssertionError as error:
            raise AssertionError(f"{script}: {error}\n{logs(tmp_path)}") from None
        assert ended["NumNodes"] == "2"
    assert load_shard_set(str(tmp_path / "set"), kind="images").num_samples() == 48
    assert load_shard_set(str(tmp_path / "latents"), kind="latents").num_samples() == 48
    assert len(list((tmp_path / "samples" / "images").glob("*.png"))) == 4


def test_the_chain_stops_where_a_job_fails(cluster: SlurmCluster, photographs: Path, tmp_path: Path) -> None:
    config = describe_chain(tmp_path, photographs, vae={"init_from": str(tmp_path / "no-such-folder")})
    first, second, *later = submit_chain(cluster, config).values()
    cluster.wait_for(first, "COMPLETED", timeout_s=PATIENCE_S)
    ended = cluster.wait_for(second, "FAILED", timeout_s=PATIENCE_S)
    assert ended["ExitCode"] == "2:0", "not that of the rank which srun ended for the other's sake"
    assert "no-such-folder' does not exist (train_vae.init_from)" in (tmp_path / "synfundus-train-vae.log").read_text()
    for job in later:
        ended = cluster.wait_for(job, "CANCELLED", timeout_s=60.0)
        # of a job that never started SLURM shows its end, zero seconds or, for a moment after the end, no start
        assert ended["StartTime"] in {"Unknown", ended["EndTime"]} or ended["RunTime"] == "00:00:00", ended
    assert not (tmp_path / "latents").exists()
    ran = {path.name for path in tmp_path.glob("synfundus-*.log")}
    assert ran == {"synfundus-prepare.log", "synfundus-train-vae.log"}, "each job that starts has a log"


def submit_samples(cluster: SlurmCluster, folder: Path, model: Path, *options: str, given: tuple[str, ...] = ()) -> str:
    """Hand sample.sh to sbatch as a user does; returns the job's number."""
    folder.mkdir()
    values = {"--model": model, "--out": folder / "out", "--num-images": NUM_IMAGES, "--device": "cpu"}
    arguments = [*given, *(str(word) for pair in values.items() for word in pair)]
    script = str(REPOSITORY / "slurm" / "sample.sh")
    extra = {"SYNFUNDUS_PYTHON": sys.executable}
    log = f"--output={folder}/job.log"
    return cluster.client("sbatch", "--parsable", *SHAPE, log, *options, script, *arguments, extra=extra).strip()


def images(folder: Path) -> dict[str, str]:
    """Hash the images, parts and shards that are there."""
    names = ("images/0*.png", "parts/*.tar", "train/*.tar")
    files = sorted(file for name in names for file in (folder / "out").glob(name))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def wait_for_some(folder: Path, more_than: int) -> None:
    ends = time.monotonic() + PATIENCE_S
    while len(images(folder)) <= more_than:
        assert time.monotonic() < ends, logs(folder)
        time.sleep(0.1)


@pytest.mark.parametrize("image_format", ["png", "shards"])
def test_a_sampling_job_that_is_preempted_and_loses_a_node_comes_back_and_draws_the_same(
    cluster: SlurmCluster, tmp_path: Path, image_format: str
) -> None:
    """Sampling has nothing to save: TERM ends its ranks with 143, as it does when srun ends them after a failure."""
    model = write_tiny_pipeline(tmp_path / "model")
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    form = ("--format", image_format)
    cluster.wait_for(submit_samples(cluster, whole, model, given=form), "COMPLETED", timeout_s=PATIENCE_S)
    job = submit_samples(cluster, disturbed, model, "--partition=low", given=form)
    wait_for_some(disturbed, 0)
    cluster.client("srun", "--partition=main", "--nodes=3", "--exclusive", "sleep", "1")
    there = len(images(disturbed))
    wait_for_some(disturbed, there)
    dead = cluster.client("scontrol", "show", "hostnames", cluster.job(job)["NodeList"]).split()[1]
    cluster.crash(dead)
    try:
        ended = cluster.wait_for(job, "COMPLETED", timeout_s=PATIENCE_S)
    finally:
        cluster.boot(dead)
    log = (disturbed / "job.log").read_text()
    assert ended["Restarts"] == "2", log
    assert "stopped by SIGTERM" in log
    assert "were there, in whole batches" in log
    assert images(disturbed) == images(whole)
    assert len(images(whole)) == (NUM_IMAGES if image_format == "png" else 1)


def test_a_sampling_job_whose_rank_fails_stays_failed(cluster: SlurmCluster, tmp_path: Path) -> None:
    """A rank that is killed, not preempted: srun ends the other one with TERM."""
    model = write_tiny_pipeline(tmp_path / "model")
    job = submit_samples(cluster, tmp_path / "killed", model, "--partition=low")
    ends = time.monotonic() + PATIENCE_S
    while len(images(tmp_path / "killed")) < 16:
        assert time.monotonic() < ends, logs(tmp_path / "killed")
        time.sleep(0.1)
    kill = """kill -KILL $(for p in /proc/[0-9]*; do
      tr '\\0' '\\n' < $p/environ 2>/dev/null | grep -qx SLURM_PROCID=1 &&
        tr '\\0' ' ' < $p/cmdline | grep -q 'synfundus sample' && basename $p; done)"""
    cluster.client("srun", f"--jobid={job}", "--overlap", "--nodes=2", "--ntasks=2", "bash", "-c", kill, check=False)
    ended = cluster.wait_for(job, "FAILED", timeout_s=PATIENCE_S)
    time.sleep(8)
    assert (cluster.job(job)["JobState"], ended["Restarts"]) == ("FAILED", "0"), logs(tmp_path / "killed")


def test_a_job_is_requeued_until_its_cap(cluster: SlurmCluster, tmp_path: Path) -> None:
    """A program that always says it has saved; its number of starts is what SLURM counted, not the script."""
    starts = tmp_path / "starts"
    program = tmp_path / "python"
    program.write_text(f'#!/bin/bash\necho "$SLURM_RESTART_COUNT" >> {starts}\nexit 75\n')
    program.chmod(0o755)
    extra = {"SYNFUNDUS_PYTHON": str(program), "SYNFUNDUS_MAX_RESTARTS": "2"}
    log = f"--output={tmp_path}/job.log"
    shape = ("--nodes=1", *SHAPE[1:])
    script = str(REPOSITORY / "slurm" / "ldm.sh")
    job = cluster.client("sbatch", "--parsable", *shape, log, script, extra=extra).strip()
    ended = cluster.wait_for(job, "FAILED", timeout_s=PATIENCE_S)
    assert (ended["Restarts"], ended["ExitCode"]) == ("2", "75:0")
    assert starts.read_text().split("\n") == ["", "1", "2", ""]
    assert re.findall(r"restart (\d) of 2\b", (tmp_path / "job.log").read_text()) == ["0", "1", "2"]
