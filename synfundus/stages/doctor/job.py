"""`synfundus doctor`: what this machine has, what is missing, and what to do about it.

Facts are gathered first (in separate processes where an import may crash or hang), then judged by pure functions.
Secrets are never read: only whether they exist.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World
from synfundus.models.compiler import missing_for_compilation
from synfundus.stages import Summary
from synfundus.telemetry.console import Console
from synfundus.training.memory.host_memory import available_memory_bytes

Status = Literal["ok", "warn", "fail"]

GIB = 2**30
PROBE_TIMEOUT_S = 180
STALE_LOCK_S = 600
LOW_DISK_GIB, NO_DISK_GIB = 10.0, 1.0
LOW_MEMORY_GIB, NO_MEMORY_GIB = 6.0, 2.0
OLDEST_TORCH = (2, 11)
SLURM_PROGRAMS = ("sbatch", "srun", "scontrol")

_TORCH_PROBE = """
import torch
from synfundus.distributed.world import has_native_bf16
cuda = torch.cuda
there = cuda.is_available()
facts = {
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "devices": [cuda.get_device_name(index) for index in range(cuda.device_count())] if there else [],
    "bf16": has_native_bf16("cuda" if there else "cpu"),
}
"""
_DIFFUSERS_PROBE = """
import diffusers
from diffusers import AutoencoderKL, UNet2DConditionModel
facts = {"version": diffusers.__version__}
"""
_DEEPSPEED_PROBE = """
import deepspeed
facts = {"version": deepspeed.__version__}
"""
_XFORMERS_PROBE = """
import torch
from synfundus.models.attention import choose_attention
choice = choose_attention(requested="auto", head_dims=(64,), dtype=torch.bfloat16, device=torch.device("cuda"))
facts = {"backend": choice.backend, "reason": choice.reason}
"""
_PROBES = {"torch": _TORCH_PROBE, "deepspeed": _DEEPSPEED_PROBE, "diffusers": _DIFFUSERS_PROBE}
"""Packages that must import, each tried in a separate process."""


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: What was checked.
        status: ``ok``, ``warn`` (works, but) or ``fail`` (the main job will not run).
        detail: What was found.
        hint: What to do; empty when nothing.
    """

    name: str
    status: Status
    detail: str
    hint: str = ""


def probe(statements: str, *, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run statements that set ``facts`` in a separate process; a crash or a hang becomes ``{"error": ...}``."""
    script = f"import json, warnings\nwarnings.simplefilter('ignore')\n{statements}\nprint('\\n' + json.dumps(facts))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            env={**environment, "DS_LOG_LEVEL": "error"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {PROBE_TIMEOUT_S} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        facts: dict[str, Any] = json.loads(lines[-1])
        return facts
    complaint = done.stderr.strip().splitlines()
    return {"error": complaint[-1] if complaint else f"ended with exit code {done.returncode}"}


def check_python(version: tuple[int, ...]) -> Check:
    """Judge the interpreter."""
    text = ".".join(str(part) for part in version)
    if version < (3, 11):
        return Check("Python", "fail", text, "synfundus needs Python 3.11 or newer")
    return Check("Python", "ok", f"{text} at {sys.executable}")


def _torch_version(text: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def check_package(name: str, facts: Mapping[str, Any]) -> Check:
    """Judge a package that must import."""
    if "error" in facts:
        return Check(name, "fail", str(facts["error"]), f"pip install --force-reinstall {name}")
    version = str(facts["version"])
    if name == "torch" and _torch_version(version) < OLDEST_TORCH:
        return Check(
            name, "warn", version, f"synfundus is tested with torch {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} and newer"
        )
    return Check(name, "ok", version)


def check_cuda(facts: Mapping[str, Any], *, wanted: Literal["auto", "cpu", "cuda"], driver: bool) -> Check:
    """Judge the GPUs. None is fine unless launch.device is cuda.

    Args:
        facts: What the torch probe found.
        wanted: `launch.device`.
        driver: Whether an NVIDIA driver is loaded.
    """
    devices = list(facts.get("devices", []))
    if devices:
        names = ", ".join(f"{devices.count(name)} x {name}" for name in dict.fromkeys(devices))
        bf16 = "bf16" if facts.get("bf16") else "no bf16"
        status: Status = "ok" if facts.get("bf16") else "warn"
        return Check(
            "CUDA",
            status,
            f"{facts.get('cuda')}: {names}, {bf16}",
            "" if facts.get("bf16") else "precision auto means fp32",
        )
    if wanted == "cuda":
        return Check("CUDA", "fail", "torch sees no CUDA device", "install a CUDA build of torch, check nvidia-smi")
    if driver:
        return Check("CUDA", "warn", "a driver is loaded, but torch sees no device", "install a CUDA build of torch")
    meaning = "bf16" if facts.get("bf16") else "fp32: this CPU emulates bf16, very slowly"
    return Check("CUDA", "ok", f"no device: runs on the CPU; precision auto means {meaning}")


def check_xformers(facts: Mapping[str, Any] | None) -> Check:
    """Judge the attention kernel; ``facts`` is None where there is no GPU."""
    if facts is None:
        return Check("xformers", "ok", "not used without a GPU")
    if "error" in facts:
        return Check("xformers", "warn", f"probe failed: {facts['error']}", "launch.attention=sdpa works")
    if facts["backend"] == "xformers":
        return Check("xformers", "ok", f"forward and backward ran ({facts['reason']})")
    return Check("xformers", "warn", f"{facts['backend']}: {facts['reason']}", "pip install 'synfundus[gpu]'")


def check_compiler(missing: str | None) -> Check:
    """Report whether `train.loop.compile` can work; nothing else compiles."""
    if missing is not None:
        return Check("compiler", "ok", f"train.loop.compile is not possible without {missing}; nothing else compiles")
    return Check("compiler", "ok", "there: train.loop.compile is possible")


def check_slurm(versions: Mapping[str, str | None]) -> Check:
    """Judge the cluster's programs: all, or none."""
    missing = [name for name, version in versions.items() if version is None]
    if len(missing) == len(versions):
        return Check("SLURM", "ok", "not here: one machine only")
    found = ", ".join(f"{name} ({version})" for name, version in versions.items() if version is not None)
    if missing:
        return Check("SLURM", "warn", f"{found}; missing: {', '.join(missing)}", "install the SLURM client programs")
    return Check("SLURM", "ok", found)


def check_s3(environment: Mapping[str, str], *, credentials_file: bool) -> Check:
    """Report the sources of S3 credentials. No value is read."""
    key, secret = "AWS_ACCESS_KEY_ID" in environment, "AWS_SECRET_ACCESS_KEY" in environment
    if key != secret:
        lacking = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
        return Check("S3", "warn", f"half a key pair: {lacking} is not set", f"set {lacking} too, or neither")
    roles = ("AWS_ROLE_ARN", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
    sources = [
        *(["environment"] if key else []),
        *(["profile"] if "AWS_PROFILE" in environment else []),
        *(["credentials file"] if credentials_file else []),
        *(["role"] if any(name in environment for name in roles) else []),
    ]
    if sources:
        return Check("S3", "ok", f"credentials present ({', '.join(sources)})")
    return Check("S3", "ok", "no credentials: local paths and public buckets only")


def _level(value: float, low: float, none: float) -> Status:
    return "fail" if value < none else "warn" if value < low else "ok"


def check_disk(free_bytes: Mapping[str, int]) -> Check:
    """Judge the space left."""
    least = min(free_bytes.values()) / GIB
    detail = ", ".join(f"{free / GIB:.1f} GiB free in {place}" for place, free in free_bytes.items())
    status = _level(least, LOW_DISK_GIB, NO_DISK_GIB)
    return Check("disk", status, detail, "" if status == "ok" else f"the demo wants {LOW_DISK_GIB:.0f} GiB; set TMPDIR")


def check_memory(available_bytes: int) -> Check:
    """Judge the memory this process may use."""
    gib = available_bytes / GIB
    status = _level(gib, LOW_MEMORY_GIB, NO_MEMORY_GIB)
    return Check("memory", status, f"{gib:.1f} GiB available", "" if status == "ok" else "the demo wants 6 GiB")


def check_cores(cores: int) -> Check:
    """Report the cores this process may use."""
    hint = "" if cores > 1 else "the demo's times are for two cores"
    return Check("cores", "ok" if cores > 1 else "warn", str(cores), hint)


def check_jit_locks(ages_s: Mapping[str, float]) -> Check:
    """Judge lock files of extension builds: a killed build leaves one, and every later build waits for it forever."""
    stale = [path for path, age in ages_s.items() if age >= STALE_LOCK_S]
    if stale:
        return Check("JIT locks", "warn", f"stale: {', '.join(stale)}", "delete these files when no build is running")
    if ages_s:
        return Check("JIT locks", "ok", f"a build is running: {', '.join(ages_s)}")
    return Check("JIT locks", "ok", "none")


def find_jit_locks(folder: Path, *, now: float) -> dict[str, float]:
    """Return the lock files below torch's extensions folder with their age in seconds."""
    return {str(path): now - path.stat().st_mtime for path in sorted(folder.glob("**/lock")) if path.is_file()}


def program_version(name: str) -> str | None:
    """Return the output of ``name --version``; None when the program does not exist."""
    path = shutil.which(name)
    if path is None:
        return None
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "does not answer"
    return (done.stdout or done.stderr).strip().splitlines()[0] if (done.stdout or done.stderr).strip() else "?"


def examine(environment: Mapping[str, str], *, device: Literal["auto", "cpu", "cuda"]) -> list[Check]:
    """Run all checks."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        packages = dict(
            zip(_PROBES, pool.map(lambda code: probe(code, environment=environment), _PROBES.values()), strict=True)
        )
    gpus = bool(packages["torch"].get("devices")) and device != "cpu"
    extensions = Path(environment.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    credentials = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")
    places = dict.fromkeys([str(Path.cwd()), tempfile.gettempdir()])
    return [
        check_python(tuple(sys.version_info[:3])),
        check_package("torch", packages["torch"]),
        check_cuda(packages["torch"], wanted=device, driver=Path("/proc/driver/nvidia/version").exists()),
        check_package("deepspeed", packages["deepspeed"]),
        check_package("diffusers", packages["diffusers"]),
        check_xformers(probe(_XFORMERS_PROBE, environment=environment) if gpus else None),
        check_compiler(missing_for_compilation("cuda" if gpus else "cpu", environment)),
        check_slurm({name: program_version(name) for name in SLURM_PROGRAMS}),
        check_s3(environment, credentials_file=credentials.is_file()),
        check_disk({place: shutil.disk_usage(place).free for place in places}),
        check_memory(available_memory_bytes()),
        check_cores(len(os.sched_getaffinity(0))),
        check_jit_locks(find_jit_locks(extensions, now=time.time())),
    ]


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Check this machine and report the results.

    Returns:
        ``ok`` (false when a check failed), ``platform`` and the ``checks``.
    """
    del world
    checks = examine(os.environ, device=config.launch.device)
    rows = [(check.name, check.status, check.detail + (f" -> {check.hint}" if check.hint else "")) for check in checks]
    console.table("synfundus doctor", ("check", "status", "found"), rows)
    return {
        "ok": all(check.status != "fail" for check in checks),
        "platform": platform.platform(),
        "checks": [asdict(check) for check in checks],
    }
