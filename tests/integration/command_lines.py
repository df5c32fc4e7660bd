"""Command lines that ask SLURM for two nodes, and what the program answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from synfundus.cli.app import run_command

REFUSED = (2, 5, 7)
"""Exit codes: configuration, storage, launch."""


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run a command line, return its code and what it says; whoever is refused gets a readable reason."""
    code = run_command(arguments)
    said = capsys.readouterr()
    assert code == 0 or (code in REFUSED and said.err.startswith("error (") and "Traceback" not in said.err), said.err
    return code, said.out


def train(**options: str) -> list[str]:
    """Write a command line that asks for two nodes."""
    given = {"run-dir": "run", "latents": "latents", **options}
    small = ["--device=cpu", "--set=launch.cpus_per_task=1"]
    return ["train", "--nodes=2", "--procs-per-node=1", *small, *(f"--{k}={v}" for k, v in given.items())]


def make_file(name: str) -> bool:
    """Make a small run.yaml of that name; whether the disk takes it."""
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("seed: 7\n")
    except (OSError, ValueError):
        return False
    return True
