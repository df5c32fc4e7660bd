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
from synfundus.models.compiler import missing_for_compilation
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
        "diffusers": {"version": "0.42.1"},
        "xformers": {"backend": "xformers", "reason": "probe passed"},
    }
    codes = {**doctor._PROBES, "xformers": doctor._XFORMERS_PROBE}

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


def test_xformers_is_probed_only_where_a_gpu_is_used(quick: dict[str, dict[str, Any]]) -> None:
    quick["xformers"] = {"error": "no operator"}
    assert status_of("xformers") == "ok"
    quick["torch"] = dict(GPUS)
    assert status_of("xformers") == "warn"
    assert status_of("xformers", device="cpu") == "ok"


def test_a_compiler_is_optional_and_what_lacks_is_named() -> None:
    lacking = doctor.check_compiler(missing_for_compilation("cpu", {}, which=lambda name: None))
    assert lacking.status == "ok"
    assert "g++ or clang++" in lacking.detail
    there = doctor.check_compiler(missing_for_compilation("cpu", {}, which=lambda name: f"/usr/bin/{name}"))
    assert there.detail.startswith("there")


def test_gpus_are_counted_by_name() -> None:
    check = doctor.check_cuda(GPUS, wanted="auto", driver=True)
    assert (check.status, check.detail) == ("ok", "13.0: 2 x H100, bf16")
    assert doctor.check_cuda({**GPUS, "bf16": False}, wanted="auto", driver=True).status == "warn"


def test_a_driver_that_torch_does_not_use_is_a_warning() -> None:
    assert doctor.check_cuda(TORCH, wanted="auto", driver=True).status == "warn"


def test_a_missing_xformers_on_a_gpu_names_the_extra() -> None:
    check = doctor.check_xformers({"backend": "sdpa", "reason": "xformers is not installed"})
    assert check.status == "warn"
    assert "synfundus[gpu]" in check.hint


@pytest.mark.parametrize(("version", "status"), [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 13, 1), "ok")])
def test_old_pythons_fail(version: tuple[int, ...], status: str) -> None:
    assert doctor.check_python(version).status == status


@pytest.mark.parametrize(
    ("version", "status"), [("2.9.1", "warn"), ("2.11.0", "ok"), ("3.0", "ok"), ("nightly", "warn")]
)
def test_an_old_torch_is_a_warning(version: str, status: str) -> None:
    assert doctor.check_package("torch", {"version": version}).status == status


def test_slurm_is_all_or_nothing() -> None:
    nothing = dict.fromkeys(doctor.SLURM_PROGRAMS)
    assert doctor.check_slurm(nothing).status == "ok"
    half = doctor.check_slurm({**nothing, "srun": "slurm 22.05"})
    assert half.status == "warn"
    assert "sbatch" in half.detail
    assert doctor.check_slurm(dict.fromkeys(doctor.SLURM_PROGRAMS, "slurm 22.05")).status == "ok"


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


def test_programs_that_are_not_there_have_no_version() -> None:
    assert doctor.program_version("no-such-program-here") is None
    assert doctor.program_version(sys.executable) == f"Python {sys.version.split()[0]}"
