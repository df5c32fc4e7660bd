"""Speed and memory figures of a metrics row: rates, utilisation, waits, peak memory, remaining time.

Pure arithmetic except `mean_waits_and_peak`. An interval has two durations: training time, from which rates are
computed, and wall-clock time, which includes work between steps (checkpoints, validation, previews).
"""

from __future__ import annotations

import math
import resource
import sys
import time
from dataclasses import dataclass, field

import torch

from synfundus.distributed.world import World
from synfundus.models.attention import AttentionShape
from synfundus.training.memory.footprint import GIB

RATE_HALF_LIFE_S = 600.0
"""Half-life of the smoothed rate from which the remaining time is computed."""

CLOCK_FIGURES = (
    "images_per_s",
    "images_per_s_per_gpu",
    "tflops_per_s",
    "mfu",
    "hfu",
    "data_wait_percent",
    "checkpoint_stall_percent",
    "peak_memory_gib",
    "eta_s",
)
"""The figures that differ between two runs of the same command."""


@dataclass(frozen=True)
class StepCost:
    """Floating-point operations of training, and the peak rate of the GPU.

    Attributes:
        flops_per_image: Operations of an image's forward and backward pass, without recomputation.
        recomputed: The same with gradient checkpointing's recomputation, relative to `flops_per_image`; 1 without it.
        peak_flops: Operations a second of one GPU in the working precision; None if unknown.
        attention: The attention layers of the network.
    """

    flops_per_image: float
    recomputed: float
    peak_flops: float | None
    attention: tuple[AttentionShape, ...] = ()


@dataclass(frozen=True)
class Interval:
    """The interval between two rows, over all ranks.

    Attributes:
        images: Images trained on.
        training_s: Training time.
        wall_s: Wall-clock time.
        waited_s: Time the step waited for data, mean over ranks.
        stalled_s: Time the loop was held up by checkpoints, mean over ranks.
        peak_bytes: Peak memory since the process started, maximum over ranks.
    """

    images: int
    training_s: float
    wall_s: float
    waited_s: float
    stalled_s: float
    peak_bytes: int


def peak_memory_bytes(device: torch.device) -> int:
    """Return this process's peak memory: of tensors on its GPU, else of the host."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def mean_waits_and_peak(
    world: World, *, waited_s: float, stalled_s: float, peak_bytes: int
) -> tuple[float, float, int]:
    """Return the mean wait, the mean stall and the highest peak over the ranks. Collective."""
    ranks = world.all_gather((waited_s, stalled_s, peak_bytes))
    waits, stalls, peaks = zip(*ranks, strict=True)
    return math.fsum(waits) / len(waits), math.fsum(stalls) / len(stalls), max(peaks)


@dataclass
class Clock:
    """Time spent since the last row.

    Attributes:
        began: When the interval would have begun had all of it been training.
        images_at_start: Images seen at the last row.
        wait_at_start_s: Seconds waited for data up to there.
        paused_s: Time that was not training time.
        stalled_s: What of it went into checkpoints.
    """

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


class Meter:
    """Turns intervals into figures.

    Args:
        budget_images: Images of the run.
        ranks: Number of ranks.
        cost: Operations per image; None leaves out the figures that need it.
    """

    def __init__(self, *, budget_images: int, ranks: int, cost: StepCost | None) -> None:
        self._budget = budget_images
        self._ranks = ranks
        self._cost = cost
        self._images = self._seconds = 0.0

    def figures(self, images_seen: int, interval: Interval) -> dict[str, float]:
        """Return the figures of the row that ends an interval.

        Args:
            images_seen: Images at the row.
            interval: The interval before it.
        """
        rate = interval.images / max(interval.training_s, 1e-9)
        return {
            "budget_images": self._budget,
            "images_per_s": rate,
            "images_per_s_per_gpu": rate / self._ranks,
            **self._utilisation(rate),
            "data_wait_percent": 100.0 * interval.waited_s / max(interval.training_s, 1e-9),
            "checkpoint_stall_percent": 100.0 * interval.stalled_s / max(interval.wall_s, 1e-9),
            "peak_memory_gib": interval.peak_bytes / GIB,
            "eta_s": self._remaining_s(images_seen, interval),
        }

    def _utilisation(self, rate: float) -> dict[str, float]:
        """Return operations a second and, if the peak is known, their share of it (PaLM, arXiv 2204.02311, App. B)."""
        cost = self._cost
        if cost is None:
            return {}
        flops = cost.flops_per_image * rate
        figures = {"flops_per_image": cost.flops_per_image, "tflops_per_s": flops / 1e12}
        if cost.peak_flops is not None:
            figures["mfu"] = flops / (self._ranks * cost.peak_flops)
            if cost.recomputed > 1.0:
                figures["hfu"] = figures["mfu"] * cost.recomputed
        return figures

    def _remaining_s(self, images_seen: int, interval: Interval) -> float:
        """Return the seconds to the budget at the smoothed wall-clock rate, which includes checkpoints and previews."""
        keep = 0.5 ** (interval.wall_s / RATE_HALF_LIFE_S)
        self._images = keep * self._images + interval.images
        self._seconds = keep * self._seconds + interval.wall_s
        left = max(0, self._budget - images_seen)
        return left * self._seconds / self._images if self._images else math.nan
