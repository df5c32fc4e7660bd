"""Policies for bad steps: a loss or gradient that is not finite, or a loss spike.

Pure decisions on figures that are the same on all ranks, so all ranks decide the same. Their history is part of a
checkpoint: a resumed run decides as an uninterrupted one.
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
        on_nonfinite: Policy for a loss or gradient that is not finite.
        on_spike: Policy for a loss spike; ``off`` does not check, which saves a collective per step.
        spike_factor: A loss above this multiple of the median of recent losses is a spike.
        spike_window_steps: Number of recent losses; there is no spike before half of them are known.
        max_rewinds: Rewinds to the same checkpoint before the run stops.
    """

    on_nonfinite: Policy
    on_spike: SpikePolicy
    spike_factor: float
    spike_window_steps: int
    max_rewinds: int


def is_spike(loss: float, recent: Sequence[float], settings: GuardSettings) -> bool:
    """Whether a loss is far above the recent ones.

    Args:
        loss: Mean over the global batch.
        recent: Losses of the last steps without a spike, oldest first.
        settings: Factor and window.
    """
    if len(recent) < max(2, settings.spike_window_steps // 2) or not math.isfinite(loss):
        return False
    return loss > settings.spike_factor * statistics.median(recent)


def remember(loss: float, recent: Sequence[float], settings: GuardSettings) -> list[float]:
    """Return the recent losses with a new one appended, at most as many as the window holds."""
    return [*recent, loss][-settings.spike_window_steps :] if math.isfinite(loss) else list(recent)


class Guard:
    """Applies the policies to the steps of one run.

    Args:
        settings: Policies.
        rewind: Loads weights, moments and averages of the newest checkpoint, returns its images; collective.
        warn: Shows a warning to the user.
    """

    def __init__(self, settings: GuardSettings, *, rewind: Callable[[], int], warn: Callable[[str], None]) -> None:
        self.settings = settings
        self._rewind = rewind
        self._warn = warn
        self._last_place = -1
        self._in_a_row = 0

    def apply(self, policy: str, key: str, fault: str, images_seen: int) -> int | None:
        """Apply a policy to a step in which ZeRO did not update the weights. Collective.

        A rewind does not change the position in the data: the images since the checkpoint are not read again, because
        the same weights with the same images would fail in the same step.

        Args:
            policy: What to do.
            key: Config key of the policy.
            fault: What is wrong with the step.
            images_seen: Images at the end of the step.

        Returns:
            Images of the checkpoint that was loaded; None if the step was only skipped.

        Raises:
            NumericalError: The policy is to stop, or there were too many rewinds to the same checkpoint.
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
            hint="the same command with a lower lr or more warmup_images resumes from the last checkpoint; if that one "
            "is spoilt too, move it away from checkpoints/, and the one before it is taken",
        )
