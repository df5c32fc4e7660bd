"""Decides, for the scripts in `slurm/`, whether a job whose rank failed is queued again, and without which nodes.

usage: python -m synfundus.launch.faults EXCLUDED; EXCLUDED are the nodes the job leaves out already (squeue's ``%x``).
Prints the nodes to leave out and exits with 0, or exits with 1: the job ends. What it says goes to the job's log.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = "SYNFUNDUS_FAULTS"
MOST = "SYNFUNDUS_MAX_FAULTS"
_DEFAULT_MOST = 4
_MOST_LINES = 60


@dataclass(frozen=True)
class Decision:
    """What happens to the job.

    Attributes:
        again: Whether it is queued again.
        reason: A line for its log.
    """

    again: bool
    reason: str


def decide(node: str, *, before: Sequence[str], earlier: int, most: int) -> Decision:
    """Decide after a fault. Pure.

    A fault on a second node before the job has got further is none of the nodes.

    Args:
        node: Where the first rank failed.
        before: Nodes of the faults since the last checkpoint.
        earlier: Number of all faults of the job before this one.
        most: Faults after which a job is queued again.
    """
    others = sorted(set(before) - {node})
    if others:
        return Decision(
            False, f"a rank failed on {node} and, since the last checkpoint, on {', '.join(others)}: it is not the node"
        )
    if earlier >= most:
        return Decision(False, f"a rank failed on {node}, after {earlier} earlier faults ({MOST} is {most})")
    return Decision(True, f"a rank failed on {node}: again without this node")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def main(excluded: str, folder: Path, most: int) -> int:
    """Show the first report, decide, remember the node; returns the exit code."""
    reports = [path for path in folder.glob("*.*") if path.stat().st_size]
    if not reports:
        shutil.rmtree(folder, ignore_errors=True)
        return 1
    # the other ranks fail because of the first
    first = min(reports, key=lambda path: path.stat().st_mtime_ns)
    node = first.name.rpartition(".")[0]
    sys.stderr.write("\n".join([*_lines(first)[:_MOST_LINES], ""]))
    history, everything = folder / "history", folder / "all"
    decision = decide(node, before=_lines(history), earlier=len(_lines(everything)), most=most)
    for path in (history, everything):
        with path.open("a", encoding="utf-8") as stream:
            stream.write(f"{node}\n")
    sys.stderr.write(f"{decision.reason}\n")
    if not decision.again:
        return 1
    known = [] if excluded in ("", "(null)") else [excluded]
    sys.stdout.write(",".join([*known, node]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(os.environ[FOLDER]), int(os.environ.get(MOST) or _DEFAULT_MOST)))
