"""What a run does beside its steps, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from synfundus.training.train_state import TrainState


@dataclass(frozen=True)
class Periodic:
    """Something done every so many images, and at the end if asked.

    Attributes:
        name: What it is called where it does not end.
        every_images: Interval; 0 never.
        action: What is done, on every rank (it may be collective). It may be left with `Interrupted`, on every rank,
            and is then done from its beginning when the run goes on.
        done: Whether its result at this place is there; asked on rank 0, where a run goes on from a checkpoint. Without
            an answer the work is done again.
        at_end: Also when the budget is reached.
    """

    name: str
    every_images: int
    action: Callable[[TrainState], None]
    done: Callable[[TrainState], bool] = lambda _: False
    at_end: bool = False

    def due(self, before: int, now: int, budget: int) -> bool:
        """Whether a boundary lies in (before, now]."""
        if now >= budget:
            return self.at_end
        return self.every_images > 0 and before // self.every_images < now // self.every_images


@dataclass(frozen=True)
class Checkpoint(Periodic):
    """The checkpoint: what a run goes on from.

    A row of metrics is written before it, so that none is half-summed in it. It is done also when a signal has come,
    and never left for later.
    """


class Saver(Protocol):
    """Writes checkpoints, possibly behind the steps; see `training.checkpoints.writer`."""

    @property
    def failed(self) -> bool:
        """Whether a save of this rank has failed that nobody was told of."""

    def save(self, images_seen: int, state: Mapping[str, Any]) -> None:
        """Take the state as it is now and have it written. Collective."""

    def wait(self) -> None:
        """Wait until everything is written, and raise what went wrong. Collective."""

    def close(self) -> None:
        """Wait until everything is written or has failed."""


@dataclass(frozen=True)
class Work:
    """What is done beside the steps.

    Attributes:
        periodic: What happens at intervals, in this order; the checkpoint is among it.
        saver: Writes checkpoints; asked for one before a stop by signal.
        rewind: Puts the newest checkpoint's weights, moments and averages in place, returns its images; collective.
    """

    periodic: Sequence[Periodic]
    saver: Saver
    rewind: Callable[[], int]
