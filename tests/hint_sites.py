"""Where the program words a hint: every text that a user may read as "what to do"."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "synfundus"
MAKERS = {
    "artifacts/run_changes.py": {"way_on"},
    "distributed/requeue.py": {"how_to_resume"},
    "labels/plan.py": {"meant"},
    "photographs/importers/registry.py": {"meant"},
    "photographs/label_mapping.py": {"meant"},
    "photographs/photograph_task.py": {"where_to_look"},
    "storage/cache/object_cache.py": {"_TOO_SMALL", "_DISK_FULL"},
    "storage/filesystem.py": {"space_advice"},
    "artifacts/model_folder.py": {"_AGAIN"},
    "training/checkpoints/checkpoint.py": {"advice"},
    "training/trainer.py": {"again"},
    "stages/prepare/table_notes.py": {"_other_extension", "looks_like"},
    "storage/s3/store_faults.py": {"_FINAL_CODES", "_CHECK_CREDENTIALS", "_CHECK_PERMISSIONS", "_LOG_IN_AGAIN"},
}
"""Functions that return hints, and constants that hold them, under names that do not say so."""
WORDED = re.compile(r"(?<![{\w])[A-Za-z]{2,}")
"""What says something beside the values in it."""
HINT_AT = {"Check": 3, "Fault": 2}
"""Classes of which an argument in this place is a hint."""


@dataclass(frozen=True)
class Site:
    """A place that words a hint.

    Attributes:
        module: Path below the package.
        line: Where it stands.
        text: The hint, with ``{}`` for each value.
    """

    module: str
    line: int
    text: str


def _texts(node: ast.AST) -> list[str]:
    """Return the texts an expression may give; of an f-string with ``{}`` for its values."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) and node.value else []
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
        return ["".join(map(str, parts))]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body), *_texts(node.orelse)]
    if isinstance(node, ast.Call):  # "{option}".format(), ", ".join() of a list of texts
        return [text for argument in node.args for text in _texts(argument)]
    if isinstance(node, (ast.Compare, ast.Name, ast.Attribute, ast.Subscript)):
        return []
    if isinstance(node, ast.Dict):
        return [text for value in node.values for text in _texts(value)]
    if isinstance(node, ast.Tuple):  # what is wrong, and what to do
        return _texts(node.elts[-1])
    return [text for child in ast.iter_child_nodes(node) for text in _texts(child)]


def _named(target: ast.expr, names: set[str]) -> bool:
    if isinstance(target, ast.Tuple):
        return any(_named(one, names) for one in target.elts)
    name = target.id if isinstance(target, ast.Name) else target.attr if isinstance(target, ast.Attribute) else ""
    return name == "hint" or "HINT" in name or name in names


def _worded(tree: ast.AST, names: set[str]) -> Iterator[ast.expr]:
    """Yield the expressions that become hints."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (keyword.value for keyword in node.keywords if keyword.arg == "hint")
            at = HINT_AT.get(getattr(node.func, "id", ""), len(node.args))
            yield from node.args[at : at + 1]
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if node.value is not None and any(_named(target, names) for target in targets):
                yield node.value
        elif isinstance(node, ast.FunctionDef) and node.name in names:
            yield from (one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value is not None)


def sites() -> list[Site]:
    """Return every place that words a hint, in order."""
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for value in _worded(tree, MAKERS.get(module, set())):
            found |= {Site(module, value.lineno, text) for text in _texts(value) if WORDED.search(text)}
    return sorted(found, key=lambda site: (site.module, site.line, site.text))
