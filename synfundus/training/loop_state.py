"""What the training loop is told, and where it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from synfundus.training.guards import GuardSettings


@dataclass
class TrainState:
    """Where a run is. Everything else follows from the config and `images_seen`.

    Attributes:
        images_seen: Images trained on, epochs included; quarantined slots count.
        quarantined_images: Slots without a sample so far, over all ranks.
        skipped_steps: Steps that were left out under the policy ``skip``.
        rewinds: Steps at which the weights of the newest checkpoint were put back, under the policy ``rewind``.
        rewound_images: Images whose training such a step undid, its own included; one undone twice counts twice.
        recent_losses: Losses of the last steps, where spikes are looked for.
        open_epochs: What the ledger has counted of the epochs that are not finished.
    """

    images_seen: int = 0
    quarantined_images: int = 0
    skipped_steps: int = 0
    rewinds: int = 0
    rewound_images: int = 0
    recent_losses: list[float] = field(default_factory=list)
    open_epochs: list[list[Any]] = field(default_factory=list)

    def to_document(self) -> dict[str, Any]:
        """Return the counters for a checkpoint."""
        return {
            "quarantined_images": self.quarantined_images,
            "skipped_steps": self.skipped_steps,
            "rewinds": self.rewinds,
            "rewound_images": self.rewound_images,
            "recent_losses": self.recent_losses,
            "open_epochs": self.open_epochs,
        }


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs; every value comes from the config."""

    seed: int
    budget_images: int
    global_batch_size: int
    gradient_accumulation_steps: int
    log_every_images: int
    guards: GuardSettings
    max_bad_fraction: float


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
        log_before: Write a row of metrics first, so that none is half-summed in a checkpoint. Such work is never left
            for later: it is the checkpoint.
    """

    name: str
    every_images: int
    action: Callable[[TrainState], None]
    done: Callable[[TrainState], bool] = lambda _: False
    at_end: bool = False
    log_before: bool = False

    def due(self, before: int, now: int, budget: int) -> bool:
        """Whether a boundary lies in (before, now]."""
        if now >= budget:
            return self.at_end
        return self.every_images > 0 and before // self.every_images < now // self.every_images


class Saver(Protocol):
    """Writes checkpoints, possibly behind the steps; see `training.checkpoint_writer`."""

    @property
    def failed(self) -> bool:
        """Whether a save of this rank has failed that nobody was told of."""

    def save(self, images_seen: int, state: Mapping[str, Any]) -> None:
        """Take the state as it is now and have it written. Collective."""

    def wait(self) -> None:
        """Wait until everything is written, and raise what went wrong. Collective."""

    def close(self) -> None:
        """Wait until everything is written or has failed."""


@dataclass
class Clock:
    """Time spent since the last line of metrics."""

    began: float = field(default_factory=time.perf_counter)
    images_at_start: int = 0
    wait_at_start_s: float = 0.0
    paused_s: float = 0.0
    stalled_s: float = 0.0

    def pause(self, seconds: float, *, saving: bool) -> None:
        """Leave out time that is not training time; what of it went into checkpoints is kept apart."""
        self.began += seconds
        self.paused_s += seconds
        self.stalled_s += seconds if saving else 0.0
