"""Python files of the working folder are the user's: no process of a verb imports them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rank_processes import REPOSITORY, clean_environment

from synfundus.__main__ import leave_working_folder

SHADOWS = ("yaml", "typer", "torch", "numpy", "random", "tempfile", "multiprocessing", "struct")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with files that are called like packages, and an old checkout."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the working folder was imported')\n")
    return tmp_path


def run(folder: Path, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=clean_environment(variables),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_started_processes_import_the_installed_code(folder: Path) -> None:
    """Two ranks with worker pools, started by the program as it is installed."""
    (folder / "synfundus").mkdir()
    (folder / "synfundus" / "__init__.py").write_text("raise SystemExit('an old checkout was imported')\n")
    installed = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from synfundus.cli import main; main()"
    made = run(folder, sys.executable, "-P", "-c", installed, "phantoms", "--out", "photos", "--num-images", "8",
               "--image-size", "64", "--workers", "2")  # fmt: skip
    assert made.returncode == 0, made.stderr
    done = run(folder, sys.executable, "-P", "-c", installed, "prepare", "--source", "photos", "--labels",
               "photos/labels.csv", "--out", "set", "--image-size", "64", "--workers", "2",
               "--procs-per-node", "2")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "set" / "manifest.json").exists()


def test_the_module_itself_leaves_the_working_folder(folder: Path) -> None:
    for name in ("random", "tempfile", "multiprocessing", "struct"):  # Python's own are imported before ours can look
        (folder / f"{name}.py").unlink()
    done = run(folder, sys.executable, "-m", "synfundus", "config", "presets")
    assert (done.returncode, done.stderr) == (0, "")
    made = run(folder, sys.executable, "-m", "synfundus", "phantoms", "--out", "photos", "--num-images", "4",
               "--image-size", "64", "--workers", "2")  # fmt: skip
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize(
    ("here", "path", "variable"),
    [(REPOSITORY, ["/x", str(REPOSITORY)], f"/y:{REPOSITORY}"), (REPOSITORY / "docs", ["/x"], "/y")],
)
def test_a_checkout_that_is_not_installed_stays_importable_also_for_its_ranks(
    here: Path, path: list[str], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [str(here), "/x"])
    monkeypatch.setenv("PYTHONPATH", "/y")
    leave_working_folder()
    assert (sys.path, os.environ["PYTHONPATH"]) == (path, variable)


@pytest.mark.parametrize("launcher", ["local.sh", "torchrun_hostfile.sh"])
def test_a_launcher_leaves_the_working_folder(folder: Path, launcher: str) -> None:
    (folder / "hosts.txt").write_text("127.0.0.1\n")
    place = {"HOSTFILE": "hosts.txt", "NODE_RANK": "0", "PROCS_PER_NODE": "1", "SYNFUNDUS_PYTHON": sys.executable}
    done = run(folder, REPOSITORY / "launchers" / launcher, "config", "presets", **place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fundus512" in done.stdout


def test_a_notebooks_variables_do_no_harm(tmp_path: Path) -> None:
    notebook = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "run.json").write_text('{"kind": "diffusion"}')
    (run_dir / "metrics.jsonl").write_text('{"images_seen": 10, "loss": 1.0}\n{"images_seen": 20, "loss": 0.5}\n')
    done = run(tmp_path, sys.executable, "-m", "synfundus", "plot", "--run-dir", run_dir, **notebook)
    assert done.returncode == 0, done.stderr
    assert (run_dir / "curves.png").exists()
