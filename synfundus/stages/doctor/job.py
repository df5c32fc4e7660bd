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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World
from synfundus.models.compiler import missing_for_compilation, missing_for_triton
from synfundus.stages import Summary
from synfundus.telemetry.console import Console
from synfundus.training.memory.host_memory import available_memory_bytes

Status = Literal["ok", "warn", "fail"]

GIB = 2**30
PROBE_TIMEOUT_S = 180
STALE_LOCK_S = 600
LOW_DISK_GIB, NO_DISK_GIB = 10.0, 1.0
LOW_MEMORY_GIB, NO_MEMORY_GIB = 6.0, 2.0
OLDEST_TORCH = (2, 10)
OLDEST_DRIVER = {"12": 525, "13": 580}
"""NVIDIA's minimum, by major version of CUDA (CUDA Toolkit release notes, table of driver versions)."""
INSTALL_CUDA_12 = "make install-gpu ATTENTION=xformers"
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
    "capabilities": [cuda.get_device_capability(index) for index in range(cuda.device_count())] if there else [],
    "architectures": cuda.get_arch_list() if there else [],
    "bf16": has_native_bf16("cuda" if there else "cpu"),
}
"""
_DIFFUSERS_PROBE = """
import torch
from synfundus.models.attention import installed_xformers, xformers_misfit
import diffusers
xformers = installed_xformers()
facts = {
    "version": diffusers.__version__,
    "xformers": xformers and xformers[0],
    "misfit": xformers and xformers_misfit(xformers[1], torch.version.cuda),
}
"""
_DEEPSPEED_PROBE = """
import deepspeed
facts = {"version": deepspeed.__version__}
"""
_ATTENTION_PROBE = """
import torch
from synfundus.models.attention import AttentionShape, measure_attention
device = torch.device("cuda")
found = measure_attention([AttentionShape(1024, 1024, 8, 64)], batch_size=4, dtype=torch.bfloat16, device=device)
facts = {"ms": found.ms, "obstacles": found.obstacles}
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
            [sys.executable, "-P", "-c", script],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_TIMEOUT_S,
            env={**environment, "DS_LOG_LEVEL": "error"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {PROBE_TIMEOUT_S} s"}
    # a library may print something, also when the process ends
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and found:
        facts: dict[str, Any] = json.loads(found[-1])
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


def check_cuda(facts: Mapping[str, Any], *, wanted: Literal["auto", "cpu", "cuda"], driver: str | None) -> Check:
    """Judge the GPUs. None is fine unless launch.device is cuda.

    Args:
        facts: What the torch probe found.
        wanted: `launch.device`.
        driver: Version of the NVIDIA driver; None if none is loaded.
    """
    devices, built_for = list(facts.get("devices", [])), facts.get("cuda")
    if devices:
        return _check_devices(facts, devices)
    if driver is not None or wanted == "cuda":
        status: Status = "fail" if wanted == "cuda" else "warn"
        loaded = f"driver {driver}" if driver else "no NVIDIA driver"
        if built_for is None:
            return Check("CUDA", status, f"{loaded}; torch is a CPU build", "make install-gpu")
        oldest = OLDEST_DRIVER.get(str(built_for).split(".")[0], 0)
        if driver and int(driver.split(".")[0]) < oldest:
            hint = f"update the driver, or {INSTALL_CUDA_12} ({OLDEST_DRIVER['12']} or newer)"
            return Check("CUDA", status, f"{loaded} is too old: torch for CUDA {built_for} needs {oldest}", hint)
        return Check("CUDA", status, f"{loaded}; torch sees no device", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    meaning = "bf16" if facts.get("bf16") else "fp32: this CPU emulates bf16, very slowly"
    return Check("CUDA", "ok", f"no device: runs on the CPU; precision auto means {meaning}")


def _check_devices(facts: Mapping[str, Any], devices: Sequence[str]) -> Check:
    names = ", ".join(f"{devices.count(name)} x {name}" for name in dict.fromkeys(devices))
    built = list(facts.get("architectures", []))
    for name, (major, minor) in zip(devices, facts.get("capabilities", []), strict=False):
        if built and not has_kernels(major, minor, built):
            detail = f"{name} is sm_{major}{minor}; this torch has kernels for {', '.join(built)}"
            return Check("CUDA", "fail", detail, f"use another GPU; for sm_70: {INSTALL_CUDA_12}")
    if facts.get("bf16"):
        return Check("CUDA", "ok", f"{facts.get('cuda')}: {names}, bf16")
    return Check("CUDA", "warn", f"{facts.get('cuda')}: {names}, no bf16", "precision auto means fp32")


def has_kernels(major: int, minor: int, built: Sequence[str]) -> bool:
    """Whether a build of torch runs on a GPU: binaries (sm) within a major version, PTX (compute) on anything newer.

    Args:
        major: First digit of the compute capability.
        minor: Its second digit.
        built: `torch.cuda.get_arch_list()`.
    """
    for kind, digits in (name.split("_") for name in built):
        one = divmod(int(digits.rstrip("af")), 10)
        if one <= (major, minor) and (kind == "compute" or one[0] == major):
            return True
    return False


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Return the version of the loaded NVIDIA driver, None without one."""
    try:
        found = re.search(r"\b(\d{3,}\.\d+(\.\d+)?)\b", path.read_text())
    except OSError:
        return None
    return found[1] if found else "0"


def check_attention(packages: Mapping[str, Any], facts: Mapping[str, Any] | None) -> Check:
    """Judge the attention kernels.

    Args:
        packages: What the diffusers probe found, which looks for xformers without importing it.
        facts: What the kernels took; None where there is no GPU.
    """
    if packages.get("misfit"):
        detail = f"xformers {packages['xformers']} cannot be used: {packages['misfit']}"
        return Check("attention", "warn", detail, f"{INSTALL_CUDA_12}, or pip uninstall xformers: it is not needed")
    if facts is None:
        return Check("attention", "ok", "plain products without a GPU")
    if "error" in facts:
        return Check("attention", "warn", f"probe failed: {facts['error']}", "launch.attention=math works")
    times = [f"{name} {ms:.2g} ms" for name, ms in sorted(facts["ms"].items(), key=lambda item: float(item[1]))]
    detail = "; ".join([", ".join(times), *(f"{name}: {why}" for name, why in facts["obstacles"].items())])
    return Check("attention", "ok" if "sdpa" in facts["ms"] else "warn", detail)


def check_compiler(missing: str | None, *, norms: str | None = None) -> Check:
    """Report whether `train.loop.compile` can work, and on a GPU the group norms that keep NHWC memory.

    Args:
        missing: What `torch.compile` lacks.
        norms: What group norms lack, None without a GPU too.
    """
    compiled = f"not possible without {missing}" if missing else "possible"
    if norms is not None:
        detail = f"train.loop.compile is {compiled}; group norms turn NHWC memory into NCHW without {norms}"
        return Check("compiler", "warn", detail, "install it: every verb that computes is slower without")
    if missing is None:
        return Check("compiler", "ok", "there: train.loop.compile is possible")
    return Check("compiler", "ok", f"train.loop.compile is {compiled}")


def check_slurm(
    programs: Mapping[str, tuple[str, bool] | None], *, controller: tuple[str, bool] | None = None
) -> Check:
    """Judge the answers of the cluster's programs: all of them work, or none is here.

    Args:
        programs: What each says of its version, by name.
        controller: What ``scontrol ping`` says; None if it was not asked.
    """
    here = {name: answer for name, answer in programs.items() if answer is not None}
    if not here:
        return Check("SLURM", "ok", "not here: one machine only")
    found = ", ".join(f"{name} ({version})" for name, (version, _) in here.items())
    if broken := [name for name, (_, works) in here.items() if not works]:
        hint = f"run `{broken[0]} --version`: often slurm.conf or the controller's name is not found"
        return Check("SLURM", "warn", f"{found}; not working: {', '.join(broken)}", hint)
    if missing := [name for name in programs if name not in here]:
        return Check("SLURM", "warn", f"{found}; missing: {', '.join(missing)}", "install the SLURM client programs")
    if controller is not None and not (controller[1] and " UP" in controller[0]):
        return Check("SLURM", "warn", f"{found}; {controller[0]}", "jobs cannot be submitted now; run `scontrol ping`")
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


def ask_version(name: str, question: str = "--version") -> tuple[str, bool] | None:
    """Return the first line of what a program says of its version, and whether it ended well; None without it."""
    path = shutil.which(name)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, question], capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "does not answer", False
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return lines[0] if lines else "?", done.returncode == 0


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
        check_cuda(packages["torch"], wanted=device, driver=driver_version()),
        check_package("deepspeed", packages["deepspeed"]),
        check_package("diffusers", packages["diffusers"]),
        check_attention(packages["diffusers"], probe(_ATTENTION_PROBE, environment=environment) if gpus else None),
        check_compiler(
            missing_for_compilation("cuda" if gpus else "cpu", environment),
            norms=missing_for_triton(environment) if gpus else None,
        ),
        check_slurm({name: ask_version(name) for name in SLURM_PROGRAMS}, controller=ask_version("scontrol", "ping")),
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
