"""What to make of a step that does not look sound: a value that is not finite, or a loss far above the others.

Pure decisions on figures that are the same on all ranks, so that all decide the same. Their memory is part of a
checkpoint: a resumed run decides as the one that was not stopped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from synfundus.errors import NumericalError

Policy = Literal["stop", "skip", "rewind"]
SpikePolicy = Literal["off", "stop", "skip", "rewind"]


@dataclass(frozen=True)
class GuardSettings:
    """Policies; every value comes from the config.

    Attributes:
        on_nonfinite: When a loss or gradient is not finite.
        on_spike: When a loss is a spike; ``off`` does not look, which saves a message a step.
        spike_factor: A loss is a spike above so many times the median of the last ones.
        spike_window_steps: How many last ones; none is called a spike before half of them are there.
        max_rewinds: Rewinds to one and the same checkpoint before the run stops.
    """

    on_nonfinite: Policy
    on_spike: SpikePolicy
    spike_factor: float
    spike_window_steps: int
    max_rewinds: int


def is_spike(loss: float, recent: Sequence[float], settings: GuardSettings) -> bool:
    """Whether a loss is far above the last ones.

    Args:
        loss: Mean over the global batch.
        recent: Losses of the last steps that were none, oldest first.
        settings: Factor and window.
    """
    if len(recent) < max(2, settings.spike_window_steps // 2) or not math.isfinite(loss):
        return False
    return loss > settings.spike_factor * statistics.median(recent)


def remember(loss: float, recent: Sequence[float], settings: GuardSettings) -> list[float]:
    """Return the losses of the last steps with another one, at most the window's number."""
    return [*recent, loss][-settings.spike_window_steps :] if math.isfinite(loss) else list(recent)


class Guard:
    """Applies the policies to the steps of one run.

    Args:
        settings: Policies.
        rewind: Puts weights, moments and averages of the newest checkpoint in place and returns its images;
            collective.
        warn: Takes a sentence for the user.
    """

    def __init__(self, settings: GuardSettings, *, rewind: Callable[[], int], warn: Callable[[str], None]) -> None:
        self.settings = settings
        self._rewind = rewind
        self._warn = warn
        self._last_place = -1
        self._in_a_row = 0

    def apply(self, policy: str, key: str, fault: str, images_seen: int) -> int | None:
        """Deal with a step whose weights ZeRO has left alone, on all ranks alike. Collective.

        After a rewind the position in the data stays: the images since the checkpoint are not read again, because with
        the same images the same weights would meet the same step.

        Args:
            policy: What to do.
            key: Config key it comes from.
            fault: What is wrong with the step.
            images_seen: Images at the step's end.

        Returns:
            Images of the checkpoint whose weights are back; None if the step was only left out.

        Raises:
            NumericalError: The policy is to stop, or there were too many rewinds to one checkpoint.
        """
        if policy == "skip":
            self._warn(f"step at {images_seen} images skipped: {fault}")
            return None
        if policy == "rewind":
            place = self._rewind()
            self._in_a_row = self._in_a_row + 1 if place == self._last_place else 1
            self._last_place = place
            if self._in_a_row <= self.settings.max_rewinds:
                self._warn(
                    f"step at {images_seen} images: {fault}; back to the weights of {place} images, "
                    f"{images_seen - place} images are left out"
                )
                return place
            fault = f"{fault}, after {self.settings.max_rewinds} rewinds to the checkpoint at {place} images"
        raise NumericalError(
            f"{fault} in the step that ends at {images_seen} images",
            where=f"{key} = {policy}",
            hint="lower lr or raise warmup_images; the same command resumes at the last checkpoint",
        )
