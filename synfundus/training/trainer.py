"""The training loop: when to step, log, save, look and stop. What a step computes is `training.step`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from synfundus.distributed.agreement import on_rank_0, raise_together
from synfundus.distributed.determinism import seed_kernels
from synfundus.distributed.engine import StepResult, ZeroEngine
from synfundus.distributed.watchdog import PHASE_PATIENCE, Watchdog
from synfundus.distributed.world import World, lost_rank_error, torch_device
from synfundus.errors import ConfigError, DataError, Interrupted, Preempted, SynfundusError
from synfundus.seeding import derive_key
from synfundus.shards.batches import RankBatch
from synfundus.shards.ledger import Ledger, Quarantined
from synfundus.shards.loader import BatchLoader
from synfundus.telemetry.console import Console, Progress
from synfundus.telemetry.metrics import SumAccumulator, means
from synfundus.training.ema import ShardedEma
from synfundus.training.guards import Guard, is_spike, remember
from synfundus.training.loop_state import Clock, LoopSettings, Periodic, Saver, TrainState
from synfundus.training.memory.rehearsal import is_out_of_memory
from synfundus.training.optim import LrPlan
from synfundus.training.progress import Interval, Meter, StepCost, mean_waits_and_peak, peak_memory_bytes
from synfundus.training.stopping import StopFlag, catch_signals

_LAST_SAVE_PATIENCE = 3
"""Times the watchdog's limit that a save may take which first waits for the one before it; each of the two has the
limit for itself as well."""


def _explained(error: RuntimeError, images_seen: int) -> SynfundusError | None:
    """Say what an error of torch means to the user; None where that is not known."""
    again = "the same command goes on from the last checkpoint"
    if lost := lost_rank_error(error, hint=again):
        return lost
    if is_out_of_memory(error):
        return ConfigError(
            f"memory ran out at {images_seen:,} images: {error}",
            where="micro_batch_size",
            hint="fewer images a forward pass (auto finds the number; the global batch stays), or "
            "gradient_checkpointing=true; in a preview, preview_every_images=0",
        )
    return None


class Trainer:
    """Trains until the budget is reached, a signal comes, or something is wrong.

    Args:
        engine: ZeRO-2 engine around a step module.
        loader: This rank's batches from the state's position on.
        ema: Averaged weights.
        lr: Learning-rate plan.
        settings: Loop settings.
        state: Place to start from.
        world: The job.
        console: What the user sees.
        write_metrics: Takes a row of metrics; called on rank 0.
        write_ledger: Takes a row about quarantined samples or a finished epoch; called on rank 0.
        set_names: What the ledger calls the sets the loader reads.
        periodic: What happens at intervals, in this order.
        saver: Writes checkpoints; asked for one before a stop by signal.
        watchdog: Ends the job when nothing moves; the caller lets it run.
        rewind: Puts the newest checkpoint's weights, moments and averages in place, returns its images; collective.
        flag: Says that a signal came; periodic work may look at it too.
        cost: What an image costs, for the figures that need it; rank 0 alone writes them.
    """

    def __init__(
        self,
        *,
        engine: ZeroEngine,
        loader: BatchLoader,
        ema: ShardedEma,
        lr: LrPlan,
        settings: LoopSettings,
        state: TrainState,
        world: World,
        console: Console,
        write_metrics: Callable[[Mapping[str, Any]], None],
        write_ledger: Callable[[Mapping[str, Any]], None],
        set_names: Sequence[str],
        periodic: Sequence[Periodic],
        saver: Saver,
        watchdog: Watchdog,
        rewind: Callable[[], int],
        flag: StopFlag,
        cost: StepCost | None = None,
    ) -> None:
        self._engine = engine
        self._loader = loader
        self._ema = ema
        self._lr = lr
        self._settings = settings
        self.state = state
        self._world = world
        self._console = console
        self._write_metrics = write_metrics
        self._write_ledger = write_ledger
        self._periodic = periodic
        self._saver = saver
        self._watchdog = watchdog
        self._flag = flag
        self._guard = Guard(settings.guards, rewind=rewind, warn=console.warning)
        self._logged_images = state.images_seen
        self._device = torch_device(world)
        self._sums = SumAccumulator()
        self._quarantined_here: list[Quarantined] = []
        self._tally_here: dict[tuple[int, int], tuple[int, int]] = {}
        self._ledger = Ledger(loader.set_sizes, set_names)
        self._ledger.restore(state.open_epochs)
        self._last_step: StepResult | None = None
        self._owed: set[str] = set()  # periodic work that is due here and not done
        self._clock = Clock()
        self._meter = Meter(budget_images=settings.budget_images, ranks=world.size, cost=cost)

    def fit(self) -> TrainState:
        """Run to the budget and return the final state. Collective.

        Raises:
            Preempted: A signal came; a checkpoint was written.
            NumericalError: A step is not sound, and the policy is to stop.
            DataError: More samples were quarantined than allowed.
            ConfigError: Memory ran out.
            LaunchError: Another rank has gone, or (Stalled) does not answer.
        """
        settings, state, flag = self._settings, self.state, self._flag
        self._clock = Clock(images_at_start=state.images_seen, wait_at_start_s=self._loader.wait_s)
        with (
            catch_signals(flag),
            self._console.progress(
                "training", total=settings.budget_images, unit="images", start=state.images_seen
            ) as bar,
        ):
            try:
                self._do(self._left())
                while (batch := self._next_batch(bar)) is not None:
                    before = state.images_seen
                    with self._expect_end("the step from {images:,} images, first sample {place}"):
                        self._step(batch)
                    if self._log_due(before):
                        with self._expect_end("the writing of metrics at {images:,} images"):
                            self._log(bar)
                    bar.advance(state.images_seen - before)
                    self._run_periodic(before)
                self._saver.wait()
            except RuntimeError as error:
                fault = _explained(error, state.images_seen)
                if fault is None:
                    raise
                raise fault from error
            finally:
                self._saver.close()
        return state

    def _expect_end(self, what: str, *, patience: int = 1) -> AbstractContextManager[None]:
        images, loader = self.state.images_seen, self._loader
        return self._watchdog.expect_end(
            lambda: what.format(images=images, place=loader.first_sample(images)), patience=patience
        )

    def _next_batch(self, bar: Progress) -> RankBatch | None:
        """Return this rank's part of the next global batch, None when there is none to come. Collective.

        Here all ranks learn of what any of them has met since the last time, before one of them computes.

        Raises:
            Preempted: A signal came to any rank; a checkpoint was written.
            SynfundusError: Any rank cannot read on, or a save has failed.
        """
        flag = self._flag
        batch: RankBatch | None = None
        fault: Exception | None = None
        if not self._at_end:
            try:
                with self._expect_end("the wait for the batch from {images:,} images on, first sample {place}"):
                    batch = self._loader.take(lambda: flag.raised)
            except Exception as error:  # noqa: BLE001 - raised below, on every rank
                fault = error
        with self._expect_end("the wait for the other ranks at {images:,} images"):
            stop, failed, faulty = self._world.sum([flag.raised, self._saver.failed, fault is not None])
        if faulty:
            raise_together(fault, self._world)
        if failed:
            self._saver.wait()
        if stop and not (self._at_end and not self._owed):  # at the very end there is nothing left to stop
            self._stop(bar)
        return batch

    def _log_due(self, before: int) -> bool:
        now, settings = self.state.images_seen, self._settings
        if now >= settings.budget_images or before // settings.log_every_images < now // settings.log_every_images:
            return True
        return any(job.log_before and job.due(before, now, settings.budget_images) for job in self._periodic)

    def _run_periodic(self, before: int) -> None:
        now, budget = self.state.images_seen, self._settings.budget_images
        self._do([job for job in self._periodic if job.due(before, now, budget)])

    def _left(self) -> list[Periodic]:
        """Return the work that is due where the run goes on from, and was not done. Collective."""
        now, settings = self.state.images_seen, self._settings
        before = now - settings.global_batch_size
        due = [job for job in self._periodic if now and job.due(before, now, settings.budget_images)]
        with self._watchdog.phase("the look for work that is left to do"):
            left = on_rank_0(lambda: [job.name for job in due if not job.done(self.state)], self._world)
        return [job for job in due if job.name in left and not job.log_before]

    def _do(self, jobs: Sequence[Periodic]) -> None:
        """Do periodic work, but for a checkpoint only until a signal comes; the rest is owed. Collective.

        Its time does not count as training time.
        """
        state = self.state
        self._owed = {job.name for job in jobs if not job.log_before}
        for job in jobs:
            began = time.perf_counter()
            what = f"{job.name}, which is done at {{images:,}} images"
            with self._expect_end(what, patience=PHASE_PATIENCE), suppress(Interrupted):
                if job.log_before:
                    job.action(state)
                elif not any(self._world.sum([self._flag.raised])):
                    job.action(state)
                    self._owed.remove(job.name)
            self._clock.pause(time.perf_counter() - began, saving=job.log_before)

    def _step(self, batch: RankBatch) -> None:
        """Train on one global batch."""
        settings, state = self._settings, self.state
        for key, (planned, delivered) in batch.tally().items():
            before = self._tally_here.get(key, (0, 0))
            self._tally_here[key] = before[0] + planned, before[1] + delivered
        after = state.images_seen + settings.global_batch_size
        lr = self._lr.at(after)
        result: StepResult | None = None
        # the only draw torch makes itself is dropout; keyed, so that a resumed run drops the same units
        seed_kernels(derive_key(settings.seed, "dropout", self._world.rank, after), device=self._device)
        spike = float("nan")
        micros = batch.split(settings.gradient_accumulation_steps)
        totals = [0.0, 0.0]
        for number, micro in enumerate(micros, start=1):
            loss, sums = self._engine.forward(self._to_device(micro), state.images_seen)
            if settings.guards.on_spike != "off":
                totals = [totals[0] + float(sums["loss"]), totals[1] + float(sums["images"])]
                if number == len(micros):
                    spike = self._spike(totals)
                    # ZeRO leaves the weights alone, on all ranks, when a gradient is not finite
                    loss = loss if math.isnan(spike) else loss * float("nan")
            self._engine.backward(loss)
            result = self._engine.step(lr=lr)
            self._sums.add(sums)
            self._quarantined_here += micro.quarantined
        if result is None:
            raise RuntimeError("the engine did not update the weights at the end of a global batch")
        state.images_seen = after
        self._last_step = result
        if not math.isnan(spike):
            self._leave_out(settings.guards.on_spike, "on_spike", f"a loss of {spike:.4g} is a spike")
        elif result.skipped or not math.isfinite(result.grad_norm):
            fault = f"the gradient is not finite (norm {result.grad_norm})"
            self._leave_out(settings.guards.on_nonfinite, "on_nonfinite", fault)
        else:
            self._ema.update(self._engine.masters(), batch_images=settings.global_batch_size, images_seen=after)

    def _spike(self, totals: Sequence[float]) -> float:
        """Return the loss of a global batch if it is a spike, nan if it is none. Collective.

        Args:
            totals: Sum of losses and number of images of this rank.
        """
        state, guards = self.state, self._settings.guards
        total, images = self._world.sum(totals)
        loss = total / max(images, 1.0)
        if is_spike(loss, state.recent_losses, guards):
            return loss
        state.recent_losses = remember(loss, state.recent_losses, guards)
        return float("nan")

    def _leave_out(self, policy: str, key: str, fault: str) -> None:
        """Apply a policy to the step just made. Collective."""
        if policy == "rewind":
            self._saver.wait()
        state = self.state
        place = self._guard.apply(policy, key, fault, state.images_seen)
        if place is None:
            state.skipped_steps += 1
        else:
            state.rewinds += 1
            state.rewound_images += state.images_seen - place

    def _to_device(self, batch: RankBatch) -> dict[str, Tensor]:
        arrays = {**batch.arrays, "weights": batch.weights}
        return {name: torch.from_numpy(array).to(self._device, non_blocking=True) for name, array in arrays.items()}

    def _log(self, bar: Progress) -> None:
        """Write a row of metrics. Collective."""
        settings, state, clock = self._settings, self.state, self._clock
        sums = self._sums.reduce(self._world)
        elapsed = max(time.perf_counter() - clock.began, 1e-9)
        waited, stalled, peak = mean_waits_and_peak(
            self._world,
            waited_s=self._loader.wait_s - clock.wait_at_start_s,
            stalled_s=clock.stalled_s,
            peak_bytes=peak_memory_bytes(self._device),
        )
        images = state.images_seen - clock.images_at_start
        interval = Interval(images, elapsed, elapsed + clock.paused_s, waited, stalled, peak)
        ledger_rows = self._account()
        values = means(sums)
        row = {
            "images_seen": state.images_seen,
            "step": state.images_seen // settings.global_batch_size,
            **values,
            "grad_norm": self._last_step.grad_norm if self._last_step else float("nan"),
            "lr": self._lr.at(state.images_seen),
            **self._meter.figures(state.images_seen, interval),
            "quarantined_images": state.quarantined_images,
            "skipped_steps": state.skipped_steps,
            **({"rewinds": state.rewinds, "rewound_images": state.rewound_images} if state.rewinds else {}),
        }
        on_rank_0(lambda: self._write_rows(row, ledger_rows), self._world)
        bar.advance(
            0,
            loss=f"{values.get('loss', float('nan')):.4f}",
            speed=f"{row['images_per_s']:.0f} img/s",
            data_wait=f"{row['data_wait_percent']:.0f} %",
            **({"mfu": f"{row['mfu']:.0%}"} if "mfu" in row else {}),
        )
        self._check_quarantine()
        self._logged_images = state.images_seen
        self._clock = Clock(images_at_start=state.images_seen, wait_at_start_s=self._loader.wait_s)

    def _write_rows(self, row: Mapping[str, Any], ledger_rows: Sequence[Mapping[str, Any]]) -> None:
        for ledger_row in ledger_rows:
            self._write_ledger(ledger_row)
        self._write_metrics(row)

    def _account(self) -> list[dict[str, Any]]:
        """Count what all ranks planned and delivered since the last row, name what none could use. Collective.

        Returns:
            Rows for the ledger.
        """
        state = self.state
        reports = self._world.all_gather((self._tally_here, self._quarantined_here))
        samples = sorted((sample for _, own in reports for sample in own), key=lambda sample: sample.position)
        self._tally_here, self._quarantined_here = {}, []
        state.quarantined_images += len(samples)
        self._ledger.add((tally for tally, _ in reports), samples)
        rows = self._ledger.rows(images_seen=state.images_seen, final=self._at_end)
        state.open_epochs = self._ledger.to_document()
        for sample in samples:
            self._console.warning(f"quarantined {sample.place}: {sample.reason}")
        return [self._quarantine_row(samples), *rows] if samples else list(rows)

    @property
    def _at_end(self) -> bool:
        return self.state.images_seen >= self._settings.budget_images

    def _quarantine_row(self, samples: Sequence[Quarantined]) -> dict[str, Any]:
        state = self.state
        return {
            "images_seen": state.images_seen,
            "planned": state.images_seen,
            "delivered": state.images_seen - state.quarantined_images,
            "quarantined": state.quarantined_images,
            "samples": [asdict(sample) for sample in samples],
        }

    def _check_quarantine(self) -> None:
        state, limit = self.state, self._settings.max_bad_fraction
        if state.quarantined_images > limit * max(state.images_seen, 1 / max(limit, 1e-12)):
            raise DataError(
                f"{state.quarantined_images} of {state.images_seen} samples had to be quarantined, more than "
                f"max_bad_fraction = {limit}",
                hint="the ledger names them; write the damaged shards again",
            )

    def _stop(self, bar: Progress) -> None:
        """Save and leave."""
        state = self.state
        with self._expect_end("the last save, at {images:,} images", patience=_LAST_SAVE_PATIENCE):
            if self._logged_images != state.images_seen:
                self._log(bar)
            self._saver.save(state.images_seen, state.to_document())
            self._saver.wait()
        raise Preempted(
            f"stopped by {' '.join(self._flag.names) or 'a signal to another rank'} at {state.images_seen} images; "
            "everything is saved",
            hint="start the same command again to go on",
        )
