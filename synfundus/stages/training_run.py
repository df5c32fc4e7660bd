"""A training run from its start to its export, for both trainings.

Each training supplies its own part: a `Training`. The common part is here: kernels, measurements at start, engine,
averages, resume, checkpoints, metrics, the loop, and the timeouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from synfundus.artifacts.ema_snapshots import has_snapshots, write_snapshot
from synfundus.artifacts.run_folder import RunFolder
from synfundus.config.auto import assumed_channels_last, definite_channels_last
from synfundus.config.diffusion import TrainConfig
from synfundus.config.machine import LaunchConfig, TelemetryConfig
from synfundus.config.training import LoopConfig, TrainVaeConfig
from synfundus.distributed.agreement import on_rank_0
from synfundus.distributed.watchdog import Watchdog
from synfundus.distributed.world import World, torch_device, without_timeout
from synfundus.shards.batches import BatchReader
from synfundus.stages import Summary, build, training_setup
from synfundus.stages.measured_start import Rehearsed, settle_attention, settle_loop
from synfundus.stages.reading import set_names, training_loader
from synfundus.stages.run_weights import RunWeights
from synfundus.storage import filesystem
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import Console, lost_messages
from synfundus.telemetry.sinks import MetricSinks
from synfundus.training.checkpoints.stored_weights import ModelPart
from synfundus.training.ema import Profile
from synfundus.training.periodic import Checkpoint, Periodic, Saver, TrainState, Work
from synfundus.training.profiling import StepProfiler
from synfundus.training.progress import StepCost
from synfundus.training.recorder import Reports
from synfundus.training.stopping import StopFlag
from synfundus.training.trainer import Trained, Trainer, Watch

T = TypeVar("T", bound=nn.Module)
Row = Mapping[str, float]


@dataclass(frozen=True)
class Shared:
    """The configuration of a training beside its own section.

    Attributes:
        seed: Seed of every random draw.
        launch: Processes.
        telemetry: Metrics.
        document: The whole configuration, as stored in the run.
    """

    seed: int
    launch: LaunchConfig
    telemetry: TelemetryConfig
    document: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The results of a run beside its weights.

    Attributes:
        state: Its final state.
        parameters: Number of trained parameters.
        engine: Name of the optimizer's engine.
        zero_stage: ZeRO stage.
        row: The last row of metrics; empty if this process trained nothing.
        judged: The last validation; empty if this process made none.
    """

    state: TrainState
    parameters: int
    engine: str
    zero_stage: int
    row: Row
    judged: Row


class Training(Protocol[T]):
    """The part of a run that differs between trainings.

    `judge`, `preview` and `export` are collective; what they return is then called on rank 0 alone, while the others
    wait.

    Attributes:
        name: Key of its section.
        section: Its options.
        shared: The other options.
        widths: Widths of the power-function averages.
        snapshot_every_images: Images between snapshots of those.
        directory: The run.
        sets: The sets it reads.
        trained: The module to train; the names of its parameters go into checkpoints.
        backbone: The diffusers network in it, whose kernels are chosen.
        figure: A metric that every validation writes.
        judge_at_end: Validate also when the budget is reached.
        preview_at_end: Draw a preview also when the budget is reached.
    """

    name: str
    section: TrainConfig | TrainVaeConfig
    shared: Shared
    widths: Sequence[float]
    snapshot_every_images: int
    directory: RunFolder
    sets: Sequence[ShardSet]
    trained: T
    backbone: nn.Module
    figure: str
    judge_at_end: bool
    preview_at_end: bool

    def cost(self) -> StepCost | None:
        """Return the cost of an image, on rank 0, else None. Called before kernels are chosen."""

    def step(self, trained: T, channels_last: bool) -> nn.Module:
        """Return the module that computes a loss and named sums from a batch.

        Args:
            trained: The module to train, or a copy of it.
            channels_last: Use NHWC memory.
        """

    def trial_batch(self, count: int) -> Mapping[str, Tensor]:
        """Return a random batch on the device, for the measurements at start."""

    def batches(self) -> BatchReader:
        """Return the reader of the training batches."""

    def parts(self) -> Sequence[ModelPart]:
        """Return the parts of the network with a folder for diffusers in checkpoints."""

    def judge(
        self, weights: RunWeights, *, loop: LoopConfig, images_seen: int, check: Callable[[], None]
    ) -> Callable[[], Row]:
        """Judge the averaged weights on held-out data; returns what gives the figures.

        Args:
            weights: The weights of the run.
            loop: The loop section, with the measurements at start.
            images_seen: Place in the run.
            check: Called between parts of the work; raises after a signal.
        """

    def preview(self, weights: RunWeights, *, images_seen: int, check: Callable[[], None]) -> Callable[[], bytes]:
        """Draw a preview; returns what gives the PNG. Arguments as in `judge`."""

    def export(self, weights: RunWeights, outcome: Outcome) -> Callable[[], Summary]:
        """Return what writes the averaged network for the next stage and gives the summary of the verb."""


class TrainingRun(Generic[T]):
    """Sets up a training and runs it.

    Collective; rank 0 exports.

    Args:
        training: The training.
        watchdog: Ends the job when it hangs; the caller starts and stops it.
        world: The job.
        console: What the user sees.

    Raises:
        ConfigError: A kernel is unusable, or not even one image fits.
    """

    def __init__(self, training: Training[T], *, watchdog: Watchdog, world: World, console: Console) -> None:
        section, shared = training.section, training.shared
        self._training, self._directory = training, training.directory
        self._watchdog, self._console, self._flag = watchdog, console, StopFlag(quiet=world.rank != 0)
        self._world, self._no_timeout = world, without_timeout(world)  # the second to validate and draw in
        self._cost = training.cost()
        training_setup.warn_of_long_run(self._cost, section.loop, world, console)
        self._choose_kernels()
        self._parameters = sum(one.numel() for one in training.trained.parameters() if one.requires_grad)
        self._loop = loop = settle_loop(
            section.loop,
            shared.launch,
            Rehearsed(training.trained, training.step, training.trial_batch, num_averages=1 + len(training.widths)),
            directory=self._directory,
            world=world,
            console=console,
            section=f"{training.name}.loop",
        )
        self._batch = training_setup.batch_plan(loop, world.size)
        self._zero = training_setup.engine(
            training.step(training.trained, definite_channels_last(loop)),
            training.trained,
            loop=loop,
            optim=section.optim,
            launch=shared.launch,
            batch=self._batch,
            world=world,
        )
        self._ema = training_setup.ema(section.ema, self._zero, sigma_rel=training.widths)
        self._weights = RunWeights(training.trained, zero=self._zero, average=self._ema, world=self._no_timeout)
        self._row: Row = {}
        self._judged: Row = {}

    def _choose_kernels(self) -> None:
        """Choose the kernels of the network. Collective."""
        backbone, loop = self._training.backbone, self._training.section.loop
        training_setup.arithmetic(loop, self._world, self._console)
        settle_attention(
            backbone,
            loop,
            self._training.shared.launch,
            () if self._cost is None else self._cost.attention,
            directory=self._directory,
            world=self._world,
            console=self._console,
        )
        if loop.gradient_checkpointing:
            backbone.enable_gradient_checkpointing()  # type: ignore[operator]
        if assumed_channels_last(loop):
            build.channels_last(
                backbone, dtype=build.torch_dtype(loop.precision), world=self._world, console=self._console
            )
        training_setup.compiled(backbone, loop, self._world, self._console)

    def run(self) -> Summary:
        """Resume, train, validate, export. Collective.

        Raises:
            SynfundusError: As `Trainer.fit`.
        """
        training, shared, watchdog = self._training, self._training.shared, self._watchdog
        self._report_start()
        with watchdog.phase("the reading of a checkpoint"):
            state = self._directory.resume(zero=self._zero, average=self._ema, console=self._console)
            training_setup.note_changes(
                self._directory, training.name, training.section, state.images_seen, self._world, self._console
            )
            saver = self._directory.saver(
                state,
                zero=self._zero,
                average=self._ema,
                keep=self._loop.keep_checkpoints,
                background_timeout_s=shared.launch.collective_timeout_s if self._loop.async_checkpoints else None,
                watchdog=watchdog,
                parts=training.parts(),
            )
            sinks = self._directory.sinks(
                resume_images=state.images_seen,
                tensorboard=shared.telemetry.tensorboard,
                wandb_project=shared.telemetry.wandb_project,
                wandb_labels=shared.telemetry.wandb_labels,
                console=self._console,
            )
            loader = training_loader(training.batches(), self._loop, self._world, start_images=state.images_seen)
        profiler = self._profiler(state)
        trainer = Trainer(
            Trained(self._zero, self._ema, training_setup.lr_plan(training.section.optim, self._loop)),
            loader,
            training_setup.loop_settings(self._loop, self._batch, seed=shared.seed),
            state,
            reports=self._reports(sinks),
            work=Work(
                [*profiler.jobs(), *self._periodic(saver, sinks)],
                saver,
                rewind=lambda: self._directory.rewind(zero=self._zero, average=self._ema, console=self._console),
            ),
            watch=Watch(watchdog, self._flag),
            world=self._world,
        )
        try:
            trainer.fit()
        finally:
            with watchdog.phase("the closing of the metrics"):
                profiler.close()
                loader.close()
                sinks.close()
        with watchdog.phase("the export"):
            return self._finish(state)

    def _reports(self, sinks: MetricSinks) -> Reports:
        def write(row: Row) -> None:
            self._row = row
            sinks.write(row)
            if lost := lost_messages():
                self._directory.append_ledger({"images_seen": row["images_seen"], "messages_lost": lost})

        return Reports(
            console=self._console,
            write_metrics=write,
            write_ledger=self._directory.append_ledger,
            set_names=set_names(self._training.sets),
            cost=self._cost,
        )

    def _profiler(self, state: TrainState) -> StepProfiler:
        return StepProfiler(
            self._loop.profile_steps,
            self._directory.path("profile"),
            state=state,
            global_batch_size=self._batch.global_batch_size,
            budget_images=self._loop.budget_images,
            rank=self._world.rank,
            device=torch_device(self._world),
            console=self._console,
        )

    def _report_start(self) -> None:
        """Show parameters, engine, precision and the split of the global batch."""
        zero, batch = self._zero, self._batch
        self._console.message(
            f"{self._parameters / 1e6:.1f} M parameters, {zero.update_name} under {zero.optimizer_name} "
            f"(ZeRO {zero.zero_stage}), {self._loop.precision} on {self._world.device}"
        )
        self._console.message(
            f"global batch {batch.global_batch_size} = {batch.world_size} ranks x "
            f"{batch.gradient_accumulation_steps} steps x {batch.micro_batch_size} images"
        )

    def _periodic(self, saver: Saver, sinks: MetricSinks) -> Sequence[Periodic]:
        """Return the periodic work, in its order."""
        training, loop, directory = self._training, self._loop, self._directory
        return [
            # before the checkpoint: a run resumed from it has the row and the snapshots up to it
            Periodic(
                "validation",
                loop.validate_every_images,
                lambda state: self._validate(state, sinks),
                done=lambda state: directory.has_judged(state.images_seen, training.figure),
                at_end=training.judge_at_end,
            ),
            Periodic(
                "snapshots",
                training.snapshot_every_images,
                self._snapshot,
                done=lambda state: has_snapshots(
                    directory.url, [Profile(state.images_seen, w) for w in training.widths]
                ),
                at_end=bool(training.widths),
            ),
            Checkpoint(
                "checkpoint",
                loop.checkpoint_every_images,
                lambda state: saver.save(state.images_seen, state.to_document()),
                at_end=True,
            ),
            Periodic(
                "preview",
                loop.preview_every_images,
                lambda state: self._preview(state, sinks),
                done=lambda state: filesystem.exists(self._preview_path(state)),
                at_end=training.preview_at_end,
            ),
        ]

    def _validate(self, state: TrainState, sinks: MetricSinks) -> None:
        """Judge the averaged weights and write the figures. Collective."""
        judged = self._training.judge(
            self._weights, loop=self._loop, images_seen=state.images_seen, check=self._flag.check
        )
        self._judged = on_rank_0(judged, self._no_timeout)
        on_rank_0(lambda: sinks.write({"images_seen": state.images_seen, **self._judged}), self._world)

    def _snapshot(self, state: TrainState) -> None:
        """Write snapshots of the power-function averages. Collective."""
        for width, slices in self._ema.power.items():
            profile = Profile(state.images_seen, width)
            write_snapshot(self._directory.url, self._zero.gather_named(slices), profile, self._world)

    def _preview_path(self, state: TrainState) -> str:
        return self._directory.path("previews", f"images-{state.images_seen:012d}.png")

    def _preview(self, state: TrainState, sinks: MetricSinks) -> None:
        """Draw a preview of the current weights. Collective."""
        picture = self._training.preview(self._weights, images_seen=state.images_seen, check=self._flag.check)

        def write() -> None:
            png = picture()
            filesystem.write_bytes(self._preview_path(state), png)
            sinks.picture(png, images_seen=state.images_seen)

        on_rank_0(write, self._no_timeout)

    def _finish(self, state: TrainState) -> Summary:
        """Export the averaged weights. Collective."""
        outcome = Outcome(
            state, self._parameters, self._zero.optimizer_name, self._zero.zero_stage, self._row, self._judged
        )
        return on_rank_0(self._training.export(self._weights, outcome), self._world)
