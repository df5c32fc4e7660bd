"""The wheel carries what the code looks for."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network and without an isolated environment."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True, timeout=300)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_carries_scripts_deepspeed_files_and_presets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("launchers", "ds_configs", "slurm"):
        shipped = {f"synfundus/_assets/{folder}/{path.name}" for path in (ROOT / folder).iterdir()}
        assert shipped
        assert shipped <= names
    assert "synfundus/_assets/starting_weights/recipe.yaml" in names
    drawn = [path for path in (ROOT / "starting_weights" / "drawn").rglob("*") if path.is_file()]
    assert "diffusion_pytorch_model.safetensors" in {path.name for path in drawn}
    assert {f"synfundus/_assets/{path.relative_to(ROOT).as_posix()}" for path in drawn} <= names
    presets = {f"synfundus/config/presets/{path.name}" for path in (ROOT / "synfundus/config/presets").glob("*.yaml")}
    assert len(presets) >= 4
    assert presets <= names


def test_the_wheel_carries_code_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/")) or "__pycache__" in name]
    packages = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("synfundus/**/__init__.py")}
    assert all(f"{package}/__init__.py" in names for package in packages)


def test_an_installed_wheel_finds_its_assets(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import synfundus, sys\n"
        "from synfundus.config.assets import find_asset, list_assets\n"
        "from synfundus.config.loader import list_presets, load_config\n"
        f"assert synfundus.__file__.startswith({str(tmp_path)!r}), synfundus.__file__\n"
        "for kind in ('launchers', 'ds_configs', 'slurm'):\n"
        "    names = list_assets(kind)\n"
        "    assert names\n"
        "    assert all('_assets' in str(find_asset(kind, name)) for name in names)\n"
        "assert [load_config(preset=name, file=None, settings=[], flags=[]) for name in list_presets()]\n"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment, timeout=60)
