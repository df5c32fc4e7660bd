"""The training loop: when to step, log, save, validate and stop. What a step computes is `training.step`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

from synfundus.distributed.agreement import on_rank_0, raise_together
from synfundus.distributed.engine import StepResult, ZeroEngine
from synfundus.distributed.lost_ranks import lost_rank_error
from synfundus.distributed.numerics import seed_kernels
from synfundus.distributed.requeue import how_to_resume
from synfundus.distributed.watchdog import PHASE_PATIENCE, Watchdog
from synfundus.distributed.world import World, torch_device
from synfundus.errors import ConfigError, Interrupted, Preempted, SynfundusError
from synfundus.seeding import derive_key
from synfundus.shards.batches import RankBatch
from synfundus.shards.loader import BatchLoader
from synfundus.telemetry.console import Progress
from synfundus.training.ema import ShardedEma
from synfundus.training.guards import Guard, GuardSettings, is_spike, remember
from synfundus.training.memory.rehearsal import is_out_of_memory
from synfundus.training.optim import LrPlan
from synfundus.training.periodic import Checkpoint, Periodic, TrainState, Work
from synfundus.training.recorder import Recorder, Reports
from synfundus.training.staging import staging_for
from synfundus.training.stopping import StopFlag, catch_signals

_LAST_SAVE_PATIENCE = 3
"""Multiple of the watchdog's limit for a save that first waits for the one before it; each of the two also has the
limit for itself."""


def _explained(error: RuntimeError, images_seen: int) -> SynfundusError | None:
    """Translate an error of torch for the user; None where its meaning is unknown."""
    again = "run the same command again to resume from the last checkpoint"
    if lost := lost_rank_error(error, hint=again):
        return lost
    if is_out_of_memory(error):
        return ConfigError(
            f"memory ran out at {images_seen:,} images: {error}",
            where="micro_batch_size",
            hint="lower micro_batch_size (auto finds the largest; the global batch stays the same), or "
            "gradient_checkpointing=true; if it was a preview, preview_every_images=0",
        )
    return None


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the loop, from the config."""

    seed: int
    budget_images: int
    global_batch_size: int
    gradient_accumulation_steps: int
    log_every_images: int
    guards: GuardSettings
    max_bad_fraction: float


@dataclass(frozen=True)
class Trained:
    """What is trained.

    Attributes:
        engine: ZeRO-2 engine around a step module.
        ema: Averaged weights.
        lr: Learning-rate plan.
    """

    engine: ZeroEngine
    ema: ShardedEma
    lr: LrPlan


@dataclass(frozen=True)
class Watch:
    """What may end the run.

    Attributes:
        watchdog: Ends the job when it hangs; the caller starts and stops it.
        flag: Raised by a signal; periodic work may check it too.
    """

    watchdog: Watchdog
    flag: StopFlag


class Trainer:
    """Trains until the budget is reached, a signal arrives, or an error occurs.

    Args:
        trained: Engine, averages, learning rate.
        loader: This rank's batches from the state's position on.
        settings: Loop settings.
        state: Where to start.
        reports: Where progress is reported.
        work: Checkpoints and other periodic work.
        watch: What may end the run.
        world: The job.
    """

    def __init__(
        self,
        trained: Trained,
        loader: BatchLoader,
        settings: LoopSettings,
        state: TrainState,
        *,
        reports: Reports,
        work: Work,
        watch: Watch,
        world: World,
    ) -> None:
        self._engine, self._ema, self._lr = trained.engine, trained.ema, trained.lr
        self._loader = loader
        self._settings = settings
        self.state = state
        self._console = reports.console
        self._periodic, self._saver = work.periodic, work.saver
        self._watchdog, self._flag = watch.watchdog, watch.flag
        self._world = world
        self._device = torch_device(world)
        self._stage = staging_for(self._device)
        self._guard = Guard(settings.guards, rewind=work.rewind, warn=reports.console.warning)
        self._recorder = Recorder(
            reports,
            loader=loader,
            state=state,
            budget_images=settings.budget_images,
            global_batch_size=settings.global_batch_size,
            max_bad_fraction=settings.max_bad_fraction,
            world=world,
        )
        self._last_step: StepResult | None = None
        self._owed: set[str] = set()  # periodic work that is due here but not done

    def fit(self) -> TrainState:
        """Run to the budget and return the final state. Collective.

        Raises:
            Preempted: A signal arrived; a checkpoint was written.
            NumericalError: A step is not finite or a spike, and the policy is to stop.
            DataError: More samples were quarantined than allowed.
            ConfigError: Memory ran out.
            LaunchError: Another rank has ended, or (Stalled) does not respond.
        """
        state, batch_size = self.state, self._settings.global_batch_size
        total = max(-(-self._settings.budget_images // batch_size) * batch_size, state.images_seen)  # whole batches
        self._recorder.start_clock()
        with (
            catch_signals(self._flag),
            self._console.progress("training", total=total, unit="images", start=state.images_seen) as bar,
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

    def _next_batch(self, bar: Progress) -> RankBatch | None:
        """Return this rank's part of the next global batch, None at the end. Collective.

        Ranks exchange signals and errors here, before any of them computes.

        Raises:
            Preempted: A signal reached any rank; a checkpoint was written.
            SynfundusError: A rank cannot read further, or a save has failed.
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
        if stop and not (self._at_end and not self._owed):  # at the end there is nothing to stop
            self._stop(bar)
        return batch

    def _step(self, batch: RankBatch) -> None:
        """Train on one global batch."""
        settings, state = self._settings, self.state
        self._recorder.add_batch(batch)
        after = state.images_seen + settings.global_batch_size
        lr = self._lr.at(after)
        result: StepResult | None = None
        # the only draw of torch itself is dropout; keyed, so that a resumed run drops the same units
        seed_kernels(derive_key(settings.seed, "dropout", self._world.rank, after), device=self._device)
        spike = float("nan")
        micros = batch.split(settings.gradient_accumulation_steps)
        totals = [0.0, 0.0]
        for number, micro in enumerate(micros, start=1):
            loss, sums = self._engine.forward(
                self._stage({**micro.arrays, "weights": micro.weights}), state.images_seen
            )
            if settings.guards.on_spike != "off":
                totals = [totals[0] + float(sums["loss"]), totals[1] + float(sums["images"])]
                if number == len(micros):
                    spike = self._spike(totals)
                    # ZeRO skips the update, on all ranks, when a gradient is not finite
                    loss = loss if math.isnan(spike) else loss * float("nan")
            self._engine.backward(loss)
            result = self._engine.step(lr=lr)
            self._recorder.sums.add(sums)
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
        """Return the loss of a global batch if it is a spike, else nan. Collective.

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
        """Apply a policy to the last step. Collective."""
        if policy == "rewind":
            self._saver.wait()
        state = self.state
        place = self._guard.apply(policy, key, fault, state.images_seen)
        if place is None:
            state.skipped_steps += 1
        else:
            state.rewinds += 1
            state.rewound_images += state.images_seen - place

    def _log_due(self, before: int) -> bool:
        now, every, budget = self.state.images_seen, self._settings.log_every_images, self._settings.budget_images
        if now >= budget or before // every < now // every:
            return True
        return any(job.due(before, now, budget) for job in self._periodic if isinstance(job, Checkpoint))

    def _log(self, bar: Progress) -> None:
        """Write a row of metrics. Collective."""
        self._recorder.write(self._last_step, lr=self._lr.at(self.state.images_seen), bar=bar)

    def _run_periodic(self, before: int) -> None:
        now, budget = self.state.images_seen, self._settings.budget_images
        self._do([job for job in self._periodic if job.due(before, now, budget)])

    def _left(self) -> list[Periodic]:
        """Return the work that was due at the checkpoint the run resumes from, and not done. Collective."""
        now, settings = self.state.images_seen, self._settings
        before = now - settings.global_batch_size
        due = [job for job in self._periodic if now and job.due(before, now, settings.budget_images)]
        with self._watchdog.phase("the look for work that is left to do"):
            left = on_rank_0(lambda: [job.name for job in due if not job.done(self.state)], self._world)
        return [job for job in due if job.name in left and not isinstance(job, Checkpoint)]

    def _do(self, jobs: Sequence[Periodic]) -> None:
        """Do periodic work; after a signal only the checkpoint, and the rest is owed. Collective.

        Its time does not count as training time.
        """
        state = self.state
        self._owed = {job.name for job in jobs if not isinstance(job, Checkpoint)}
        for job in jobs:
            began, saving = time.perf_counter(), isinstance(job, Checkpoint)
            what = f"{job.name}, which is done at {{images:,}} images"
            with self._expect_end(what, patience=PHASE_PATIENCE), suppress(Interrupted):
                if saving or not any(self._world.sum([self._flag.raised])):
                    job.action(state)
                    self._owed.discard(job.name)
            self._recorder.clock.pause(time.perf_counter() - began, saving=saving)

    def _stop(self, bar: Progress) -> None:
        """Save and leave."""
        state = self.state
        with self._expect_end("the last save, at {images:,} images", patience=_LAST_SAVE_PATIENCE):
            if self._recorder.written_images != state.images_seen:
                self._log(bar)
            self._saver.save(state.images_seen, state.to_document())
            self._saver.wait()
        raise Preempted(
            f"stopped by {' '.join(self._flag.names) or 'a signal to another rank'} at {state.images_seen} images; "
            "everything is saved",
            hint=how_to_resume(),
        )

    @property
    def _at_end(self) -> bool:
        return self.state.images_seen >= self._settings.budget_images

    def _expect_end(self, what: str, *, patience: int = 1) -> AbstractContextManager[None]:
        images, loader = self.state.images_seen, self._loader
        return self._watchdog.expect_end(
            lambda: what.format(images=images, place=loader.first_sample(images)), patience=patience
        )
