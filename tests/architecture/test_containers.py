"""The recipes of container images: no test builds one, but each reads them, and what they copy becomes a wheel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "containers" / "Dockerfile").read_text(encoding="utf-8")
DEFINITION = (ROOT / "containers" / "synfundus.def").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HOME = "/opt/synfundus"


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile and their arguments, without comments, on one line each."""
    lines = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE).replace("\\\n", " ").splitlines()
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines) if word]


def sections() -> dict[str, list[str]]:
    """Return the lines of the definition file by section, without comments; its header under an empty name."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in (text.strip() for text in DEFINITION.splitlines()):
        if line.startswith("%"):
            name = line[1:]
            found[name] = []
        elif line and not line.startswith("#"):
            found[name].append(line)
    return found


def copied() -> list[str]:
    """Return what the Dockerfile copies, relative to the checkout."""
    return [source for word, rest in instructions() if word == "COPY" for source in rest.split()[:-1]]


def ran() -> list[str]:
    """Return the commands of the Dockerfile's RUN."""
    return [part.strip() for word, rest in instructions() if word == "RUN" for part in rest.split("&&")]


def test_the_dockerfile_has_the_instructions_in_an_order_that_works() -> None:
    words = [word for word, _ in instructions()]
    assert words[0] == "FROM"
    assert set(words) <= {"FROM", "RUN", "WORKDIR", "COPY", "ENTRYPOINT", "CMD"}, "no ENV, no ADD, no secret"
    assert dict(instructions())["ENTRYPOINT"] == '["synfundus"]'
    assert list(PROJECT["project"]["scripts"]) == ["synfundus"]


def test_both_recipes_start_from_a_python_that_the_project_supports() -> None:
    (image,) = (rest for word, rest in instructions() if word == "FROM")
    assert sections()[""] == ["Bootstrap: docker", f"From: {image}"]
    version = re.fullmatch(r"python:(3\.\d+)-slim", image)
    assert version
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(version[1])
    assert f"Programming Language :: Python :: {version[1]}" in PROJECT["project"]["classifiers"]


def test_both_recipes_copy_the_same_files_and_nothing_else() -> None:
    assert len(set(copied())) == len(copied())
    assert [line.split() for line in sections()["files"]] == [[name, f"{HOME}/{name}"] for name in copied()]
    for name in copied():
        assert (ROOT / name).exists(), name
        assert re.fullmatch(r"[\w.-]+", name), "no folder above, no pattern, never the whole checkout"
    for word, rest in instructions():
        if word == "COPY":
            *_, target = rest.split()
            # a folder keeps its name, files go to the working folder
            assert target == (rest.split()[0] if (ROOT / rest.split()[0]).is_dir() else "./")
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored == ["*", *(f"!{name}" for name in copied()), "**/__pycache__", "**/*.py[cod]"]


def test_both_recipes_install_the_lock_as_the_makefile_does() -> None:
    assert [line for line in sections()["post"] if not line.startswith("cd ")] == ran()
    installs = [command for command in ran() if command.startswith("pip install")]
    (lock,) = (name for name in copied() if name.endswith(".lock"))
    assert [command.replace("--no-cache-dir ", "") for command in installs] == [
        f"pip install $(grep '^torch==' {lock})",
        f"pip install --requirement {lock}",
        "pip install --no-deps .",
    ]
    makefile = (ROOT / "Makefile").read_text()
    assert "install -q --disable-pip-version-check $$(grep '^torch==' $(LOCK))" in makefile
    assert lock == "requirements-gpu.lock"
    assert any(command.endswith("--no-install-recommends g++") for command in ran()), "Triton compiles when it runs"


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Names in the wheel of the checkout, and in that of what the recipes copy."""
    pytest.importorskip("hatchling")
    context = tmp_path_factory.mktemp("context")
    for name in copied():
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, context / name)
    found = {}
    for place in (ROOT, context):
        out = tmp_path_factory.mktemp("wheel")
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
        subprocess.run(build, check=True, cwd=place, capture_output=True, timeout=300)
        (wheel,) = out.glob("*.whl")
        found[place.name] = set(zipfile.ZipFile(wheel).namelist())
    return {"checkout": found[ROOT.name], "copied": found[context.name]}


def test_what_is_copied_is_what_the_wheel_needs(names: dict[str, set[str]]) -> None:
    assert names["copied"] == names["checkout"]
    assert "synfundus/_assets/slurm/ldm.sh" in names["copied"]


def test_the_documents_name_the_recipes_and_claim_no_build() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    assert "containers/Dockerfile" in text
    assert "containers/synfundus.def" in text
    assert "has been built or run by this project" in text
