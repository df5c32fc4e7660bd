"""The store goes away while a run trains from it, in mid-epoch: the run waits, goes on, and ends with the same bits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from forked_python import Popen
from rank_processes import REPOSITORY, clean_environment, run_cli
from s3_server import S3Server
from tiny_sets import write_config

from synfundus.errors import StorageError
from synfundus.storage import filesystem
from synfundus.storage.documents import read_lines
from synfundus.storage.manifest import ShardSet

BUDGET = 240
EPOCH = 72
"""Images of the train split."""
FAR_ENOUGH = EPOCH + EPOCH // 3
FINAL = Path("checkpoints", f"images-{BUDGET:012d}", "unet", "diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class Outage:
    """What an outage did to a run.

    Attributes:
        began_at: Images seen when the store went away.
        ended_at: Images seen when it came back.
        seconds: How long it was away.
        output: What the run said.
    """

    began_at: int
    ended_at: int
    seconds: float
    output: str


def images_seen(run_dir: Path) -> int:
    """Return the position of the last row of metrics."""
    path = run_dir / "metrics.jsonl"
    rows = [row for row in read_lines(str(path)) if "loss" in row] if path.exists() else []
    return int(rows[-1]["images_seen"]) if rows else 0


@contextmanager
def training(config: Path, run_dir: Path, proxy: FaultProxy) -> Iterator[subprocess.Popen[str]]:
    """Train in a process of its own; the block begins in the second epoch."""
    command = [sys.executable, "-m", "synfundus", "train", "--config", str(config), "--run-dir", str(run_dir)]
    process = Popen(
        command,
        env=clean_environment({"AWS_ENDPOINT_URL": proxy.endpoint}),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        ends = time.monotonic() + 120
        while images_seen(run_dir) < FAR_ENOUGH:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < ends, "the run does not get on"
            time.sleep(0.01)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()


def train_through_an_outage(config: Path, run_dir: Path, proxy: FaultProxy, *, away_s: float) -> Outage:
    """Train, and cut the store off in the second epoch for a time."""
    with training(config, run_dir, proxy) as process:
        proxy.down()
        began, began_at = time.monotonic(), images_seen(run_dir)
        time.sleep(away_s)
        assert process.poll() is None, process.communicate()[0]
        ended_at = images_seen(run_dir)
        proxy.up()
        seconds = time.monotonic() - began
        output = process.communicate(timeout=180)[0]
        assert process.returncode == 0, output
        return Outage(began_at, ended_at, seconds, output)


def settings_of(latents: str, vae: Path, **loop: Any) -> dict[str, Any]:
    return {
        "train": {
            "latents": latents,
            "vae": str(vae),
            "loop": {"budget_images": BUDGET, "checkpoint_every_images": 80, "validate_every_images": 0, **loop},
        },
        "storage": {"deadline_s": 300, "connect_timeout_s": 2, "read_timeout_s": 5},
    }


def check_outage(
    tmp_path: Path, s3_server: S3Server, s3_bucket: str, latents: ShardSet, vae: Path, *, away_s: float, workers: int
) -> Outage:
    url = f"{s3_bucket}/latents"
    filesystem.upload_folder(Path(latents.url), url, last=["manifest.json"])
    here = settings_of(latents.url, vae)
    run_cli("train", "--config", write_config(tmp_path / "a.yaml", here), "--run-dir", tmp_path / "calm").check()
    with FaultProxy(s3_server.port) as proxy:
        config = write_config(tmp_path / "b.yaml", settings_of(url, vae, workers=workers, prefetch_batches=2))
        outage = train_through_an_outage(config, tmp_path / "run", proxy, away_s=away_s)
    assert FAR_ENOUGH <= outage.began_at <= outage.ended_at < BUDGET, "it was in mid-run that the store was away"
    assert outage.ended_at - outage.began_at <= 8 * (2 + 2 * workers + 2), "it was missed"
    assert (tmp_path / "run" / FINAL).read_bytes() == (tmp_path / "calm" / FINAL).read_bytes()
    ledger = read_lines(str(tmp_path / "run" / "ledger.jsonl"))
    assert sum(row["planned"] for row in ledger) == sum(row["delivered"] for row in ledger) == BUDGET
    return outage


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_an_outage_in_mid_epoch_changes_nothing(
    tmp_path: Path, s3_server: S3Server, s3_bucket: str, latent_set: ShardSet, vae_run: Path, workers: int
) -> None:
    check_outage(tmp_path, s3_server, s3_bucket, latent_set, vae_run, away_s=4.0, workers=workers)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_credentials_that_expire_in_mid_run_stop_it_and_with_new_ones_it_goes_on(
    tmp_path: Path, s3_server: S3Server, s3_bucket: str, latent_set: ShardSet, vae_run: Path, workers: int
) -> None:
    url = f"{s3_bucket}/latents"
    filesystem.upload_folder(Path(latent_set.url), url, last=["manifest.json"])
    calm, run_dir = tmp_path / "calm", tmp_path / "run"
    here = settings_of(latent_set.url, vae_run)
    run_cli("train", "--config", write_config(tmp_path / "a.yaml", here), "--run-dir", calm).check()
    config = write_config(tmp_path / "b.yaml", settings_of(url, vae_run, workers=workers, prefetch_batches=2))
    with FaultProxy(s3_server.port) as proxy, training(config, run_dir, proxy) as process:
        proxy.refusal = 403, "ExpiredToken"
        output = process.communicate(timeout=60)[0]
        assert process.returncode == StorageError.exit_code, output
        assert "the credentials have expired" in output
        assert "Traceback" not in output
        assert images_seen(run_dir) < BUDGET
    run_cli("train", "--config", config, "--run-dir", run_dir).check()
    assert (run_dir / FINAL).read_bytes() == (calm / FINAL).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_campaign_an_outage_of_a_minute_in_mid_epoch(
    tmp_path: Path, s3_server: S3Server, s3_bucket: str, latent_set: ShardSet, vae_run: Path
) -> None:
    outages = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        outage = check_outage(folder, s3_server, s3_bucket, latent_set, vae_run, away_s=60.0, workers=workers)
        assert "retrying" in outage.output
        outages.append(outage)
    figures = [{"at": one.began_at, "until": one.ended_at, "seconds": round(one.seconds, 1)} for one in outages]
    print(json.dumps({"name": "store away for 60 s in mid-epoch", "passed": len(outages), "of": 2, "runs": figures}))
