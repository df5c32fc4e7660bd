"""`make quick`: the unit tests of changed files and of what imports them, nearest first, for less than a minute.

usage: python tests/quick.py [pytest options]; a file has changed if git says so, or if it differs from the commit that
SYNFUNDUS_QUICK_SINCE names.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 50.0
"""No test starts later than this."""


def changed_files() -> list[str]:
    """Return the changed Python files, relative to the root."""
    since = os.environ.get("SYNFUNDUS_QUICK_SINCE", "HEAD")
    tracked = ["git", "diff", "--name-only", since]
    untracked = ["git", "ls-files", "--others", "--exclude-standard"]
    lists = [
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        for command in (tracked, untracked)
    ]
    return sorted({name for names in lists for name in names if name.endswith(".py") and (ROOT / name).exists()})


def module_of(name: str) -> str:
    """Return the module in a file: ``synfundus/training/ema.py`` -> ``synfundus.training.ema``."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports_of(source: str) -> set[str]:
    """Return the modules a test imports, and the names it imports from them as modules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def distances(changed: Iterable[str], importers: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Return how many imports lie between each module and the nearest changed one. Pure.

    Args:
        changed: Changed modules, at distance 0.
        importers: The modules that import a module directly.
    """
    found = dict.fromkeys(changed, 0)
    near = list(found)
    while near:
        after = {one for module in near for one in importers.get(module, ()) if one not in found}
        level = found[near[0]] + 1
        found.update(dict.fromkeys(after, level))
        near = sorted(after)
    return found


def choose(tests: Mapping[str, set[str]], changed: Iterable[str], near: Mapping[str, int]) -> list[str]:
    """Return the test files that are changed or import something near, nearest first. Pure.

    Args:
        tests: The modules each test file imports.
        changed: Changed files.
        near: From `distances`.
    """
    ranks = {
        name: -1 if name in changed else min((near[module] for module in imports if module in near), default=None)
        for name, imports in tests.items()
    }
    return sorted((name for name, rank in ranks.items() if rank is not None), key=lambda name: (ranks[name], name))


class Deadline:
    """Lets no test start after a while, and says how many were left out."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self.left_out = 0

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip a test that would start too late."""
        del item
        if time.monotonic() > self._ends:
            self.left_out += 1
            pytest.skip("no time left: `make test` runs all")


def main() -> int:
    """Run the tests; returns pytest's exit code."""
    import grimp

    deadline = Deadline(SECONDS)
    changed = changed_files()
    graph = grimp.build_graph("synfundus")
    importers = {module: graph.find_modules_that_directly_import(module) for module in graph.modules}
    near = distances((name for name in map(module_of, changed) if name in graph.modules), importers)
    unit = sorted((ROOT / "tests" / "unit").glob("test_*.py"))
    tests = {path.relative_to(ROOT).as_posix(): imports_of(path.read_text(encoding="utf-8")) for path in unit}
    chosen = choose(tests, changed, near)
    if not chosen:
        print("no unit test is near what changed")
        return 0
    code = pytest.main(["-q", "-n", "0", *sys.argv[1:], *(str(ROOT / name) for name in chosen)], plugins=[deadline])
    print(f"{len(chosen)} test files near {len(changed)} changed files; {deadline.left_out} tests left out for time")
    return int(code)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
