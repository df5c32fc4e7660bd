"""The steps, in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu_check import chain, kernels, machine, memory, parity, ranks, resume, speed, suite
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.verdicts import Report


@dataclass(frozen=True)
class Step:
    """One step of the check.

    Attributes:
        number: Its number.
        title: What it is about.
        planned_s: Seconds it plans for; what does not fit into them it leaves out and says so.
        run: Runs it.
    """

    number: int
    title: str
    planned_s: int
    run: Callable[[Setting, Report], None]

    def limit_s(self, patience: float) -> float:
        """Return the seconds after which it is ended: starts of processes vary, so there is room."""
        return 60.0 + patience * self.planned_s


STEPS = (
    Step(0, "machine", 20, machine.run),
    Step(1, "tests for a GPU", 60, suite.run),
    Step(2, "attention", 30, kernels.run),
    Step(3, "numbers of a step", 60, parity.run),
    Step(4, "speed", 180, speed.run),
    Step(5, "memory", 60, memory.run),
    Step(6, "kill, resume, averages, offload", 60, resume.run),
    Step(7, "the chain", 60, chain.run),
    Step(8, "two GPUs", 60, ranks.run),
)
"""Step 9, the verdict, is the document at the end."""


def chosen(only: str | None) -> list[Step]:
    """Return the steps to run.

    Args:
        only: Numbers with commas between them; None: all.

    Raises:
        ValueError: One is no number of a step.
    """
    if only is None:
        return list(STEPS)
    wanted = {word.strip() for word in only.split(",") if word.strip()}
    known = {str(step.number) for step in STEPS}
    if not wanted or wanted - known:
        unknown = ", ".join(sorted(wanted - known)) or "nothing"
        raise ValueError(f"--only {only}: {unknown} is no step; there are {', '.join(sorted(known))}")
    return [step for step in STEPS if str(step.number) in wanted]
