"""Verbs that only look leave nothing in the folder one stands in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked_python
import pytest

from synfundus.cli.verbs import VERBS
from synfundus.storage.manifest import ShardSet

ROOT = Path(__file__).resolve().parents[2]
LOOKING = {"doctor", "plan", "inspect", "verify-latents", "verify", "watch", "plot"}
WRITES_A_FILE = {"plan-labels"}
WRITING = {
    "demo",
    "phantoms",
    "prepare",
    "train-vae",
    "encode-latents",
    "train",
    "sample",
    "ema",
    "export",
    "export-dicom",
    "gallery",
    "progress",
    "augment",
    "edit",
    "forget",
    "judge",
}

Look = Callable[..., str]


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """Return a function that runs a command line in an empty folder, and fails when that is not empty afterwards."""
    folder = tmp_path / "here"
    folder.mkdir()

    def run(*arguments: Any) -> str:
        command = [sys.executable, "-m", "synfundus", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = forked_python.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not list(folder.rglob("*")), command
        return str(done.stdout)

    return run


def test_every_verb_looks_or_writes() -> None:
    assert {verb.name for verb in VERBS} == LOOKING | WRITES_A_FILE | WRITING
    assert all(any(option.role == "output" for option in verb.options) for verb in VERBS if verb.name in WRITING)


@pytest.mark.parametrize("line", ["doctor", "plan --preset fundus256", "config schema"])
def test_looking_at_machine_and_configuration_leaves_no_file(line: str, look: Look) -> None:
    assert look(*line.split())


def test_looking_at_a_set_leaves_no_file(image_set: ShardSet, look: Look, tmp_path: Path) -> None:
    before = set(Path(image_set.url).rglob("*"))
    said = look("inspect", "--data", image_set.url, "--verify")
    assert "verified: " in said
    assert "nothing was written; give --out DIR for inspect.json and a contact sheet" in said
    assert set(Path(image_set.url).rglob("*")) == before
    look("inspect", "--data", image_set.url, "--images", "2", "--out", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"inspect.json", "contact_sheet.png"}


def test_comparing_latents_with_their_images_leaves_no_file(latent_set: ShardSet, vae_run: Path, look: Look) -> None:
    before = set(Path(latent_set.url).rglob("*"))
    look("verify-latents", "--latents", latent_set.url, "--vae", vae_run, "--set", "verify_latents.min_psnr_db=0")
    assert set(Path(latent_set.url).rglob("*")) == before


def test_looking_at_a_run_leaves_no_file_but_its_curves_beside_it(vae_run: Path, look: Look, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in ("run.json", "config.yaml", "metrics.jsonl"):
        (run_dir / name).write_bytes((vae_run / name).read_bytes())
    look("watch", "--run-dir", run_dir, "--once")
    assert not (run_dir / "curves.png").exists()
    look("plot", "--run-dir", run_dir)
    assert {path.name for path in run_dir.iterdir()} == {"run.json", "config.yaml", "metrics.jsonl", "curves.png"}
