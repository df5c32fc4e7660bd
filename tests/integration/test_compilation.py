"""Compiled blocks compute what the others compute, under ZeRO-2 and its bundles, and leave no trace in what is kept."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from rank_processes import clean_environment, run_cli
from tiny_runs import losses, relative_difference, settings, state_hashes, train_here
from tiny_sets import merged, tiny_config, write_config

from synfundus.distributed.engine import ZeroEngine
from synfundus.distributed.world import LocalWorld, World
from synfundus.errors import ConfigError
from synfundus.models.compilation import compile_blocks
from synfundus.models.compiler import missing_for_compilation
from synfundus.stages import training_setup
from synfundus.stages.trial_step import random_batch, training_step
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole

# what torch says to itself while it compiles, and outside of tests hides
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:The .grad attribute of a Tensor:UserWarning"
)
STEPS = 5
LAST = "images-000000000080"
SHAPE = (4, 8, 8)
CPU = torch.device("cpu")
UNET: dict[str, Any] = {"block_out_channels": [16], "attention_levels": [True], "dropout": 0.0}
SMALL = {"train": {"unet": UNET}}


def trained(world: World, *, backend: str | None, **loop: Any) -> tuple[list[float], ZeroEngine]:
    """Train a few steps; returns losses and the engine."""
    config = tiny_config({"train": {"unet": UNET, "loop": loop}})
    step = training_step(config.train, SHAPE, CPU, seed=config.seed)
    if config.train.loop.gradient_checkpointing:
        step.denoiser.unet.enable_gradient_checkpointing()
    if backend is not None:
        assert compile_blocks(step.denoiser, backend=backend) == 9
    batch = training_setup.batch_plan(config.train.loop, world.size)
    engine = training_setup.engine(
        step,
        step.denoiser,
        loop=config.train.loop,
        optim=config.train.optim,
        launch=config.launch,
        batch=batch,
        world=world,
    )
    found = []
    for _ in range(STEPS * batch.gradient_accumulation_steps):
        loss, _ = engine.forward(random_batch(config.train.diffusion, batch.micro_batch_size, SHAPE, CPU), 0)
        engine.backward(loss)
        engine.step(lr=1e-3)
        found.append(float(loss.detach()))
    return found, engine


@pytest.mark.parametrize("loop", [{}, {"micro_batch_size": 4}, {"gradient_checkpointing": True}], ids=str)
def test_blocks_traced_under_the_engine_train_alike(world: World, loop: dict[str, Any]) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    (eager, plain), (traced, engine) = (
        trained(world, backend=None, **loop),
        trained(world, backend="aot_eager", **loop),
    )
    assert relative_difference(eager, traced) < 1e-5
    assert eager[0] > eager[-1]
    stats = torch._dynamo.utils.counters["stats"]
    assert stats["unique_graphs"] > 0, "nothing was traced"
    assert not torch._dynamo.utils.counters["recompile_limit"]
    assert [group.parameters for group in plain.layout.groups] == [group.parameters for group in engine.layout.groups]


def test_compiling_changes_no_name_and_no_copy() -> None:
    denoiser = training_step(tiny_config(SMALL).train, SHAPE, CPU, seed=0).denoiser
    names = list(denoiser.state_dict())
    compile_blocks(denoiser, backend="eager")
    assert list(denoiser.state_dict()) == names
    assert not [name for name, _ in denoiser.named_modules() if "_orig_mod" in name]
    assert not [module for module in copy.deepcopy(denoiser).modules() if module._compiled_call_impl is not None]


def test_without_a_compiler_a_run_says_so_before_it_starts(
    latent_set: ShardSet, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"torch\.compile needs a C\+\+ compiler \(no-such-compiler\)"):
        train_here(latent_set, tmp_path / "run", world, compile=True)
    assert not (tmp_path / "run").exists(), "a start that is refused leaves no mark"


def test_what_a_gpu_needs_is_looked_for_too(tmp_path: Path) -> None:
    (tmp_path / "Python.h").touch()
    there: dict[str, Any] = {"which": lambda name: f"/usr/bin/{name}", "headers": str(tmp_path)}
    assert missing_for_compilation("cuda", {}, has_package=lambda name: False, **there) == "the package triton"
    assert missing_for_compilation("cuda", {}, has_package=lambda name: name == "triton", **there) is None


def test_a_run_that_does_not_compile_looks_for_no_compiler(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_setup, "require_compilation", lambda device: pytest.fail(f"looked at {device}"))
    training_setup.check_compilation(tiny_config().train.loop, world)
    denoiser = training_step(tiny_config(SMALL).train, SHAPE, CPU, seed=0).denoiser
    for compile_ in (False, "auto"):
        loop = tiny_config().train.loop.model_copy(update={"compile": compile_})
        training_setup.compiled(denoiser, loop, world, SilentConsole())
    assert not [module for module in denoiser.modules() if module._compiled_call_impl is not None]


@pytest.mark.parametrize("works", [True, False])
def test_auto_compiles_on_a_gpu_where_the_compiler_works_on_every_rank(
    works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def require(device: torch.device) -> None:
        assert device.type == "cuda"
        if not works:
            raise ConfigError("torch.compile needs a C++ compiler, which is not here")

    class Listening(SilentConsole):
        def message(self, text: str) -> None:
            said.append(text)

    said: list[str] = []
    monkeypatch.setattr(training_setup, "torch_device", lambda world: torch.device(world.device))
    monkeypatch.setattr(training_setup, "require_compilation", require)
    monkeypatch.setattr(training_setup, "compile_blocks", lambda network, backend: 9)
    loop = tiny_config().train.loop.model_copy(update={"compile": "auto"})
    world = LocalWorld(device="cuda")
    training_setup.check_compilation(loop, world)
    training_setup.compiled(torch.nn.Identity(), loop, world, Listening())
    assert said == [
        "9 blocks are compiled in the first step (compile=auto): minutes, once per machine"
        if works
        else "nothing is compiled (compile=auto): torch.compile needs a C++ compiler, which is not here"
    ]


def compiled_config(latent_set: ShardSet, run_dir: Path, *, dropout: float, compiled: bool) -> dict[str, Any]:
    loop = {"budget_images": 80, "checkpoint_every_images": 40, "validate_every_images": 0, "compile": compiled}
    return merged(settings(latent_set, run_dir, **loop), {"train": {"unet": {**UNET, "dropout": dropout}}})


@pytest.fixture
def _needs_a_compiler() -> None:
    if missing := missing_for_compilation("cpu", clean_environment()):
        pytest.skip(f"no {missing} here")


@pytest.mark.slow
@pytest.mark.usefixtures("_needs_a_compiler")
def test_a_compiled_run_trains_like_another_and_keeps_the_same_names(latent_set: ShardSet, tmp_path: Path) -> None:
    kept: list[tuple[list[str], Any]] = []
    for compiled in (False, True):
        run_dir = tmp_path / f"compiled-{compiled}"
        config = compiled_config(latent_set, run_dir, dropout=0.0, compiled=compiled)
        ended = run_cli("train", "--config", write_config(tmp_path / "run.yaml", config), timeout_s=900).check()
        assert ("9 blocks are compiled" in ended.output) is compiled
        checkpoint = run_dir / "checkpoints" / LAST
        names = sorted(safetensors.torch.load_file(checkpoint / "unet" / "diffusion_pytorch_model.safetensors"))
        kept.append((names, json.loads((checkpoint / "state.json").read_text())["layout"]))
    assert kept[0] == kept[1]
    assert relative_difference(*(losses(tmp_path / f"compiled-{compiled}") for compiled in (False, True))) < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("_needs_a_compiler")
def test_a_compiled_run_with_dropout_resumes_to_the_same_bits(latent_set: ShardSet, tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    for run_dir in (straight, resumed):
        if run_dir == resumed:
            shutil.copytree(straight, resumed)
            shutil.rmtree(resumed / "checkpoints" / LAST)
        config = compiled_config(latent_set, run_dir, dropout=0.2, compiled=True)
        ended = run_cli("train", "--config", write_config(tmp_path / "run.yaml", config), timeout_s=900).check()
        assert ("resumed at 40 images" in ended.output) is (run_dir == resumed)
    assert state_hashes(straight, LAST) == state_hashes(resumed, LAST)
