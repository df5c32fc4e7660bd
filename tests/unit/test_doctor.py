"""What the doctor concludes from what it finds."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from synfundus.config.schema import RunConfig
from synfundus.distributed.world import LocalWorld
from synfundus.models.compiler import missing_for_compilation, missing_for_triton
from synfundus.stages.doctor import job as doctor
from synfundus.telemetry.console import SilentConsole

TORCH: dict[str, Any] = {"version": "2.13.0+cpu", "cuda": None, "devices": [], "bf16": False}
GPUS: dict[str, Any] = {"version": "2.13.0", "cuda": "13.0", "devices": ["H100", "H100"], "bf16": True}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """A machine without the seconds its imports take: the answers of the probes, to be changed by the test."""
    answers: dict[str, dict[str, Any]] = {
        "torch": dict(TORCH),
        "deepspeed": {"version": "0.19.8"},
        "diffusers": {"version": "0.42.1", "xformers": None, "misfit": None},
        "attention": {"ms": {"sdpa": 0.4}, "obstacles": {}},
    }
    codes = {**doctor._PROBES, "attention": doctor._ATTENTION_PROBE}

    def answer(statements: str, *, environment: object) -> dict[str, Any]:
        del environment
        return next(answers[name] for name, code in codes.items() if code == statements)

    monkeypatch.setattr(doctor, "probe", answer)
    monkeypatch.setattr(doctor, "available_memory_bytes", lambda: 16 * doctor.GIB)
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 50 * doctor.GIB}))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return answers


def status_of(name: str, *, device: Literal["auto", "cpu", "cuda"] = "auto") -> str:
    checks = doctor.examine(os.environ, device=device)
    return next(check.status for check in checks if check.name == name)


def summary(device: str = "auto") -> dict[str, Any]:
    config = RunConfig.model_validate({"launch": {"device": device}})
    return doctor.run(config, LocalWorld(), SilentConsole())


def test_a_healthy_machine_passes_and_the_summary_is_json(quick: dict[str, dict[str, Any]]) -> None:
    found = summary()
    assert found["ok"] is True
    assert len(json.loads(json.dumps(found))["checks"]) == 13


def test_a_package_that_does_not_import_fails_the_machine(quick: dict[str, dict[str, Any]]) -> None:
    quick["deepspeed"] = {"error": "ModuleNotFoundError: No module named 'deepspeed'"}
    assert status_of("deepspeed") == "fail"
    assert summary()["ok"] is False


def test_no_gpu_is_fine_unless_one_was_asked_for(quick: dict[str, dict[str, Any]]) -> None:
    assert status_of("CUDA") == "ok"
    assert status_of("CUDA", device="cuda") == "fail"
    assert summary("cuda")["ok"] is False


def test_attention_is_measured_only_where_a_gpu_is_used(quick: dict[str, dict[str, Any]]) -> None:
    quick["attention"] = {"error": "no operator"}
    assert status_of("attention") == "ok"
    quick["torch"] = dict(GPUS)
    assert status_of("attention") == "warn"
    assert status_of("attention", device="cpu") == "ok"


def test_a_compiler_is_optional_and_what_lacks_is_named() -> None:
    lacking = doctor.check_compiler(missing_for_compilation("cpu", {}, which=lambda name: None))
    assert lacking.status == "ok"
    assert "g++ or clang++" in lacking.detail
    there = doctor.check_compiler(missing_for_compilation("cpu", {}, which=lambda name: f"/usr/bin/{name}"))
    assert there.detail.startswith("there")


def test_a_compiler_that_group_norms_lack_on_a_gpu_is_a_warning_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "Python.h").touch()
    all_there: dict[str, Any] = {
        "which": lambda name: f"/usr/bin/{name}",
        "has_package": lambda name: name == "triton",
        "headers": str(tmp_path),
    }
    lacks: dict[str | None, dict[str, Any]] = {
        None: {"which": lambda name: None if "++" in name else f"/usr/bin/{name}"},
        "the package triton": {"has_package": lambda name: False},
        "a C compiler (gcc or clang)": {"which": lambda name: f"/usr/bin/{name}" if "++" in name else None},
        f"the headers of this Python ({tmp_path}/none/Python.h)": {"headers": str(tmp_path / "none")},
    }
    for missing, changes in lacks.items():
        norms = missing_for_triton({}, **{**all_there, **changes})
        compiled = missing_for_compilation("cuda", {}, **{**all_there, **changes})
        assert norms == missing
        assert compiled == (missing or "a C++ compiler (g++ or clang++)")
        check = doctor.check_compiler(compiled, norms=norms)
        assert check.status == ("ok" if missing is None else "warn")
        assert ("NHWC" in check.detail) is (missing is not None)
        assert f"not possible without {compiled}" in check.detail
    elsewhere = {**all_there, "headers": str(tmp_path / "none")}
    for variable in ("CPATH", "C_INCLUDE_PATH"):  # as environment modules of clusters set them
        assert missing_for_triton({variable: f"/nowhere:{tmp_path}"}, **elsewhere) is None
    assert missing_for_triton({"CC": "mycc"}, **{**all_there, "which": lambda name: None}) == "a C compiler (mycc)"


def test_gpus_are_counted_by_name() -> None:
    check = doctor.check_cuda(GPUS, wanted="auto", driver="580.95.05")
    assert (check.status, check.detail) == ("ok", "13.0: 2 x H100, bf16")
    assert doctor.check_cuda({**GPUS, "bf16": False}, wanted="auto", driver="580.95.05").status == "warn"


CPU_BUILD, CUDA_13, CUDA_12 = TORCH, {**TORCH, "cuda": "13.0"}, {**TORCH, "cuda": "12.8"}


@pytest.mark.parametrize(
    ("facts", "driver", "detail", "hint"),
    [
        (CPU_BUILD, "580.95.05", "driver 580.95.05; torch is a CPU build", "make install-gpu"),
        (CPU_BUILD, None, "no NVIDIA driver; torch is a CPU build", "make install-gpu"),
        (
            CUDA_13,
            "535.104.05",
            "driver 535.104.05 is too old: torch for CUDA 13.0 needs 580",
            "update the driver, or make install-gpu ATTENTION=xformers (525 or newer)",
        ),
        (CUDA_12, "470.1", "driver 470.1 is too old: torch for CUDA 12.8 needs 525", "update the driver"),
        (CUDA_13, "580.95.05", "driver 580.95.05; torch sees no device", "CUDA_VISIBLE_DEVICES"),
        (CUDA_12, "535.104.05", "driver 535.104.05; torch sees no device", "CUDA_VISIBLE_DEVICES"),
        (CUDA_13, None, "no NVIDIA driver; torch sees no device", "nvidia-smi"),
    ],
)
def test_why_no_gpu_is_seen(facts: dict[str, Any], driver: str | None, detail: str, hint: str) -> None:
    check = doctor.check_cuda(facts, wanted="cuda", driver=driver)
    assert (check.status, check.detail) == ("fail", detail)
    assert hint in check.hint
    assert doctor.check_cuda(facts, wanted="auto", driver=driver).status == ("warn" if driver else "ok")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95  Release Build  (dvs@host)\n", "580.95"),
        ("something else", "0"),
    ],
)
def test_the_version_of_the_driver(tmp_path: Path, text: str, version: str) -> None:
    assert doctor.driver_version(tmp_path / "version") is None
    (tmp_path / "version").write_text(text)
    assert doctor.driver_version(tmp_path / "version") == version


BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("major", "minor", "built", "runs"),
    [
        (7, 0, BUILT, False),  # V100
        (7, 5, BUILT, True),
        (8, 9, BUILT, True),  # binaries of sm_86 run
        (9, 0, BUILT, True),
        (11, 0, BUILT, False),
        (12, 1, BUILT, True),
        (7, 0, ["sm_70", *BUILT], True),
        (11, 0, [*BUILT, "compute_100"], True),
        (9, 0, ["sm_90a"], True),
    ],
)
def test_a_gpu_without_kernels_is_recognised(major: int, minor: int, built: list[str], runs: bool) -> None:
    assert doctor.has_kernels(major, minor, built) == runs
    facts = {**GPUS, "devices": ["H100", "Odd"], "capabilities": [[9, 0], [major, minor]], "architectures": built}
    check = doctor.check_cuda(facts, wanted="auto", driver="580.95.05")
    assert check.status == ("ok" if runs else "fail")
    if not runs:
        assert f"Odd is sm_{major}{minor}; this torch has kernels for sm_75" in check.detail
        assert "ATTENTION=xformers" in check.hint


def test_an_xformers_that_does_not_fit_torch_is_named_with_or_without_a_gpu() -> None:
    misfit = "its operators are built for CUDA 12.8, torch 2.13.0 for CUDA 13.0"
    packages = {"version": "0.42.1", "xformers": "0.0.35", "misfit": misfit}
    for facts in (None, {"ms": {"sdpa": 0.4}, "obstacles": {"xformers": misfit}}):
        check = doctor.check_attention(packages, facts)
        assert check.status == "warn"
        assert check.detail == f"xformers 0.0.35 cannot be used: {misfit}"
        assert "make install-gpu ATTENTION=xformers" in check.hint


def test_kernels_are_listed_with_their_times_and_obstacles() -> None:
    facts = {"ms": {"sdpa": 0.42, "cudnn": 0.38}, "obstacles": {"xformers": "not installed"}}
    check = doctor.check_attention({"xformers": None, "misfit": None}, facts)
    assert (check.status, check.detail) == ("ok", "cudnn 0.38 ms, sdpa 0.42 ms; xformers: not installed")
    assert doctor.check_attention({}, {"ms": {}, "obstacles": {"sdpa": "no kernel"}}).status == "warn"


@pytest.mark.parametrize(("version", "status"), [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 13, 1), "ok")])
def test_old_pythons_fail(version: tuple[int, ...], status: str) -> None:
    assert doctor.check_python(version).status == status


@pytest.mark.parametrize(
    ("version", "status"),
    [("2.9.1", "warn"), ("2.10.0+cu128", "ok"), ("2.11.0", "ok"), ("3.0", "ok"), ("nightly", "warn")],
)
def test_an_old_torch_is_a_warning(version: str, status: str) -> None:
    assert doctor.check_package("torch", {"version": version}).status == status


def test_slurm_is_all_or_nothing() -> None:
    nothing: dict[str, tuple[str, bool] | None] = dict.fromkeys(doctor.SLURM_PROGRAMS)
    works = "slurm 22.05", True
    assert doctor.check_slurm(nothing).status == "ok"
    half = doctor.check_slurm({**nothing, "srun": works})
    assert half.status == "warn"
    assert "sbatch" in half.detail
    whole = dict.fromkeys(doctor.SLURM_PROGRAMS, works)
    assert doctor.check_slurm(whole).status == "ok"
    assert doctor.check_slurm(whole, controller=("Slurmctld(primary) at head is UP", True)).status == "ok"
    for down in (("Slurmctld(primary) at head is DOWN", True), ("does not answer", False), ("is UP", False)):
        found = doctor.check_slurm(whole, controller=down)
        assert found.status == "warn"
        assert down[0] in found.detail
    broken = doctor.check_slurm({**whole, "sbatch": ("sbatch: fatal: no slurm.conf", False)})
    assert broken.status == "warn"
    assert "no slurm.conf" in broken.detail
    assert "sbatch --version" in broken.hint


def test_credentials_are_reported_without_their_values() -> None:
    environment = {"AWS_ACCESS_KEY_ID": "AKIAVALUE", "AWS_SECRET_ACCESS_KEY": "s3cr3t", "AWS_PROFILE": "clinic"}
    check = doctor.check_s3(environment, credentials_file=True)
    assert check.detail == "credentials present (environment, profile, credentials file)"
    assert not any(value in str(check) for value in environment.values())


def test_half_a_key_pair_is_a_warning() -> None:
    assert doctor.check_s3({"AWS_ACCESS_KEY_ID": "x"}, credentials_file=False).status == "warn"
    assert doctor.check_s3({}, credentials_file=False).status == "ok"


@pytest.mark.parametrize(("gib", "status"), [(0.5, "fail"), (5, "warn"), (50, "ok")])
def test_the_fullest_disk_decides(gib: float, status: str) -> None:
    assert doctor.check_disk({"/a": 100 * doctor.GIB, "/b": int(gib * doctor.GIB)}).status == status


@pytest.mark.parametrize(("gib", "status"), [(1, "fail"), (4, "warn"), (8, "ok")])
def test_little_memory_is_reported(gib: int, status: str) -> None:
    assert doctor.check_memory(gib * doctor.GIB).status == status


def test_a_stale_lock_is_found_and_a_fresh_one_is_a_running_build(tmp_path: Path) -> None:
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    now = time.time()
    fresh = doctor.check_jit_locks(doctor.find_jit_locks(tmp_path, now=now))
    assert fresh.status == "ok"
    os.utime(lock, (now - 3600, now - 3600))
    stale = doctor.check_jit_locks(doctor.find_jit_locks(tmp_path, now=now))
    assert stale.status == "warn"
    assert str(lock) in stale.detail
    assert doctor.check_jit_locks(doctor.find_jit_locks(tmp_path / "none", now=now)).detail == "none"


def test_a_probe_survives_crashes_hangs_and_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = dict(os.environ)
    assert doctor.probe("print('noise'); facts = {'version': '1'}", environment=environment) == {"version": "1"}
    assert "no_such_module" in doctor.probe("import no_such_module", environment=environment)["error"]
    assert "exit code -6" in doctor.probe("import os; os.abort()", environment=environment)["error"]
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT_S", 0.5)
    assert "no answer" in doctor.probe("import time; time.sleep(30)", environment=environment)["error"]


def test_a_program_is_asked_for_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.ask_version("no-such-program-here") is None
    version = f"Python {sys.version.split()[0]}"
    assert doctor.ask_version(sys.executable) == (version, True)
    broken = tmp_path / "sbatch"
    broken.write_text("#!/bin/sh\necho 'sbatch: fatal: no slurm.conf' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert doctor.ask_version("sbatch") == ("sbatch: fatal: no slurm.conf", False)


def test_a_controller_that_does_not_answer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "scontrol"
    program.write_text("#!/bin/sh\n[ \"$1\" = ping ] && { echo 'Slurmctld(primary) at head is DOWN'; exit 1; }\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert doctor.ask_version("scontrol", "ping") == ("Slurmctld(primary) at head is DOWN", False)


def test_a_probe_sees_the_installed_packages_and_not_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit('yaml.py of the working folder was imported')")
    monkeypatch.chdir(tmp_path)
    assert "error" not in doctor.probe("import yaml; facts = {'version': yaml.__version__}", environment=os.environ)


@pytest.mark.parametrize(
    ("statements", "error"),
    [
        ("import atexit; atexit.register(print, 'goodbye'); facts = {}", None),
        ("facts = {}; import sys; sys.stdout.buffer.write(b'\\xff\\n')", None),
        ("facts = {}; import atexit, os; atexit.register(os._exit, 3)", "ended with exit code 3"),
        ("import os; os._exit(0)", "ended with exit code 0"),
        ("raise ImportError('no libcudart')", "ImportError: no libcudart"),
    ],
)
def test_a_probe_counts_with_its_exit_code(statements: str, error: str | None) -> None:
    found = doctor.probe(statements, environment=os.environ)
    assert found == ({} if error is None else {"error": error})
