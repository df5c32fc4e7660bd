"""The records of a run: rows of metrics, and the ledger of its samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from synfundus.distributed.agreement import on_rank_0
from synfundus.distributed.engine import StepResult
from synfundus.distributed.world import World, torch_device
from synfundus.errors import DataError
from synfundus.shards.batches import Ledger, Quarantined, RankBatch
from synfundus.shards.loader import BatchLoader
from synfundus.telemetry.console import Console, Progress
from synfundus.training.periodic import TrainState
from synfundus.training.progress import Clock, Interval, Meter, StepCost, mean_waits_and_peak, peak_memory_bytes


@dataclass(frozen=True)
class Reports:
    """Where a run reports.

    Attributes:
        console: What the user sees.
        write_metrics: Takes a row of metrics; called on rank 0.
        write_ledger: Takes a row about quarantined samples or a finished epoch; called on rank 0.
        set_names: Names of the loader's sets in the ledger.
        cost: Cost of an image, for the figures that need it; only on rank 0, which writes them.
    """

    console: Console
    write_metrics: Callable[[Mapping[str, Any]], None]
    write_ledger: Callable[[Mapping[str, Any]], None]
    set_names: Sequence[str]
    cost: StepCost | None = None


class Recorder:
    """Accumulates the figures between two rows, and writes the rows.

    Args:
        reports: Where the rows go.
        loader: Source of the batches.
        state: State of the run; the recorder updates its counts of samples.
        budget_images: Images of the run.
        global_batch_size: Images per step.
        max_bad_fraction: Fraction of the samples that may be quarantined.
        world: The job.

    Attributes:
        sums: Figures of the forward passes since the last row.
        written_images: Images seen at the last row.
        clock: Clock of the interval since then.
    """

    def __init__(
        self,
        reports: Reports,
        *,
        loader: BatchLoader,
        state: TrainState,
        budget_images: int,
        global_batch_size: int,
        max_bad_fraction: float,
        world: World,
    ) -> None:
        self._reports = reports
        self._loader = loader
        self._state = state
        self._budget_images = budget_images
        self._global_batch_size = global_batch_size
        self._max_bad_fraction = max_bad_fraction
        self._world = world
        self._device = torch_device(world)
        self._ledger = Ledger(loader.set_sizes, reports.set_names)
        self._ledger.restore(state.open_epochs)
        self._meter = Meter(budget_images=budget_images, ranks=world.size, cost=reports.cost)
        self.sums = SumAccumulator()
        self._quarantined_here: list[Quarantined] = []
        self._tally_here: dict[tuple[int, int], tuple[int, int]] = {}
        self.start_clock()

    def start_clock(self) -> None:
        """Begin the interval of the next row."""
        self.written_images = self._state.images_seen
        self.clock = Clock(images_at_start=self.written_images, wait_at_start_s=self._loader.wait_s)

    def add_batch(self, batch: RankBatch) -> None:
        """Count the planned and the delivered samples of a batch."""
        for key, (planned, delivered) in batch.tally().items():
            before = self._tally_here.get(key, (0, 0))
            self._tally_here[key] = before[0] + planned, before[1] + delivered
        self._quarantined_here += batch.quarantined

    def write(self, step: StepResult | None, *, lr: float, bar: Progress) -> None:
        """Write a row of metrics, and the rows of the ledger since the last one. Collective.

        Args:
            step: The last step; None before the first.
            lr: Current learning rate.
            bar: Shows some of the figures.

        Raises:
            DataError: More samples were quarantined than allowed.
        """
        state = self._state
        figures = means(self.sums.reduce(self._world))
        interval = self._interval()
        ledger_rows = self._account()
        row = {
            "images_seen": state.images_seen,
            "step": state.images_seen // self._global_batch_size,
            **figures,
            "grad_norm": step.grad_norm if step else float("nan"),
            "lr": lr,
            **self._meter.figures(state.images_seen, interval),
            "quarantined_images": state.quarantined_images,
            "skipped_steps": state.skipped_steps,
            **({"rewinds": state.rewinds, "rewound_images": state.rewound_images} if state.rewinds else {}),
        }

        def write_rows() -> None:
            for ledger_row in ledger_rows:
                self._reports.write_ledger(ledger_row)
            self._reports.write_metrics(row)

        on_rank_0(write_rows, self._world)
        bar.advance(
            0,
            loss=f"{figures.get('loss', float('nan')):.4f}",
            speed=f"{row['images_per_s']:.0f} img/s",
            data_wait=f"{row['data_wait_percent']:.0f} %",
            **({"mfu": f"{row['mfu']:.0%}"} if "mfu" in row else {}),
        )
        self._check_quarantine()
        self.start_clock()

    def _interval(self) -> Interval:
        """Return the interval since the last row, over all ranks. Collective."""
        clock = self.clock
        elapsed = max(time.perf_counter() - clock.began, 1e-9)
        waited, stalled, peak = mean_waits_and_peak(
            self._world,
            waited_s=self._loader.wait_s - clock.wait_at_start_s,
            stalled_s=clock.stalled_s,
            peak_bytes=peak_memory_bytes(self._device),
        )
        images = self._state.images_seen - clock.images_at_start
        return Interval(images, elapsed, elapsed + clock.paused_s, waited, stalled, peak)

    def _account(self) -> list[dict[str, Any]]:
        """Count all ranks' samples since the last row, name the quarantined, return the ledger's rows. Collective."""
        state = self._state
        reports = self._world.all_gather((self._tally_here, self._quarantined_here))
        samples = sorted((sample for _, own in reports for sample in own), key=lambda sample: sample.position)
        self._tally_here, self._quarantined_here = {}, []
        state.quarantined_images += len(samples)
        self._ledger.add((tally for tally, _ in reports), samples)
        final = state.images_seen >= self._budget_images
        rows = self._ledger.rows(images_seen=state.images_seen, final=final)
        state.open_epochs = self._ledger.to_document()
        for sample in samples:
            self._reports.console.warning(f"quarantined {sample.place}: {sample.reason}")
        if not samples:
            return list(rows)
        quarantined = {
            "images_seen": state.images_seen,
            "planned": state.images_seen,
            "delivered": state.images_seen - state.quarantined_images,
            "quarantined": state.quarantined_images,
            "samples": [asdict(sample) for sample in samples],
        }
        return [quarantined, *rows]

    def _check_quarantine(self) -> None:
        state, limit = self._state, self._max_bad_fraction
        if state.quarantined_images > limit * max(state.images_seen, 1 / max(limit, 1e-12)):
            raise DataError(
                f"{state.quarantined_images} of {state.images_seen} samples had to be quarantined, more than "
                f"max_bad_fraction = {limit}",
                hint="ledger.jsonl lists them; write the damaged shards again",
            )


class SumAccumulator:
    """Accumulates named sums.

    Values may be tensors on a device: they are added there and fetched only by `reduce`.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}

    def add(self, sums: Mapping[str, Any]) -> None:
        """Add a step's sums."""
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def reduce(self, world: World) -> dict[str, float]:
        """Return the sums over all ranks and reset them. Collective; every rank must have added the same names."""
        names = sorted(self._sums)
        values = [float(self._sums[name]) for name in names]
        self._sums = {}
        return dict(zip(names, world.sum(values), strict=True)) if names else {}


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Turn sums into means.

    ``x`` is divided by ``images``; ``x_tN`` by ``images_tN`` (a timestep bucket), and omitted if the bucket is empty.
    """
    images = sums.get("images", 0.0)
    result = {}
    for name, value in sums.items():
        if name.startswith("images"):
            continue
        stem, _, bucket = name.rpartition("_t")
        count = sums.get(f"images_t{bucket}", 0.0) if stem and bucket.isdigit() else images
        if count > 0:
            result[name] = value / count
    return result
