"""The launchers for machines without SLURM, run as a user does."""

from __future__ import annotations

import getpass
import json
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rank_processes import REPOSITORY, clean_environment, free_port
from tiny_sets import write_config

from synfundus.storage.manifest import ShardSet

HOSTS = """
# the hosts of a job, one a line
127.0.0.1 slots=2
"""


@pytest.mark.parametrize("launcher", ["torchrun_hostfile.sh", pytest.param("local.sh", marks=pytest.mark.slow)])
def test_a_launcher_trains_on_two_ranks(launcher: str, latent_set: ShardSet, tmp_path: Path) -> None:
    """With a comment, an empty line and MPI's words in the host file."""
    (tmp_path / "hosts.txt").write_text(HOSTS)
    loop = {"budget_images": 16, "micro_batch_size": 4, "validate_every_images": 0}
    section = {"latents": latent_set.url, "run_dir": str(tmp_path / "run"), "loop": loop}
    config = write_config(tmp_path / "run.yaml", {"train": section})
    place = {"HOSTFILE": str(tmp_path / "hosts.txt"), "NODE_RANK": "0", "MASTER_PORT": str(free_port())}
    done = subprocess.run(
        [str(REPOSITORY / "launchers" / launcher), "train", "--config", str(config)],
        env=clean_environment({**place, "PROCS_PER_NODE": "2", "SYNFUNDUS_PYTHON": sys.executable}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    noted = json.loads((tmp_path / "run" / "environment.json").read_text())
    who = {"world_size": 2, "account": getpass.getuser(), "host": platform.node()}
    assert {name: noted[name] for name in who} == who
    assert (tmp_path / "run" / "export" / "synfundus.json").is_file()


def test_a_port_that_somebody_has_is_a_reason_to_start_again(latent_set: ShardSet, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(other.getsockname()[1])}
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "synfundus",
                "train",
                "--latents",
                latent_set.url,
                "--run-dir",
                str(tmp_path / "run"),
            ],
            env=clean_environment({**place, **master, "SYNFUNDUS_STALLED": str(mark)}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 75, done.stderr
    assert "another program uses the rendezvous port" in done.stderr
    assert "Traceback" not in done.stderr
    assert mark.exists(), "the other ranks will have been killed, and SLURM sees their code"


def test_a_host_that_is_not_in_the_host_file_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "hosts.txt").write_text("another.example\n")
    done = subprocess.run(
        [str(REPOSITORY / "launchers" / "torchrun_hostfile.sh"), "train"],
        env=clean_environment({"HOSTFILE": str(tmp_path / "hosts.txt"), "SYNFUNDUS_PYTHON": "false"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "this host is not in the host file; set NODE_RANK" in done.stderr
