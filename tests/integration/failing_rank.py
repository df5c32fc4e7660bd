"""Runs ``-m MODULE ...`` with an optimizer step that fails as on a broken GPU, on the nodes that a file lists.

usage: failing_rank.py FILE -m MODULE ARGUMENTS; FILE has a line ``NODE STEP`` for each fault, which happens once.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

ERROR = "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronously reported"


def break_step(mark: Path, line: str) -> None:
    """Have the step of the trainer fail, once."""
    from synfundus.training.trainer import Trainer

    whole, steps = Trainer._step, int(line.split()[1])
    count = 0

    def failing(self: Trainer, *arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == steps:
            mark.write_text(mark.read_text().replace(f"{line}\n", "", 1))
            raise RuntimeError(ERROR)
        return whole(self, *arguments, **named)

    Trainer._step = failing  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))  # as ``python -m`` does
    place = Path(sys.argv[1])
    here = os.environ.get("SLURMD_NODENAME", "")
    due = [line for line in place.read_text().splitlines() if line.split()[0] == here]
    if due and os.environ.get("SLURM_LOCALID") == "0":
        break_step(place, due[0])
    module = sys.argv[3]  # after -m
    sys.argv = [sys.argv[0], *sys.argv[4:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
