"""What a trained module is like while its weights are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from fake_engine import ALONE
from torch import Tensor, nn

from synfundus.distributed.engine import ZeroEngine
from synfundus.errors import Interrupted
from synfundus.stages.run_weights import RunWeights
from synfundus.training.ema import ShardedEma


class Zero:
    """Notes what it was told to hold."""

    def __init__(self) -> None:
        self.held: list[str] = []

    def masters(self) -> list[str]:
        return ["the masters"]

    @contextmanager
    def holding(self, slices: Sequence[str]) -> Iterator[None]:
        self.held += slices
        yield


class Block(nn.Linear):
    """Not torch's own, which is never compiled by itself."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Average:
    partitions = ("the averages",)


def weights_of(module: nn.Module, zero: Zero) -> RunWeights:
    return RunWeights(module, zero=cast("ZeroEngine", zero), average=cast("ShardedEma", Average()), world=ALONE)


def test_a_module_is_judged_in_evaluation_mode_and_not_compiled_anew() -> None:
    compiled: list[int] = []

    def backend(graph: Any, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        del inputs
        compiled.append(1)
        return cast("Callable[..., Any]", graph.forward)

    module = nn.Sequential(Block(2, 2), nn.Dropout(0.5), nn.Dropout(0.5))
    module[0].compile(backend=backend)
    module[2].eval()
    zero, passes = Zero(), []
    with weights_of(module, zero).holding("averaged", lambda: passes.append(1)):
        assert not any(part.training for part in module.modules())
        assert torch.equal(module(torch.ones(3, 2)), module(torch.ones(3, 2)))
    assert (zero.held, len(passes), compiled) == (["the averages"], 2, [])
    assert [part.training for part in module] == [True, True, False]
    module(torch.ones(3, 2))
    assert (len(passes), len(compiled)) == (2, 1)


def test_an_interruption_leaves_the_module_as_it_was() -> None:
    module, zero = nn.Sequential(nn.Dropout()), Zero()

    def check() -> None:
        raise Interrupted("later")

    with pytest.raises(Interrupted), weights_of(module, zero).holding("raw", check):
        module(torch.ones(2))
    assert zero.held == ["the masters"]
    assert module.training
    module(torch.ones(2))
