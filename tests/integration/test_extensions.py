"""Nothing is compiled for a run: not for states in host memory, and not past the locks of builds that died."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import engine_probe
import numpy as np
import pytest
import torch
from rank_processes import clean_environment, run_processes
from tiny_sets import write_config

from synfundus.distributed.world import World
from synfundus.storage.manifest import ShardSet

OFFLOAD = "zero2_offload.json"
GIVE_UP_S = 180.0
EXTENSIONS = ("cpu_adam", "fused_adam", "pin_memory", "async_io", "deepspeed_ccl_comm", "deepspeed_shm_comm")
"""What deepspeed can build for a CPU, and would build the last of at its start; torch makes a folder of each name."""

WATCHED = """
import os, sys
from synfundus.cli.app import run_command
code = run_command(sys.argv[1:])
print("torch's compiler:", "torch._dynamo" in sys.modules, "torch._inductor.compile_fx" in sys.modules, flush=True)
os._exit(code)
"""
"""Trains, then says which parts of torch's compiler are loaded."""


@pytest.fixture
def extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for compiled extensions of its own."""
    folder = tmp_path / "extensions"
    folder.mkdir()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_states_in_host_memory_train_alike_on_a_cpu_and_compile_nothing(
    world: World, extensions: Path, precision: str
) -> None:
    engines = [
        engine_probe.build(engine_probe.Network(), world, precision=precision, micro=4, ds_file=name)
        for name in ("zero2_cpu.json", OFFLOAD)
    ]
    assert [engine.update_name for engine in engines] == ["fused AdamW", "fused AdamW"]
    seen = [
        [engine_probe.train_step(engine, world, step, micro=4) for step in range(engine_probe.STEPS)]
        for engine in engines
    ]
    # the norm of the gradient is summed up in another order, and clips
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-6)
    for one, other in zip(engines[0].masters(), engines[1].masters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert engines[1].optimizer_steps() == engine_probe.STEPS
    assert list(extensions.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_states_of_a_gpu_run_in_host_memory_are_updated_there(latent_set: ShardSet, tmp_path: Path) -> None:
    changes = {
        "train": {
            "latents": latent_set.url,
            "run_dir": str(tmp_path / "run"),
            "loop": {"budget_images": 32, "validate_every_images": 0, "validation_images": 4},
        },
        "launch": {"device": "cuda", "ds_config": OFFLOAD},
    }
    config = str(write_config(tmp_path / "run.yaml", changes))
    command = [sys.executable, "-m", "synfundus", "train", "--config", config]
    environment = clean_environment({"TORCH_EXTENSIONS_DIR": str(tmp_path)})
    (ended,) = run_processes([command], [environment], timeout_s=GIVE_UP_S)
    assert "fused AdamW in host memory" in ended.check().output


@pytest.mark.parametrize("ds_config", [pytest.param("zero2_cpu.json", marks=pytest.mark.slow), OFFLOAD])
def test_locks_of_builds_that_died_do_not_hold_a_run_on_a_cpu(
    latent_set: ShardSet, tmp_path: Path, extensions: Path, ds_config: str
) -> None:
    for name in EXTENSIONS:
        (extensions / name).mkdir()
        (extensions / name / "lock").touch()
        os.utime(extensions / name / "lock", (0, 0))
    changes = {
        "train": {
            "latents": latent_set.url,
            "run_dir": str(tmp_path / "run"),
            "loop": {"budget_images": 16, "validate_every_images": 0, "validation_images": 4},
        },
        "launch": {"ds_config": ds_config},
    }
    config = str(write_config(tmp_path / "run.yaml", changes))
    command = [sys.executable, "-c", WATCHED, "train", "--config", config]
    (ended,) = run_processes([command], [clean_environment()], timeout_s=GIVE_UP_S)
    assert "trained on 16 images" in ended.check().output
    assert "torch's compiler: True False" in ended.output, "diffusers brings dynamo; inductor takes seconds to load"
    assert "fused AdamW under DeepSpeedZeroOptimizer (ZeRO 2)" in ended.output
    built = [path.name for path in extensions.rglob("*") if path.is_file() and path.name != "lock"]
    assert built == []
