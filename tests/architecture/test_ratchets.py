"""Modules, functions and folders stay small, and what is wired together stays little: split by role before a limit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from structure import (
    MOST_LINES_A_FUNCTION,
    MOST_LINES_A_MODULE,
    MOST_MODULES_A_FOLDER,
    ROOT,
    figures,
    functions,
    lines_of,
    longest_common_run,
    modules,
    modules_in_folders,
    takers,
)


def all_modules() -> list[Path]:
    return [*modules(), *modules(ROOT / "benchmarks")]


def long_functions(source: str) -> dict[str, int]:
    return {name: lines for name, lines in functions(source) if lines > MOST_LINES_A_FUNCTION}


@pytest.mark.parametrize("path", all_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_and_its_functions_stay_small(path: Path) -> None:
    assert len(lines_of(path)) <= MOST_LINES_A_MODULE
    assert long_functions(path.read_text(encoding="utf-8")) == {}


def test_a_folder_holds_few_modules_beside_its_folders() -> None:
    assert {name: count for name, count in modules_in_folders().items() if count > MOST_MODULES_A_FOLDER} == {}


def test_the_figures_of_the_whole_stay_within_their_bounds() -> None:
    """Shown with ``-rP``, or by ``python tests/architecture/structure.py``."""
    pytest.importorskip("grimp")
    measured = figures()
    print(*measured, sep="\n")
    assert [str(figure) for figure in measured if figure.value > figure.bound] == []


def test_no_module_is_named_after_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
    assert [path for path in all_modules() if path.stem in vague or path.parent.name in vague] == []


def test_no_test_file_is_a_library() -> None:
    """What several need stands in a module of its own: nobody reads a test to the end to find what another one uses."""
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
    assert [
        path for path, source in sources.items() if re.search(r"^\s*(from|import) test_", source, re.MULTILINE)
    ] == []


def test_the_ratchet_notices_a_long_function_and_forgives_its_docstring() -> None:
    body = "\n".join(f"    x{line} = {line}" for line in range(MOST_LINES_A_FUNCTION))
    assert list(long_functions(f"def f():\n{body}\n")) == ["f"]
    documented = '    """' + "\n" * 30 + '    """\n' + "\n".join(body.splitlines()[:-1])
    assert long_functions(f"def f():\n{documented}\n") == {}


def test_the_ratchet_counts_a_folders_own_modules(tmp_path: Path) -> None:
    for name in ("__init__", "a", "b", "rooms/__init__", "rooms/c"):
        (tmp_path / "house" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "house" / f"{name}.py").touch()
    assert modules_in_folders(tmp_path / "house") == {"house": 2, "house/rooms": 1}


def test_the_ratchet_counts_whoever_takes_the_whole_configuration() -> None:
    field = "class Work:\n    config: RunConfig\n"
    parameter = "def run(config: 'RunConfig | None', *, world: World) -> RunConfig: ...\n"
    assert takers(field + parameter, "RunConfig") == 2


def test_the_ratchet_finds_lines_that_were_written_twice() -> None:
    assert longest_common_run(["a", "b", "  c", "", "d", "x"], ["b", "c", "d", "a", "b"]) == ["b", "c", "d"]
    assert longest_common_run(["a"], ["b"]) == []
