"""The state of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
        return {
            "quarantined_images": self.quarantined_images,
            "skipped_steps": self.skipped_steps,
            "rewinds": self.rewinds,
            "rewound_images": self.rewound_images,
            "recent_losses": self.recent_losses,
            "open_epochs": self.open_epochs,
        }
