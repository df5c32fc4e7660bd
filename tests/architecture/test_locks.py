"""The three locks: the same versions but for torch, and each a set that fits together."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
CPU, GPU, PAIR = "requirements.lock", "requirements-gpu.lock", "requirements-gpu-xformers.lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OF_CUDA = re.compile(r"^(nvidia|cuda)-")
OF_GPUS = {"torch", "triton", "xformers"}


def versions(lock: str) -> dict[str, str]:
    """Return the version of each package; every line pins one."""
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)={2,3}(\S+)", line) for line in lines]
    assert all(pins), f"{lock}: every line pins a version"
    return {pin[1].lower().replace("_", "-"): pin[2] for pin in pins if pin}


@pytest.mark.parametrize("lock", [GPU, PAIR])
def test_only_what_a_gpu_needs_differs(lock: str) -> None:
    ours = {name: version for name, version in versions(lock).items() if not OF_CUDA.match(name)}
    shared = {name: version for name, version in ours.items() if name not in OF_GPUS}
    assert shared == {name: version for name, version in versions(CPU).items() if name not in OF_GPUS}


@pytest.mark.parametrize(("lock", "extras"), [(CPU, ["dev", "test"]), (GPU, ["dev", "test"]), (PAIR, ["xformers"])])
def test_a_lock_holds_what_the_project_asks_for(lock: str, extras: list[str]) -> None:
    found = versions(lock)
    asked = [*PROJECT["dependencies"], *(one for extra in extras for one in PROJECT["optional-dependencies"][extra])]
    for requirement in map(Requirement, asked):
        name = requirement.name.lower()
        assert name == PROJECT["name"] or Version(found[name]) in requirement.specifier, requirement


def test_xformers_comes_with_the_torch_it_is_built_for() -> None:
    """Both for CUDA 12; torch on PyPI is for CUDA 13 from 2.11 on, and an operator library needs its own runtime."""
    pair, default = versions(PAIR), versions(GPU)
    assert pair["nvidia-cuda-runtime-cu12"].startswith("12.")
    assert Version(pair["torch"]).release[:2] == (2, 10)
    assert "xformers" in pair
    assert default["nvidia-cuda-runtime"].startswith("13.")
    assert not {"xformers", "nvidia-cuda-runtime-cu12"} & set(default)
    assert default["torch"] == versions(CPU)["torch"]


@pytest.mark.parametrize("lock", [GPU, PAIR])
def test_a_cpu_build_on_the_disk_is_not_taken_for_it(lock: str) -> None:
    """``torch==2.13.0`` is also satisfied by 2.13.0+cpu; three equal signs compare the text."""
    assert re.search(r"^torch===\d+\.\d+\.\d+$", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE)
