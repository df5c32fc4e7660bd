"""Between the start of a step and the engine's update the host reads no value off the device: it would wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import settings
from tiny_sets import tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

from synfundus.distributed.engine import ZeroEngine
from synfundus.distributed.world import World
from synfundus.stages.train import job as train
from synfundus.stages.train_vae import job as train_vae
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole
from synfundus.training.trainer import Trainer

LOOP = {"budget_images": 24, "checkpoint_every_images": 24, "validate_every_images": 0, "preview_every_images": 0}
READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.equal.default}


class Watch(TorchDispatchMode):
    """Counts operations whose result the host needs, while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.on = True
        self.operations = 0
        self.reads: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        self.operations += self.on
        if self.on and func in READS:
            self.reads.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """A watch over every step of a trainer, except what the engine does in its own step."""
    watch, step, update = Watch(), Trainer._step, ZeroEngine.step

    def watched(self: Trainer, *arguments: Any) -> None:
        with watch:
            step(self, *arguments)

    def unwatched(self: ZeroEngine, **named: Any) -> Any:
        watch.on = False
        try:
            return update(self, **named)
        finally:
            watch.on = True

    monkeypatch.setattr(Trainer, "_step", watched)
    monkeypatch.setattr(ZeroEngine, "step", unwatched)
    yield watch
    assert watch.operations > 300, "nothing was watched"


@pytest.mark.parametrize("loop", [{}, {"gradient_checkpointing": True}], ids=str)
def test_a_step_of_the_diffusion_training(
    watch: Watch, latent_set: ShardSet, world: World, tmp_path: Path, loop: Mapping[str, Any]
) -> None:
    train.run(tiny_config(settings(latent_set, tmp_path / "run", **{**LOOP, **loop})), world, SilentConsole())
    assert watch.reads == []


def test_a_step_of_the_autoencoder_training(watch: Watch, image_set: ShardSet, world: World, tmp_path: Path) -> None:
    loss = {"adversarial_weight": 0.1, "adversarial_start_images": 8}
    vae = {"data": image_set.url, "run_dir": str(tmp_path / "run"), "loop": LOOP, "loss": loss}
    train_vae.run(tiny_config({"train_vae": vae}), world, SilentConsole())
    assert watch.reads == []


@pytest.mark.parametrize("read", [torch.Tensor.item, bool, float])
def test_a_read_is_found(read: Callable[[torch.Tensor], Any]) -> None:
    with Watch() as watch:
        read(torch.ones(1))
    assert watch.reads
