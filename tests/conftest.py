"""Fixtures shared by all tests: small sets and a small trained autoencoder, each made once a session."""

from __future__ import annotations

import gc
import os
import random
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from s3_server import BUCKET, S3Server, s3_environment
from tiny_sets import tiny_config, write_phantom_set

import synfundus.models.diffusers_classes  # noqa: F401 - before any test imports diffusers, which would import xformers
from synfundus.cli import run
from synfundus.cli.request import Request
from synfundus.distributed.world import World, leave_new_groups
from synfundus.storage import filesystem
from synfundus.storage.manifest import ShardSet, load_shard_set
from synfundus.telemetry.console import SilentConsole

pytest.register_assert_rewrite("tiny_runs")
settings.register_profile(
    "synfundus",
    deadline=None,  # the machine may be busy
    max_examples=40,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("synfundus")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with what waits the longest, the cluster, and end with what is short, so that all end together."""
    long = ("integration", "e2e")
    items.sort(key=lambda item: (not item.path.name.startswith("test_slurm"), item.path.parent.name not in long))


def pytest_unconfigure(config: pytest.Config) -> None:
    """End a failed run with the names of the failed tests alone: logs of CI are often shown by their last lines."""
    terminal = config.pluginmanager.getplugin("terminalreporter")  # None in the workers of xdist
    reports = (
        [report for outcome in ("failed", "error") for report in terminal.stats.get(outcome, ())] if terminal else []
    )
    names = list(dict.fromkeys(report.nodeid[:160] for report in reports))
    if names:
        more = [f"and {len(names) - 38} more"] if len(names) > 39 else []
        terminal.write_line("\n".join(["failed:", *(names[:38] if more else names), *more]))


@pytest.fixture(autouse=True, scope="module")
def _garbage_is_sought_among_what_is_new() -> Iterator[None]:
    """Look for garbage in what a test file made alone: modules and collected tests are 600,000 objects, and stay."""
    gc.freeze()
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _seeds_are_fixed(request: pytest.FixtureRequest) -> None:
    """Seed the global generators: what pytest-randomly does through DeepSpeed costs 20 ms a test."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


@pytest.fixture(autouse=True)
def _groups_are_left() -> Iterator[None]:
    """Leave the process groups of the jobs that a test ran: each has a thread that wakes up again and again.

    The threads that torch computes with are as before too: the order of sums, and so the last bits, depend on them.
    """
    threads = torch.get_num_threads()
    yield
    leave_new_groups()
    torch.set_num_threads(threads)


@pytest.fixture
def inputs_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let dry runs plan command lines whose inputs are not on this machine."""
    check = Request.check
    monkeypatch.setattr(Request, "check", lambda request, *, look: check(request, look=False))
    monkeypatch.setattr(run, "rehearse", lambda request, **_: "")


@pytest.fixture(scope="session")
def image_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """96 phantoms at 64 px in uneven shards; not to be written to."""
    return write_phantom_set(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """A process group of one, as every single-process run has it."""
    from synfundus.distributed.world import connect, disconnect

    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(name, raising=False)
        # what the engine sets for deepspeed is taken back at the end
        patch.setenv("LOCAL_RANK", "0")
        patch.setenv("DS_ACCELERATOR", "cpu")
        yield connect(device="cpu", timeout_s=60, num_threads=1)
        disconnect()


@pytest.fixture(scope="session")
def vae_run(image_set: ShardSet, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of train-vae, a few steps long; not to be written to."""
    from synfundus.stages.train_vae import job as train_vae

    run_dir = tmp_path_factory.mktemp("vae") / "run"
    config = tiny_config({"train_vae": {"data": image_set.url, "run_dir": str(run_dir)}})
    train_vae.run(config, world, SilentConsole())
    return run_dir


@pytest.fixture(scope="session")
def latent_set(image_set: ShardSet, vae_run: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The image set's latents, mirrored moments included; not to be written to."""
    from synfundus.stages.encode_latents import job as encode_latents

    out = tmp_path_factory.mktemp("latents") / "set"
    section = {"data": image_set.url, "vae": str(vae_run), "out": str(out), "flip": True}
    encode_latents.run(tiny_config({"encode_latents": section}), world, SilentConsole())
    return load_shard_set(str(out), kind="latents")


@pytest.fixture
def memory_store() -> Iterator[None]:
    """Let ``memory://`` pass, which no user may write to: it is gone with the process."""
    from synfundus.storage import locations

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locations, "ALLOWED_PROTOCOLS", (*locations.ALLOWED_PROTOCOLS, "memory"))
        yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for the session, with one bucket; tests that stop or damage it start one of their own."""
    server = S3Server.at(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh ``s3://`` prefix; the environment leads to the server, for child processes too."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_environment(s3_server.endpoint).items():
        monkeypatch.setenv(name, value)
    filesystem.configure(None)
    yield f"s3://{BUCKET}/{secrets.token_hex(6)}"
    filesystem.configure(None)
