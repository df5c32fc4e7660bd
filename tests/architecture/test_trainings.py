"""What two trainings have in common stands in `TrainingRun`; a stage hands on sections, not the whole configuration."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

STAGES = Path(__file__).resolve().parents[2] / "synfundus" / "stages"
TRAININGS = (STAGES / "train" / "job.py", STAGES / "train_vae" / "job.py")
MOST_LINES_OF_BOTH = 450
MOST_EQUAL_LINES = 10
SHARED = ("training_run", "training_setup", "build", "measured_start", "reading", "diffusion_setup")


def lines_of(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def longest_equal_run(one: list[str], other: list[str]) -> int:
    """Return the most lines in a row that stand in both."""
    longest = 0
    before = [0] * (len(other) + 1)
    for line in one:
        here = [0] * (len(other) + 1)
        for number, theirs in enumerate(other, start=1):
            if line == theirs:
                here[number] = before[number - 1] + 1
                longest = max(longest, here[number])
        before = here
    return longest


def takers_of_the_whole_configuration(source: str) -> list[str]:
    """Return the functions with a parameter typed `RunConfig`."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if argument.annotation is not None and ast.unparse(argument.annotation) == "RunConfig"
    ]


def test_the_two_trainings_are_short_and_share_no_long_passage() -> None:
    first, second = (lines_of(path) for path in TRAININGS)
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in TRAININGS) <= MOST_LINES_OF_BOTH
    assert longest_equal_run(first, second) <= MOST_EQUAL_LINES


@pytest.mark.parametrize("folder", [path.parent.name for path in TRAININGS])
def test_only_the_job_of_a_training_sees_the_whole_configuration(folder: str) -> None:
    found = {path.name: takers_of_the_whole_configuration(path.read_text()) for path in (STAGES / folder).glob("*.py")}
    assert {name: takers for name, takers in found.items() if takers} == {"job.py": ["run"]}


@pytest.mark.parametrize("name", SHARED)
def test_what_stages_share_gets_sections(name: str) -> None:
    assert takers_of_the_whole_configuration((STAGES / f"{name}.py").read_text(encoding="utf-8")) == []


def test_the_checks_can_fail() -> None:
    assert longest_equal_run(["a", "b", "c", "d"], ["x", "b", "c", "y", "d"]) == 2
    assert takers_of_the_whole_configuration("def f(x: int, *, config: RunConfig) -> None: ...") == ["f"]
