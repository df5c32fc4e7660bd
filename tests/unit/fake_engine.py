"""Stand-ins for the engine and for ranks, so that the logic around them is tested without processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor

from synfundus.distributed.engine import StepResult, ZeroEngine
from synfundus.distributed.flat_layout import FlatLayout, gather_named
from synfundus.distributed.world import LocalWorld, World

T = TypeVar("T")


@dataclass
class Rendezvous:
    """Where the threads of a simulated job meet."""

    size: int
    slots: list[Any] = field(default_factory=list)
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.slots = [None] * self.size
        self.barrier = threading.Barrier(self.size, timeout=5)


@dataclass(frozen=True)
class ThreadWorld:
    """A rank that is a thread; its collectives are real."""

    rank: int
    size: int
    meet: Rendezvous
    local_rank: int = 0
    local_size: int = 1
    device: Literal["cpu", "cuda"] = "cpu"

    def barrier(self) -> None:
        self.meet.barrier.wait()

    def all_gather(self, value: T) -> list[T]:
        self.meet.slots[self.rank] = value
        self.meet.barrier.wait()
        values = list(self.meet.slots)
        self.meet.barrier.wait()
        return values

    def sum(self, values: Sequence[float]) -> list[float]:
        return [float(sum(column)) for column in zip(*self.all_gather(list(values)), strict=True)]

    def any(self, flag: bool) -> bool:
        return any(self.all_gather(flag))

    def gather(self, vector: Tensor) -> Tensor | None:
        vectors = self.all_gather(vector.clone())
        return torch.cat(vectors) if self.rank == 0 else None


def run_ranks(size: int, work: Callable[[World], T]) -> list[T | BaseException]:
    """Run a function on every rank of a simulated job; returns what each returned or raised."""
    meet = Rendezvous(size)
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadWorld(rank, size, meet))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "a rank hangs"
    return results


class FakeEngine:
    """Partitions of a network without the network; a step moves every weight by the learning rate."""

    def __init__(self, layout: FlatLayout, world: World, *, seed: int = 0) -> None:
        self.layout = layout
        self.world = world
        self.steps = 0
        self.norms: list[float] = []
        self.losses: list[float] = []
        self.loss_at: dict[int, float] = {}
        self.poisoned = False
        self.accumulation = 1
        self.micro_steps = 0
        self.rates: list[float] = []
        self.vectors = {
            name: [self._slice(group, f"{name}{seed}") for group in range(len(layout.groups))]
            for name in ("master", "exp_avg", "exp_avg_sq", "ema")
        }

    def _slice(self, number: int, purpose: str) -> Tensor:
        """Return this rank's part of a vector that is the same for every world size."""
        group = self.layout.groups[number]
        generator = torch.Generator().manual_seed(sum(purpose.encode()) * 1000 + number)
        flat = torch.randn(group.numel, generator=generator)
        result = torch.zeros(group.partition_size(self.world.size))
        first, end = group.partition_bounds(self.world.rank, self.world.size)
        result[: end - first] = flat[first:end]
        return result

    def masters(self) -> list[Tensor]:
        return self.vectors["master"]

    def moments(self) -> list[dict[str, Tensor]]:
        return [
            {"exp_avg": first, "exp_avg_sq": second}
            for first, second in zip(self.vectors["exp_avg"], self.vectors["exp_avg_sq"], strict=True)
        ]

    def optimizer_steps(self) -> int:
        return self.steps

    def load_partitions(
        self, masters: Sequence[Tensor], moments: Sequence[Mapping[str, Tensor]], *, optimizer_steps: int
    ) -> None:
        for number, (master, pair) in enumerate(zip(masters, moments, strict=True)):
            self.vectors["master"][number].copy_(master)
            for name in ("exp_avg", "exp_avg_sq"):
                self.vectors[name][number].copy_(pair[name])
        self.steps = optimizer_steps

    def gather_named(self, partitions: Sequence[Tensor]) -> dict[str, Tensor] | None:
        return gather_named(self.layout, [partition.clone() for partition in partitions], self.world)

    def forward(self, batch: Mapping[str, Tensor], images_seen: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch["weights"].sum()
        loss = torch.tensor(self.loss_at.get(images_seen, float(images_seen)))
        self.losses.append(float(loss))
        return loss, {"loss": loss * images, "images": images}

    def backward(self, loss: Tensor) -> None:
        self.micro_steps += 1
        self.poisoned = self.poisoned or bool(torch.isnan(loss))

    def step(self, *, lr: float) -> StepResult | None:
        if self.micro_steps % self.accumulation:
            return None
        self.rates.append(lr)
        norm = float("nan") if self.poisoned else self.norms.pop(0) if self.norms else 1.0
        self.poisoned = False
        skipped = norm != norm or norm == float("inf")
        if not skipped:
            self.steps += 1
            for master in self.vectors["master"]:
                master += lr
        return StepResult(norm, skipped)

    def as_engine(self) -> ZeroEngine:
        """Return it under the type the product asks for."""
        return cast(ZeroEngine, self)


ALONE: World = LocalWorld()
