"""What a figure means: the lines of a check, their verdicts, and the document that ends it. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["PASS", "FAIL", "SKIP", "INFO"]

FORMAT_NAME = "synfundus-gpu-check"
FORMAT_VERSION = 1
NOTHING_COMPUTED = "stand-in: kernels compute nothing"


@dataclass(frozen=True)
class Line:
    """One line of the check.

    Attributes:
        step: Number of the step.
        name: What was checked; unique within the step.
        verdict: PASS, FAIL, SKIP, or INFO for a figure without a threshold.
        text: What was found.
        figures: The figures by name, with the unit in the name.
        real: False for figures of a stand-in GPU, which mean nothing.
    """

    step: int
    name: str
    verdict: Verdict
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    real: bool = True

    def __str__(self) -> str:
        return f"{self.verdict}  {self.step}  {self.name}: {self.text}"


def read_line(text: str) -> Line:
    """Return a line from its JSON."""
    return Line(**json.loads(text))


def within(gap: float, tolerance: float) -> Verdict:
    """Return PASS for a gap of at most the tolerance; what is not a number fails."""
    return "PASS" if gap <= tolerance else "FAIL"


def relative_gap(value: float, reference: float) -> float:
    """Return how far a value is from its reference, relative to it; infinite if either is not finite."""
    if not (math.isfinite(value) and math.isfinite(reference)):
        return math.inf
    if reference == 0:
        return 0.0 if value == 0 else math.inf
    return abs(value - reference) / abs(reference)


def ratio(measured: float, planned: float | None) -> float | None:
    """Return a figure relative to that of `synfundus plan`; None where there is none."""
    return measured / planned if planned else None


class Report:
    """Makes the lines of a step and hands them on at once, so that a crash later loses none.

    Args:
        step: Number of the step.
        stand_in: The GPU is a stand-in: its figures are not real, and what compares numbers is left out.
        write: Takes a line.
    """

    def __init__(self, step: int, *, stand_in: bool, write: Callable[[Line], None]) -> None:
        self._step, self._stand_in, self._write = step, stand_in, write

    def _say(self, name: str, verdict: Verdict, text: str, figures: Mapping[str, Any]) -> None:
        self._write(Line(self._step, name, verdict, text, dict(figures), real=not self._stand_in))

    def parity(self, name: str, gap: float, tolerance: float, what: str) -> None:
        """Judge a deviation of numbers that the GPU computed.

        Args:
            name: What was checked.
            gap: The deviation.
            tolerance: The most it may be.
            what: What deviates from what.
        """
        if self._stand_in:
            self.skip(name, NOTHING_COMPUTED)
        else:
            figures = {"gap": gap, "tolerance": tolerance}
            self._say(name, within(gap, tolerance), f"{what} {gap:.3g}, allowed {tolerance:g}", figures)

    def computed(self, name: str, holds: bool, text: str, **figures: Any) -> None:
        """Judge what follows from numbers that the GPU computed."""
        if self._stand_in:
            self.skip(name, NOTHING_COMPUTED)
        else:
            self.holds(name, holds, text, **figures)

    def holds(self, name: str, holds: bool, text: str, **figures: Any) -> None:
        """Judge what is true on a stand-in too: exit codes, files, kernels that were accepted."""
        self._say(name, "PASS" if holds else "FAIL", text, figures)

    def figure(self, name: str, text: str, **figures: Any) -> None:
        """Give figures that have no threshold."""
        self._say(name, "INFO", text, figures)

    def speed(self, name: str, images_per_s: float, planned: float | None, *, more: str = "", **figures: Any) -> None:
        """Give a rate beside that of `synfundus plan`, without a threshold: nobody has measured one.

        Args:
            name: What was timed.
            images_per_s: Its rate.
            planned: The plan's rate for this card and job; None if the card is not in its table.
            more: What else to say.
            figures: Further figures.
        """
        if self._stand_in:
            self.figure(name, f"ran; {NOTHING_COMPUTED}", images_per_s=images_per_s, **figures)
            return
        share = ratio(images_per_s, planned)
        beside = "no figure in plan for this card" if share is None else f"{share:.2f} of plan's {planned:,.0f}"
        text = f"{images_per_s:,.1f} images/s, {beside}{more}"
        self.figure(name, text, images_per_s=images_per_s, plan_images_per_s=planned, ratio_to_plan=share, **figures)

    def skip(self, name: str, why: str) -> None:
        """Say why something was not checked."""
        self._say(name, "SKIP", why, {})


def lines_of_a_dead_step(
    step: int, title: str, lines: Sequence[Line], *, code: int | None, complaint: str, limit_s: float, real: bool
) -> list[Line]:
    """Return what a step that did not end by itself adds to its lines: nothing after exit code 0.

    Args:
        step: Number of the step.
        title: Its name.
        lines: The lines it has written.
        code: Its exit code, negative for a signal; None if it was ended at its limit.
        complaint: The last line of its log.
        limit_s: Its limit.
        real: Whether the GPU is a real one.
    """
    if code == 0 and lines:
        return []
    if code == 0:
        text = "ended without a line"
    elif code is None:
        text = f"did not end within {limit_s:.0f} s and was ended"
    else:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        text = f"ended with {how}: {complaint}" if complaint else f"ended with {how}"
    return [Line(step, title, "FAIL", text, {} if code is None else {"exit_code": code}, real=real)]


def overall(lines: Sequence[Line]) -> Literal["PASS", "FAIL"]:
    """Return FAIL if any line failed, or if there is none."""
    return "PASS" if lines and all(line.verdict != "FAIL" for line in lines) else "FAIL"


def ratios_to_plan(lines: Sequence[Line]) -> dict[str, float]:
    """Return every ratio to the plan, by the name of its line."""
    found = {line.name: line.figures.get("ratio_to_plan") for line in lines}
    return {name: share for name, share in found.items() if share is not None}


def document(
    lines: Sequence[Line], *, machine: Mapping[str, Any], steps: Sequence[int], seconds: float, stand_in: bool
) -> dict[str, Any]:
    """Return the document that ends a check.

    Args:
        lines: All lines.
        machine: Versions, driver, GPU.
        steps: Numbers of the steps that ran.
        seconds: How long they took.
        stand_in: Whether the GPU is a stand-in.
    """
    return {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "real": not stand_in,
        "verdict": overall(lines),
        "counts": {verdict: sum(line.verdict == verdict for line in lines) for verdict in ("PASS", "FAIL", "SKIP")},
        "steps": list(steps),
        "seconds": round(seconds, 1),
        "machine": dict(machine),
        "ratios_to_plan": ratios_to_plan(lines),
        "lines": [finite(asdict(line)) for line in lines],
    }


def finite(value: Any) -> Any:
    """Return a value with numbers that JSON does not have as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return value


def log_line(found: Mapping[str, Any], *, date: str) -> str:
    """Return the line for docs/LOG.md.

    Args:
        found: The document.
        date: When, as YYYY-MM-DD.
    """
    machine, counts = found["machine"], found["counts"]
    rates = ", ".join(f"{name} {share:.2f}" for name, share in found["ratios_to_plan"].items()) or "none"
    failed = "; ".join(f"{one['step']} {one['name']}" for one in found["lines"] if one["verdict"] == "FAIL")
    parts = [
        f"gpu-check {date}, commit {machine.get('commit')}",
        f"{machine.get('gpu')}, driver {machine.get('driver')}, torch {machine.get('torch')}",
        f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped in {found['seconds']:.0f} s",
        f"images/s over plan: {rates}",
    ]
    return "; ".join(
        [
            *([] if found["real"] else ["stand-in GPU, no figure means anything"]),
            *parts,
            *([f"failed: {failed}"] if failed else []),
        ]
    )
