"""``python -m benchmarks.gpu_check [--only 2,4] [--out FILE] [--small]``: see `make gpu-check`.

Exit codes: 0 nothing failed, 1 something failed, 2 there is no GPU that torch can use, or a wrong command line.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu_check.setting import ROOT, Setting, complaint_of, end_tree, is_stand_in
from benchmarks.gpu_check.steps import STEPS, Step, chosen
from benchmarks.gpu_check.verdicts import Line, Report, document, lines_of_a_dead_step, log_line, read_line

STAND_IN_PATIENCE, PATIENCE = 30.0, 3.0
_LINES = "lines.jsonl"


def missing_gpu(*, cuda: str | None, sees_gpu: bool, driver: str | None) -> str | None:
    """Return what is missing to run the check and how to get it; None if nothing is.

    Args:
        cuda: `torch.version.cuda`; None in a CPU build.
        sees_gpu: Whether torch can use a GPU.
        driver: Version of the loaded driver; None without one.
    """
    if sees_gpu:
        return None
    loaded = f"NVIDIA driver {driver}" if driver else "no NVIDIA driver is loaded"
    if cuda is None:
        return f"this torch is a CPU build ({loaded}). Run: make install-gpu && make gpu-check"
    from synfundus.stages.doctor.job import OLDEST_DRIVER

    oldest = OLDEST_DRIVER.get(cuda.split(".")[0], "a newer one")
    return (
        f"torch for CUDA {cuda} sees no GPU: {loaded}, it needs {oldest} or newer. See nvidia-smi and "
        "CUDA_VISIBLE_DEVICES; for an older driver: make install-gpu ATTENTION=xformers && make gpu-check"
    )


def _refuse_without_gpu() -> None:
    import torch

    from synfundus.stages.doctor.job import driver_version

    missing = missing_gpu(cuda=torch.version.cuda, sees_gpu=torch.cuda.is_available(), driver=driver_version())
    if missing is not None:
        print(f"gpu-check needs a GPU and a CUDA build of torch: {missing}", file=sys.stderr)
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen steps, each in a process of its own, and give the verdict."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument(
        "--only", metavar="N,N", help=f"steps to run: {', '.join(f'{s.number} {s.title}' for s in STEPS)}"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="the document (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="keep logs, traces and runs here (default: a temporary folder)")
    parser.add_argument("--small", action="store_true", help="small sizes, which say nothing about speed")
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    stand_in = is_stand_in(os.environ)
    if options.step is not None:
        return _run_step(options.step, options.folder, small=options.small, stand_in=stand_in)
    try:
        steps = chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    _refuse_without_gpu()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        return _run_all(steps, options.folder.resolve(), out=options.out, small=options.small or stand_in)
    with tempfile.TemporaryDirectory(prefix="synfundus-gpu-check-") as folder:
        return _run_all(steps, Path(folder), out=options.out, small=options.small or stand_in)


def _run_step(number: int, folder: Path, *, small: bool, stand_in: bool) -> int:
    """Run one step in this process; its lines go to a file as they come."""
    step = next(one for one in STEPS if one.number == number)
    place = folder / _LINES

    def write(line: Line) -> None:
        with place.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(line), default=str) + "\n")

    ends = time.monotonic() + step.planned_s
    setting = Setting(small=small, stand_in=stand_in, folder=folder, ends=ends)
    step.run(setting, Report(number, stand_in=stand_in, write=write))
    return 0


def _run_all(steps: Sequence[Step], folder: Path, *, out: Path, small: bool) -> int:
    """Run steps one after the other, then write and print the verdict."""
    from benchmarks.gpu_check.machine import facts

    stand_in = is_stand_in(os.environ)
    began = time.monotonic()
    if stand_in:
        print("a stand-in GPU: this walks through the steps, no figure means anything")
    lines: list[Line] = []
    for step in steps:
        lines += _run_apart(step, folder / f"step-{step.number}", small=small, stand_in=stand_in)
    found = document(
        lines,
        machine={**facts(), "small": small},
        steps=[step.number for step in steps],
        seconds=time.monotonic() - began,
        stand_in=stand_in,
    )
    text = json.dumps(found, indent=2, default=str)
    out.write_text(text + "\n", encoding="utf-8")
    print(text)
    print(f"\n{found['verdict']}: {out}\nfor docs/LOG.md: {log_line(found, date=datetime.date.today().isoformat())}")
    return 0 if found["verdict"] == "PASS" else 1


def _run_apart(step: Step, folder: Path, *, small: bool, stand_in: bool) -> list[Line]:
    """Run a step in a process of its own and print its lines as they come."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _LINES).unlink(missing_ok=True)
    limit = step.limit_s(STAND_IN_PATIENCE if stand_in else PATIENCE)
    print(f"--    {step.number}  {step.title} (about {step.planned_s} s)", flush=True)
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--step", str(step.number), "--folder", str(folder)]
    log = folder / "step.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, *(["--small"] if small else [])],
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=dict(os.environ),
        )
    lines: list[Line] = []
    ends = time.monotonic() + limit
    code: int | None = None
    try:
        while code is None and time.monotonic() < ends:
            time.sleep(0.1)
            code = process.poll()
            lines = _print_new(folder / _LINES, lines)
    finally:
        end_tree(process)
    lines = _print_new(folder / _LINES, lines)
    complaint = complaint_of(log.read_text(encoding="utf-8", errors="replace"))
    dead = lines_of_a_dead_step(
        step.number, step.title, lines, code=code, complaint=complaint, limit_s=limit, real=not stand_in
    )
    for line in dead:
        print(line, flush=True)
    return [*lines, *dead]


def _print_new(place: Path, known: list[Line]) -> list[Line]:
    """Print the lines that were added to a file; returns all."""
    if not place.is_file():
        return known
    whole = [text for text in place.read_text(encoding="utf-8").splitlines(keepends=True) if text.endswith("\n")]
    lines = [read_line(text) for text in whole]
    for line in lines[len(known) :]:
        print(line, flush=True)
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
