"""The weights of a training run, to be judged and shown between two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from synfundus.distributed.agreement import share_out
from synfundus.distributed.engine import ZeroEngine
from synfundus.distributed.world import World
from synfundus.training.ema import ShardedEma

T = TypeVar("T")
U = TypeVar("U")
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
        self._world = world
        self._trained, self._zero, self._average = trained, zero, average

    def full(self, weights: Weights) -> dict[str, Tensor] | None:
        """Return all weights by name, fp32, on rank 0; None elsewhere. Collective."""
        return self._zero.gather_named(self._slices(weights))

    def share_out(
        self,
        units: Sequence[U],
        work: Callable[[Sequence[U]], Sequence[T]],
        *,
        weights: Weights,
        check: Callable[[], None],
    ) -> list[T]:
        """Let every rank do its share of some units with the trained module, as `agreement.share_out`. Collective.

        Meanwhile the module holds the given weights, in the precision of the run and in evaluation mode, and runs
        eagerly: for other shapes than a step's it would be compiled anew.

        Args:
            units: As there.
            work: As there.
            weights: Weights to hold.
            check: Called before every pass of the module; an `Interrupted` it raises reaches all ranks.
        """
        with self._zero.holding(self._slices(weights)), _evaluating(self._trained, check):
            return share_out(units, work, self._world)

    def _slices(self, weights: Weights) -> Sequence[Tensor]:
        return self._average.partitions if weights == "averaged" else self._zero.masters()


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
