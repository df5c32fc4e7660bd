"""The weights of a training run, to be judged and shown between two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from synfundus.distributed.engine import ZeroEngine
from synfundus.distributed.world import World
from synfundus.training.ema import ShardedEma

Weights = Literal["averaged", "raw"]


class RunWeights:
    """The averaged and the raw weights.

    Args:
        trained: The trained module, which the engine's step module contains.
        zero: Its engine.
        average: Its averages.
        world: The job, in a process group that waits for ranks at work for any length of time.
    """

    def __init__(self, trained: nn.Module, *, zero: ZeroEngine, average: ShardedEma, world: World) -> None:
        self.world, self._trained, self._zero = world, trained, zero
        self._slices = {"averaged": lambda: average.partitions, "raw": zero.masters}

    def full(self, weights: Weights) -> dict[str, Tensor] | None:
        """Return all weights by name, fp32, on rank 0; None elsewhere. Collective."""
        return self._zero.gather_named(self._slices[weights]())

    @contextmanager
    def holding(self, weights: Weights, check: Callable[[], None]) -> Iterator[None]:
        """Let the trained module hold weights, in the precision of the run and in evaluation mode. Collective.

        Meanwhile it runs eagerly (for shapes that no step has it would be compiled anew), and ``check`` is called
        before each pass. What a rank raises in the block, all must raise.
        """
        with self._zero.holding(self._slices[weights]()), _evaluating(self._trained, check):
            yield


@contextmanager
def _evaluating(module: nn.Module, check: Callable[[], None]) -> Iterator[None]:
    """Put a module into evaluation mode, without the compiler, and call ``check`` before each of its passes."""
    modes = {part: part.training for part in module.modules()}
    compiled = any(part._compiled_call_impl is not None for part in modes)
    hook = module.register_forward_pre_hook(lambda *_: check())
    module.eval()
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        hook.remove()
        for part, mode in modes.items():
            part.training = mode
