"""Who imports whom, and what an answer may cost."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_sets import write_numbered_set

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "deepspeed", "diffusers", "xformers", "webdataset", "numpy", "PIL", "fsspec")
HELP_BUDGET_S = 0.3
PLANTED = [
    ("synfundus.stages.train.job", "deepspeed"),
    ("synfundus.distributed.watchdog", "deepspeed"),
    ("synfundus.storage.documents", "s3fs"),
    ("synfundus.telemetry.dashboard", "rich"),
    ("synfundus.evaluation.judge", "matplotlib"),
    ("synfundus.models.linear_path", "xformers"),
    ("synfundus.artifacts.run_folder", "synfundus.config.schema"),
    ("synfundus.photographs.decode", "synfundus.shards.reader"),
    ("synfundus.artifacts.model_folder", "synfundus.stages.plot.job"),
    ("synfundus.shards.reader", "fsspec"),
    ("synfundus.stages.sample.job", "aiobotocore"),
    ("synfundus.photographs.preparation", "pydicom"),
    ("synfundus.config.base", "torch"),
]
"""(module, what it may not import)."""


def imported_by(statement: str, *names: str) -> set[str]:
    """Run a statement in a fresh interpreter; return which of ``names`` are imported afterwards."""
    code = f"import sys\n{statement}\nprint('LOADED', *[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    return set(done.stdout.splitlines()[-1].split()[1:])


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the import contracts of the package in a folder."""
    pytest.importorskip("importlinter")
    code = "import sys; from importlinter.cli import lint_imports_command as c; sys.exit(c())"
    command = [sys.executable, "-c", code, "--no-cache"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, timeout=300)


def test_the_import_contracts_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "0 broken" in done.stdout


def test_networks_are_trained_by_the_engine_and_by_fit_alone() -> None:
    """ADR-0002: no second training loop for what the product trains, and one loop for the networks that judge."""
    optimizer = re.compile(r"\btorch\.optim\b|^from torch import .*\boptim\b", re.MULTILINE)
    sources = (ROOT / "synfundus").rglob("*.py")
    found = {str(path.relative_to(ROOT)) for path in sources if optimizer.search(path.read_text(encoding="utf-8"))}
    assert found == {"synfundus/distributed/engine.py", "synfundus/evaluation/fit.py"}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the linter says of a copy of the package with every import of `PLANTED` in it."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pyproject.toml", copy)
    shutil.copytree(ROOT / "synfundus", copy / "synfundus", ignore=shutil.ignore_patterns("__pycache__"))
    assert "0 broken" in lint_imports(copy).stdout
    for module, imported in PLANTED:
        with open(copy.joinpath(*module.split(".")).with_suffix(".py"), "a", encoding="utf-8") as source:
            source.write(f"\nimport {imported}\n")
    (copy / "synfundus" / "utils.py").touch()
    done = lint_imports(copy)
    assert done.returncode == 1, done.stderr
    return done.stdout


@pytest.mark.parametrize(("module", "imported"), PLANTED)
def test_a_planted_import_is_refused_by_name(module: str, imported: str, refusals: str) -> None:
    edge = rf"- +{re.escape(module)} -> {re.escape(imported)} \(l\.\d+\)\n\n"  # alone, not as a part of a longer way
    assert re.search(edge, refusals), refusals


def test_a_module_without_a_layer_is_refused_by_name(refusals: str) -> None:
    assert "- synfundus.utils" in refusals


def test_the_command_line_imports_nothing_heavy() -> None:
    assert imported_by("import synfundus.cli", *HEAVY, "pydantic", "yaml", "rich") == set()


def test_help_imports_nothing_heavy_and_not_the_schema() -> None:
    """Typer's own parsing of an option may use pydantic; the schema of the configuration stays out."""
    statement = "from synfundus.cli.app import run_command\nassert run_command(['train', '--help']) == 0"
    assert imported_by(statement, *HEAVY, "yaml", "rich", "synfundus.config.schema") == set()


def test_a_dry_run_does_not_import_torch(tmp_path: Path) -> None:
    write_numbered_set(tmp_path / "latents", [3])
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    inputs = ["--latents", str(tmp_path / "latents"), "--vae", str(tmp_path / "vae")]
    line = ["train", *inputs, "--run-dir", str(tmp_path / "run"), "--device", "cpu", "--dry-run"]
    statement = f"from synfundus.cli.app import run_command\nassert run_command({line!r}) == 0"
    reading = {"numpy", "fsspec", "PIL"}  # it opens the set
    assert imported_by(statement, *(set(HEAVY) - reading)) == set()


def test_configuration_and_launch_do_not_import_torch() -> None:
    assert imported_by("import synfundus.config.loader, synfundus.config.dump, synfundus.launch", *HEAVY) == set()


def test_the_check_itself_can_fail() -> None:
    assert imported_by("import synfundus.cli, json, numpy", "json", "numpy", "torch") == {"json", "numpy"}


@pytest.fixture
def broken_xformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed xformers that warns and ends whoever imports it, as one built for another torch does."""
    package, information = tmp_path / "xformers", tmp_path / "xformers-0.0.35.dist-info"
    package.mkdir()
    information.mkdir()
    (package / "__init__.py").write_text(
        "import warnings\nwarnings.warn('old', DeprecationWarning)\nraise OSError('no')"
    )
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: xformers\nVersion: 0.0.35\n")
    (information / "RECORD").write_text("xformers/__init__.py,,\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")


@pytest.mark.parametrize(
    "module",
    [
        pytest.param("synfundus.models.autoencoder", marks=pytest.mark.slow),
        pytest.param("synfundus.artifacts.model_folder", marks=pytest.mark.slow),
        "synfundus.stages.train.job",
    ],
)
def test_an_installed_xformers_is_not_imported_with_diffusers(broken_xformers: None, module: str) -> None:
    assert imported_by(f"import {module}, diffusers.models", "xformers", "diffusers") == {"diffusers"}


@pytest.mark.usefixtures("broken_xformers")
def test_tests_are_collected_beside_an_xformers_that_warns() -> None:
    tests = ["tests/unit/test_attention.py", "tests/unit/test_schedule.py", "tests/unit/test_autoencoder.py"]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *tests]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "::" in done.stdout


def test_help_answers_at_once() -> None:
    """The best of five, in seconds of a processor, so that a busy machine does not decide; starting Python included."""
    command = [sys.executable, "-m", "synfundus", "--help"]
    seconds, waited = [], []
    for _ in range(5):
        began = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONWARNINGS": "error"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        waited.append(time.perf_counter() - began)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < HELP_BUDGET_S, seconds
    assert min(waited) < 5 * HELP_BUDGET_S, "it waits for something else than a processor"
