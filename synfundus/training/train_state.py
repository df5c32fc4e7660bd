"""Where a run is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
