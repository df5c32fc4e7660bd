"""Run a command line that trains, and print what its GPU was asked for, step by step, as one line of JSON.

``python counted_training.py train --latents ...`` on the stand-in GPU, in one process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from conv_layouts import ConvLayouts
from torch import nn

from stand_in_gpu import MARK, counters
from synfundus.cli.app import run_command
from synfundus.distributed.engine import ZeroEngine
from synfundus.training.trainer import Trainer


@dataclass
class Step:
    """What one optimizer step asked for.

    Attributes:
        micro_batches: Staging, forward and backward pass of each micro-batch.
        update: The engine's update of the weights.
        after: What follows, weight averages mostly.
    """

    micro_batches: list[dict[str, int]] = field(default_factory=list)
    update: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)


class Count:
    """Counts the steps of a training between the calls that begin and end their parts."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.layouts: tuple[int, int] | None = None
        self._last = counters.read()

    def _since(self) -> dict[str, int]:
        before, self._last = self._last, counters.read()
        return counters.difference(before, self._last)

    def step(self, trainer: Trainer, *arguments: Any) -> None:
        """Take the place of `Trainer._step`."""
        self.steps.append(Step())
        self._since()
        with ExitStack() as stack:
            looked = None
            if self.layouts is None and not _is_compiled(trainer):  # hooks would make torch compile all blocks again
                looked = stack.enter_context(ConvLayouts(_network(trainer)))
            _step(trainer, *arguments)
        self.steps[-1].after = self._since()
        if looked is not None:
            self.layouts = looked.counted

    def update(self, engine: ZeroEngine, **named: Any) -> Any:
        """Take the place of `ZeroEngine.step`, which updates the weights after the last micro-batch only."""
        self.steps[-1].micro_batches.append(self._since())
        result = _update(engine, **named)
        self.steps[-1].update = self._since()
        return result

    def document(self) -> Mapping[str, Any]:
        """Return all that was counted."""
        return {"steps": [vars(step) for step in self.steps], "layouts": self.layouts}


def _network(trainer: Trainer) -> nn.Module:
    engine: ZeroEngine = trainer._engine
    return engine.module


def _is_compiled(trainer: Trainer) -> bool:
    return any(module._compiled_call_impl is not None for module in _network(trainer).modules())


_step, _update = Trainer._step, ZeroEngine.step

if __name__ == "__main__":
    count = Count()
    Trainer._step = lambda trainer, *arguments: count.step(trainer, *arguments)  # type: ignore[method-assign]
    ZeroEngine.step = lambda engine, **named: count.update(engine, **named)  # type: ignore[method-assign]
    code = run_command(sys.argv[1:])
    print(MARK + json.dumps(count.document()), flush=True)
    raise SystemExit(code)
