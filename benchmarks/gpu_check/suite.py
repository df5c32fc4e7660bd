"""Step 1: the tests that need a GPU, ``pytest -m gpu``."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_check.setting import ROOT, Setting
from benchmarks.gpu_check.verdicts import NOTHING_COMPUTED, Report

LEAST_TESTS = 8
_FOLDERS = ("tests/unit", "tests/integration")


@dataclass(frozen=True)
class Counts:
    """Tests of a run of pytest."""

    tests: int
    failed: int
    skipped: int


def read_counts(document: str) -> Counts:
    """Return the counts of a JUnit document of pytest."""
    suites = list(ElementTree.fromstring(document).iter("testsuite"))

    def total(name: str) -> int:
        return sum(int(one.get(name, "0")) for one in suites)

    return Counts(total("tests"), total("failures") + total("errors"), total("skipped"))


def run(setting: Setting, report: Report) -> None:
    """Collect the tests and run them."""
    if setting.stand_in:
        done = _pytest("--collect-only", timeout_s=600)
        report.holds("collection", done.returncode == 0, f"pytest ended with {done.returncode}")
        report.skip("tests", NOTHING_COMPUTED)
        return
    place = setting.folder / "tests.xml"
    done = _pytest(f"--junitxml={place}", timeout_s=600)
    if not place.is_file():
        report.holds("tests", False, f"pytest ended with {done.returncode}: {_last(done.stdout + done.stderr)}")
        return
    (setting.folder / "pytest.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    counts = read_counts(place.read_text(encoding="utf-8"))
    fine = counts.failed == 0 and counts.skipped == 0 and counts.tests >= LEAST_TESTS and done.returncode == 0
    report.holds(
        "tests",
        fine,
        f"{counts.tests} run, {counts.failed} failed, {counts.skipped} skipped (at least {LEAST_TESTS}, none skipped)",
        tests=counts.tests,
        failed=counts.failed,
        skipped=counts.skipped,
    )


def _pytest(*options: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "-W", "default", *options, *_FOLDERS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=Path(ROOT), env=environment
    )


def _last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
