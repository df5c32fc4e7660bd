"""How large and how entangled the product is, in figures with bounds: ``python tests/architecture/structure.py``."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "synfundus"
MOST_LINES_A_MODULE = 400
MOST_LINES_A_FUNCTION = 60
MOST_MODULES_A_FOLDER = 15
MOST_LINES = 56_000
TRAINING_STAGES = ("train/job.py", "train_vae/job.py")
OPEN_ENDED = ("synfundus/photographs/importers",)
"""Folders that may grow by a module a data set."""


@dataclass(frozen=True)
class Figure:
    """A measured figure and the most it may be.

    Attributes:
        name: What is counted.
        value: How many there are.
        bound: How many there may be.
        where: Where the figure is reached, if that is a place.
    """

    name: str
    value: int
    bound: int
    where: str = ""

    def __str__(self) -> str:
        mark = " " if self.value <= self.bound else "!"
        where = f" ({self.where})" if self.where else ""
        return f"{mark} {self.value:>6,} of {self.bound:>6,}  {self.name}{where}"


def modules(folder: Path = PACKAGE) -> list[Path]:
    """Return the modules below a folder, in order."""
    return sorted(folder.rglob("*.py"))


def lines_of(path: Path) -> list[str]:
    """Return the lines of a module."""
    return path.read_text(encoding="utf-8").splitlines()


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Yield the functions of a module with their lines, docstrings left out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            first = node.body[0]
            if ast.get_docstring(node, clean=False) is not None:
                lines -= (first.end_lineno or first.lineno) - first.lineno + 1
            yield node.name, lines


def modules_in_folders(folder: Path = PACKAGE) -> Counter[str]:
    """Count the modules that stand in each folder itself, ``__init__.py`` left out."""
    root = folder.parent
    counts = Counter(path.parent.relative_to(root).as_posix() for path in modules(folder) if path.stem != "__init__")
    return Counter({name: count for name, count in counts.items() if name not in OPEN_ENDED})


def takers(source: str, name: str) -> int:
    """Count the parameters and the fields whose annotation names a class."""
    annotations: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg):
            annotations.append(node.annotation)
        elif isinstance(node, ast.ClassDef):
            annotations += [field.annotation for field in node.body if isinstance(field, ast.AnnAssign)]
    return sum(one is not None and name in ast.unparse(one) for one in annotations)


def longest_common_run(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Return the longest run of lines, blank ones and indents left out, that stands in both."""
    ours, theirs = ([line.strip() for line in lines if line.strip()] for lines in (first, second))
    ends, best, end = [0] * (len(theirs) + 1), 0, 0
    for at, line in enumerate(ours, start=1):
        ends = [0, *(before + 1 if line == other else 0 for before, other in zip(ends, theirs, strict=False))]
        if max(ends) > best:
            best, end = max(ends), at
    return ours[end - best : end]


def figures() -> list[Figure]:
    """Measure the package."""
    import grimp

    graph = grimp.build_graph("synfundus", cache_dir=None)
    texts = {path: path.read_text(encoding="utf-8") for path in modules()}
    folder, in_folder = modules_in_folders().most_common(1)[0]
    longest = max(texts, key=lambda path: len(lines_of(path)))
    in_function, function = max(
        (lines, f"{path.relative_to(ROOT)}: {name}") for path in texts for name, lines in functions(texts[path])
    )
    reached = {verb: graph.find_upstream_modules(f"synfundus.stages.{verb}.job") for verb in ("train", "export")}
    whole = sum(takers(text, "RunConfig") for text in texts.values())
    stages = [lines_of(PACKAGE / "stages" / name) for name in TRAINING_STAGES]
    common = longest_common_run(*stages)
    return [
        Figure("modules in a folder", in_folder, MOST_MODULES_A_FOLDER, folder),
        Figure("lines of a module", len(lines_of(longest)), MOST_LINES_A_MODULE, str(longest.relative_to(ROOT))),
        Figure("lines of a function", in_function, MOST_LINES_A_FUNCTION, function),
        Figure("lines of the product", sum(len(lines_of(path)) for path in texts), MOST_LINES),
        Figure("parameters and fields that are the whole RunConfig", whole, 34),
        Figure("modules that `train` imports, directly or not", len(reached["train"]), 138),
        Figure("modules that `export` imports, directly or not", len(reached["export"]), 62),
        Figure("lines of the two training stages", sum(map(len, stages)), 450),
        Figure("lines in a row that both training stages have", len(common), 10, common[0] if common else ""),
    ]


if __name__ == "__main__":
    print(*figures(), sep="\n")
