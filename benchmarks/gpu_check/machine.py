"""Step 0: driver, GPU, copies, and what `synfundus doctor` says."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.setting import ROOT, Setting
from benchmarks.gpu_check.verdicts import Report
from synfundus.artifacts.run_folder import versions
from synfundus.stages.doctor.job import OLDEST_DRIVER, driver_version, examine, has_kernels
from synfundus.training.memory.footprint import GIB, find_gpu

_SMI_FIELDS = (
    "name,memory.total,ecc.mode.current,mig.mode.current,clocks.max.sm,clocks.sm,power.limit,temperature.gpu,"
    "pcie.link.gen.current,pcie.link.width.current"
)
_COPIES = 5


def run(setting: Setting, report: Report) -> None:
    """Check driver, architecture and doctor; measure copies."""
    device = torch.device("cuda", 0)
    _driver(report)
    major, minor = torch.cuda.get_device_capability(device)
    built = torch.cuda.get_arch_list()
    fits = has_kernels(major, minor, built)
    report.holds("kernels for this GPU", fits, f"sm_{major}{minor}, torch has {', '.join(built)}")
    memory = torch.cuda.get_device_properties(device).total_memory
    free, _ = torch.cuda.mem_get_info(device)
    name = torch.cuda.get_device_name(device)
    card = find_gpu(name) or "not in plan's table"
    report.figure(
        "GPU",
        f"{name} ({card}), {memory / GIB:.1f} GiB, {free / GIB:.1f} GiB free",
        memory_bytes=memory,
        free_bytes=free,
        count=torch.cuda.device_count(),
    )
    _smi(report)
    total = float(torch.ones(1000, device=device).cumsum(0)[-1])
    report.computed("arithmetic", total == 1000.0, f"a thousand ones add up to {total:g}")
    _copies(setting, report, device)
    for check in examine(os.environ, device="cuda"):
        text = check.detail + (f" -> {check.hint}" if check.hint else "")
        if check.status == "warn":
            report.figure(f"doctor, {check.name}", f"warning: {text}")
        else:
            report.holds(f"doctor, {check.name}", check.status == "ok", text)


def _driver(report: Report) -> None:
    driver, cuda = driver_version(), str(torch.version.cuda)
    oldest = OLDEST_DRIVER.get(cuda.split(".")[0])
    if driver is None or oldest is None:
        report.skip("driver", f"version not found (CUDA {cuda})")
        return
    new_enough = int(driver.split(".")[0]) >= oldest
    report.holds("driver", new_enough, f"{driver}, CUDA {cuda} needs {oldest}", driver=driver, cuda=cuda)


def _smi(report: Report) -> None:
    program = shutil.which("nvidia-smi")
    if program is None:
        report.skip("nvidia-smi", "not installed")
        return
    done = subprocess.run(
        [program, f"--query-gpu={_SMI_FIELDS}", "--format=csv,noheader", "--id=0"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    found = dict(zip(_SMI_FIELDS.split(","), (word.strip() for word in done.stdout.split(",")), strict=False))
    if done.returncode or len(found) < 2:
        report.skip("nvidia-smi", f"exit code {done.returncode}: {(done.stdout or done.stderr).strip()[:120]}")
        return
    report.figure("nvidia-smi", ", ".join(f"{name} {value}" for name, value in found.items()), **found)


def _copies(setting: Setting, report: Report, device: torch.device) -> None:
    size = 2**20 if setting.small else 2**28
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(size, dtype=torch.uint8, device=device)
    rates = {
        "to_gpu": _gb_per_s(lambda: there.copy_(host, non_blocking=True), size),
        "from_gpu": _gb_per_s(lambda: host.copy_(there, non_blocking=True), size),
        "within_gpu": _gb_per_s(lambda: there.copy_(there.clone()), size),
    }
    text = ", ".join(f"{name.replace('_', ' ')} {rate:.1f} GB/s" for name, rate in rates.items())
    report.figure("copies", f"pinned memory: {text}", **{f"{name}_gb_per_s": rate for name, rate in rates.items()})


def _gb_per_s(copy: Callable[[], object], size: int) -> float:
    copy()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(_COPIES):
        copy()
    torch.cuda.synchronize()
    return _COPIES * size / max(time.perf_counter() - began, 1e-9) / 1e9


def facts() -> dict[str, Any]:
    """Return versions, driver and GPU for the document."""
    return {
        **versions(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver_version(),
        "gpu": torch.cuda.get_device_name(0),
        "gpus": torch.cuda.device_count(),
        "plan_gpu": find_gpu(torch.cuda.get_device_name(0)),
        "commit": _commit(ROOT),
    }


def _commit(folder: Path) -> str | None:
    """Return the commit of a checkout; None outside one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() or None
