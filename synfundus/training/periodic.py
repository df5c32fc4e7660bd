"""The state of a run, and its periodic work: checkpoints, validation, snapshots, previews."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Periodic:
    """Work at an interval of images, and optionally at the end.

    Attributes:
        name: Name, for messages of the watchdog.
        every_images: Interval; 0: never.
        action: The work, on every rank (may be collective). May raise `Interrupted`, on every rank; it is then done
            from its start when the run is resumed.
        done: Whether the result at this place exists; called on rank 0 after a resume. By default the work is done
            again.
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
    """The checkpoint, from which a run is resumed.

    A row of metrics is written before it, so that no sum is split by it. It is written even after a signal, and never
    owed.
    """


class Saver(Protocol):
    """Writes checkpoints, possibly in the background; see `training.checkpoints.writer`."""

    @property
    def failed(self) -> bool:
        """Whether a save of this rank has failed that was not raised yet."""

    def save(self, images_seen: int, state: Mapping[str, Any]) -> None:
        """Copy the current state and write it. Collective."""

    def wait(self) -> None:
        """Wait until everything is written, and raise errors. Collective."""

    def close(self) -> None:
        """Wait until everything is written or has failed."""


@dataclass(frozen=True)
class Work:
    """The work of a run beside its steps.

    Attributes:
        periodic: Periodic work in its order, with the checkpoint.
        saver: Writes checkpoints; also before a stop by a signal.
        rewind: Loads weights, optimizer moments and averages of the newest checkpoint, returns its images; collective.
    """

    periodic: Sequence[Periodic]
    saver: Saver
    rewind: Callable[[], int]


@dataclass
class TrainState:
    """The state of a run. Everything else follows from the config and `images_seen`.

    Attributes:
        images_seen: Images trained on, epochs included; quarantined slots count.
        quarantined_images: Slots without a sample so far, over all ranks.
        skipped_steps: Steps without an update, under the policy ``skip``.
        rewinds: Steps after which the newest checkpoint's weights were loaded, under the policy ``rewind``.
        rewound_images: Images whose training a rewind undid, its own step included; counted each time.
        recent_losses: Losses of the last steps, to detect spikes.
        open_epochs: Counts of the ledger for unfinished epochs.
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
        return {name: value for name, value in vars(self).items() if name != "images_seen"}
