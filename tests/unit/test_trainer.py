"""The loop: when it steps, logs, saves, stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_engine import ALONE, FakeEngine, run_ranks
from tiny_sets import flip_byte, write_numbered_set

from synfundus.distributed.flat_layout import FlatLayout
from synfundus.distributed.watchdog import Watchdog
from synfundus.distributed.world import LocalStatusStore, World
from synfundus.errors import DataError, NumericalError, Preempted, StorageError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.processes.stop_signals import STOP_SIGNALS
from synfundus.shards.batches import BatchReader, RankBatch
from synfundus.shards.loader import BatchLoader, Prefetch, RankSteps
from synfundus.shards.reader import ShardSetReader
from synfundus.shards.shard_plan import MixedPlan, ReadingPlan
from synfundus.shards.source import DecodedSource, LatentDecoder
from synfundus.storage.manifest import ShardSet
from synfundus.telemetry.console import SilentConsole
from synfundus.training import trainer as trainer_module
from synfundus.training.ema import ShardedEma
from synfundus.training.guards import GuardSettings
from synfundus.training.optim import LrPlan
from synfundus.training.periodic import Checkpoint, Periodic, TrainState, Work
from synfundus.training.recorder import Reports
from synfundus.training.stopping import StopFlag
from synfundus.training.trainer import LoopSettings, Trained, Trainer, Watch

LAYOUT = FlatLayout.of([[("w", (3,))]])
BATCH = 8
GUARDS: dict[str, Any] = {
    "on_nonfinite": "stop",
    "on_spike": "off",
    "spike_factor": 3.0,
    "spike_window_steps": 4,
    "max_rewinds": 2,
}


class Talk(SilentConsole):
    """Remembers warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


class Saves:
    """Remembers where a checkpoint was asked for; fails where it is told to."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.failure: Exception | None = None
        self.waits = 0
        self.closed = False

    @property
    def failed(self) -> bool:
        return self.failure is not None

    def fail(self, error: Exception) -> None:
        self.failure = error

    def save(self, images_seen: int, state: Mapping[str, Any]) -> None:
        self.places.append(images_seen)

    def wait(self) -> None:
        self.waits += 1
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        self.closed = True


class Run:
    """A trainer around a fake engine, and what it did."""

    def __init__(
        self,
        shard_set: ShardSet,
        *,
        world: World = ALONE,
        state: TrainState | None = None,
        periodic: Sequence[tuple[str, int, dict[str, bool]]] = (),
        there: Sequence[tuple[str, int]] = (),
        accumulation: int = 1,
        **settings: Any,
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self.ledger: list[dict[str, Any]] = []
        self.done: list[tuple[str, int]] = []
        self.saves = Saves()
        self.documents: list[dict[str, Any]] = []
        self.rewound: list[int] = []
        self.talk = Talk()
        self.flag = StopFlag()
        self.engine = FakeEngine(LAYOUT, world)
        self.engine.accumulation = accumulation
        self.state = state or TrainState()
        self.ema = ShardedEma(self.engine.masters(), half_life_images=50, rampup_ratio=10)
        decode = LatentDecoder(schema=DEFAULT_LABEL_SCHEMA, moments_shape=(4, 2, 2), with_flip=False)
        source = DecodedSource(ShardSetReader(shard_set, split="train"), decode=decode, layout=decode.layout)
        plan = ReadingPlan(shard_sizes=source.shard_sizes, identity="i", split="train", seed=0)
        self.loader = BatchLoader(
            reader=BatchReader(MixedPlan([plan], weights=[1.0], seed=0), [source], augment=None),
            steps=RankSteps(
                start_images=self.state.images_seen,
                global_batch_size=BATCH,
                rank=world.rank,
                world_size=world.size,
            ),
            prefetch=Prefetch(batches=0, max_bytes=2**20, workers=0, stall_s=30.0),
        )
        values: dict[str, Any] = {
            "budget_images": 80,
            "seed": 0,
            "global_batch_size": BATCH,
            "gradient_accumulation_steps": accumulation,
            "log_every_images": 16,
            "max_bad_fraction": 0.5,
        }
        guards = {key: settings.pop(key) for key in tuple(settings) if key in GUARDS}
        self.trainer = Trainer(
            Trained(
                self.engine.as_engine(),
                self.ema,
                LrPlan(peak=1.0, schedule="constant", warmup_images=32, budget_images=80, min_ratio=0.0),
            ),
            self.loader,
            LoopSettings(guards=GuardSettings(**(GUARDS | guards)), **(values | settings)),
            self.state,
            reports=Reports(
                console=self.talk,
                write_metrics=lambda row: self.write_metrics(row),
                write_ledger=lambda row: self.ledger.append(dict(row)),
                set_names=["the set"],
            ),
            work=Work([self._periodic(*work, there) for work in periodic], self.saves, self._rewind),
            watch=Watch(
                Watchdog(rank=world.rank, world_size=world.size, store=LocalStatusStore(), limit_s=0), self.flag
            ),
            world=world,
        )

    def _periodic(self, name: str, every: int, when: Mapping[str, bool], there: Sequence[tuple[str, int]]) -> Periodic:
        kind = Checkpoint if name == "save" else Periodic
        return kind(name, every, self._note(name), lambda at: (name, at.images_seen) in there, **when)

    def write_metrics(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))

    def _rewind(self) -> int:
        self.rewound.append(self.state.images_seen)
        return 16

    def _note(self, name: str) -> Any:
        return lambda state: self.note(name, state)

    def note(self, name: str, state: TrainState) -> None:
        self.done.append((name, state.images_seen))

    def positions(self) -> list[int]:
        return [row["images_seen"] for row in self.rows]


@pytest.fixture
def shard_set(tmp_path: Path) -> ShardSet:
    return write_numbered_set(tmp_path, [20, 12])


def test_a_run_ends_at_its_budget_and_logs_at_every_interval(shard_set: ShardSet) -> None:
    run = Run(shard_set)
    assert run.trainer.fit().images_seen == 80
    assert run.positions() == [16, 32, 48, 64, 80]
    assert [row["step"] for row in run.rows] == [2, 4, 6, 8, 10]
    assert run.engine.steps == 10


def test_a_budget_that_is_no_multiple_of_the_batch_ends_with_the_step_that_passes_it(shard_set: ShardSet) -> None:
    run = Run(shard_set, budget_images=77)
    assert run.trainer.fit().images_seen == 80


def test_a_row_holds_the_mean_over_its_interval(shard_set: ShardSet) -> None:
    run = Run(shard_set)
    run.trainer.fit()
    # the fake loss of a step is the number of images before it
    assert [row["loss"] for row in run.rows] == [4.0, 20.0, 36.0, 52.0, 68.0]
    assert all(row["images_per_s"] > 0 and 0 <= row["data_wait_percent"] <= 101 for row in run.rows)


def test_the_rate_of_a_step_belongs_to_the_images_at_its_end(shard_set: ShardSet) -> None:
    run = Run(shard_set)
    run.trainer.fit()
    assert run.engine.rates == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 7])
    assert [row["lr"] for row in run.rows] == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0])


def test_accumulation_makes_one_update_of_a_global_batch(shard_set: ShardSet) -> None:
    run = Run(shard_set, accumulation=4)
    run.trainer.fit()
    assert run.engine.micro_steps == 40
    assert run.engine.steps == 10
    assert [row["loss"] for row in run.rows] == [4.0, 20.0, 36.0, 52.0, 68.0]


def test_periodic_work_is_done_at_its_boundaries_in_order_and_at_the_end_if_asked(shard_set: ShardSet) -> None:
    periodic = [("look", 24, {"at_end": True}), ("save", 40, {"at_end": True}), ("draw", 20, {}), ("never", 0, {})]
    run = Run(shard_set, periodic=periodic)
    run.trainer.fit()
    assert run.done == [
        *[("look", 24), ("draw", 24), ("save", 40), ("draw", 40), ("look", 48)],
        *[("draw", 64), ("look", 72), ("look", 80), ("save", 80)],
    ]


def test_a_row_is_written_before_a_checkpoint_so_that_none_is_half_summed(shard_set: ShardSet) -> None:
    run = Run(shard_set, periodic=[("save", 40, {})])
    run.trainer.fit()
    assert run.positions() == [16, 32, 40, 48, 64, 80]
    assert [row["loss"] for row in run.rows] == [4.0, 20.0, 32.0, 40.0, 52.0, 68.0]


def test_the_time_a_checkpoint_takes_is_a_stall_of_the_next_row_and_of_no_rate(shard_set: ShardSet) -> None:
    run = Run(shard_set)
    slow = Checkpoint("slow", 40, lambda state: time.sleep(0.2))
    look = Periodic("look", 24, lambda state: time.sleep(0.2))
    run.trainer._periodic = [slow, look]
    run.trainer.fit()
    stalls = {row["images_seen"]: row["checkpoint_stall_percent"] for row in run.rows}
    assert [images for images, percent in stalls.items() if percent > 0] == [48]
    assert stalls[48] > 50
    assert all(row["images_per_s"] > 8 / 0.2 for row in run.rows)
    assert run.rows[-1]["eta_s"] == 0
    assert run.rows[0]["eta_s"] > 0


def test_a_resumed_run_goes_on_to_the_same_rows(shard_set: ShardSet) -> None:
    straight, resumed = Run(shard_set), Run(shard_set, state=TrainState(images_seen=32))
    straight.trainer.fit()
    resumed.trainer.fit()
    assert resumed.positions() == [48, 64, 80]
    assert [row["loss"] for row in resumed.rows] == [row["loss"] for row in straight.rows[2:]]


def test_a_run_that_is_done_does_nothing(shard_set: ShardSet) -> None:
    look = ("look", 40, {"at_end": True})
    run = Run(shard_set, state=TrainState(images_seen=80), periodic=[look], there=[("look", 80)])
    run.trainer.fit()
    assert (run.engine.micro_steps, run.rows, run.done) == (0, [], [])


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_the_run_with_its_place(shard_set: ShardSet, norm: float) -> None:
    run = Run(shard_set)
    run.engine.norms = [1.0, 1.0, norm]
    with pytest.raises(NumericalError, match="ends at 24 images") as caught:
        run.trainer.fit()
    assert "on_nonfinite" in caught.value.where
    assert run.saves.places == []


def test_under_the_policy_skip_a_bad_step_is_counted_and_left_out_of_the_average(shard_set: ShardSet) -> None:
    run = Run(shard_set, on_nonfinite="skip")
    run.engine.norms = [float("nan")] * 10
    before = run.ema.partitions[0].clone()
    state = run.trainer.fit()
    assert state.skipped_steps == 10
    assert run.engine.steps == 0
    assert run.rows[-1]["skipped_steps"] == 10
    assert before.equal(run.ema.partitions[0])
    assert len(run.talk.warnings) == 10


def test_quarantined_samples_are_named_counted_and_written_to_the_ledger(shard_set: ShardSet) -> None:
    flip_byte(Path(shard_set.url) / "train" / "000001.tar", 512)
    run = Run(shard_set, budget_images=64)
    state = run.trainer.fit()
    assert state.quarantined_images == 2, "one damaged sample in two epochs"
    assert len(run.talk.warnings) == 2
    assert "train/000001.tar#0" in run.talk.warnings[0]
    named = [row for row in run.ledger if "samples" in row]
    assert [len(row["samples"]) for row in named] == [1, 1]
    assert run.ledger[0]["samples"][0]["place"].endswith("train/000001.tar#0")
    assert "checksum" in run.ledger[0]["samples"][0]["reason"]
    assert named[-1]["planned"] == named[-1]["delivered"] + named[-1]["quarantined"]
    epochs = [row for row in run.ledger if "epoch" in row]
    assert [(row["epoch"], row["complete"], row["planned"], row["delivered"]) for row in epochs] == [
        (0, True, 32, 31),
        (1, True, 32, 31),
    ]
    assert [row["quarantined"] for row in epochs] == [{"checksum": 1}] * 2
    assert run.rows[-1]["quarantined_images"] == 2


def test_a_sample_another_rank_could_not_use_is_named_by_rank_0(shard_set: ShardSet) -> None:
    flip_byte(Path(shard_set.url) / "train" / "000001.tar", 512)
    flip_byte(Path(shard_set.url) / "train" / "000000.tar", 512)

    def work(world: World) -> Run:
        run = Run(shard_set, world=world, budget_images=32)
        run.trainer.fit()
        return run

    ranks = run_ranks(4, work)
    first = ranks[0]
    assert isinstance(first, Run), first
    named = [sample["place"].rsplit("/", 1)[-1] for row in first.ledger for sample in row.get("samples", [])]
    assert sorted(named) == ["000000.tar#0", "000001.tar#0"]
    assert len(first.talk.warnings) == 2
    assert {rank.state.quarantined_images for rank in ranks if isinstance(rank, Run)} == {2}


def test_too_many_quarantined_samples_stop_the_run(shard_set: ShardSet) -> None:
    (Path(shard_set.url) / "train" / "000001.idx.npz").write_bytes(b"")
    run = Run(shard_set, max_bad_fraction=0.1)
    with pytest.raises(DataError, match=r"samples had to be quarantined, more than max_bad_fraction = 0\.1"):
        run.trainer.fit()


def test_one_damaged_sample_is_allowed_in_the_first_batches(shard_set: ShardSet) -> None:
    flip_byte(Path(shard_set.url) / "train" / "000001.tar", 512)
    run = Run(shard_set, max_bad_fraction=0.05, budget_images=32)
    assert run.trainer.fit().quarantined_images == 1


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_saves_before_the_next_step_and_leaves_with_the_code_to_requeue(
    shard_set: ShardSet, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    run = Run(shard_set, periodic=[("kill", 24, {})])
    run.trainer._periodic[0] = Periodic("kill", 24, lambda state: os.kill(os.getpid(), number))  # type: ignore[index]
    with pytest.raises(Preempted, match=f"stopped by {number.name} at 24 images") as caught:
        run.trainer.fit()
    assert caught.value.exit_code == 75
    assert run.saves.places == [24]
    assert run.saves.waits == 1
    assert run.positions() == [16, 24]
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_ends_at_once_and_the_first_says_so() -> None:
    script = """
import os, signal, sys, time
from synfundus.training.stopping import StopFlag, catch_signals
with catch_signals(StopFlag(quiet="quiet" in sys.argv)):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        print("saving", flush=True)
"""
    for quiet in (list[str](), ["quiet"]):
        ended = subprocess.run([sys.executable, "-c", script, *quiet], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (130, "saving\n")
        assert ("a second Ctrl-C ends at once" in ended.stderr) is not bool(quiet)


def test_a_signal_after_the_last_step_stops_nothing(shard_set: ShardSet) -> None:
    run = Run(shard_set, periodic=[("kill", 0, {"at_end": True})])
    run.trainer._periodic[0] = Periodic("last", 0, lambda state: os.kill(os.getpid(), signal.SIGUSR2), at_end=True)  # type: ignore[index]
    assert run.trainer.fit().images_seen == 80
    assert run.saves.places == []


AROUND_A_SAVE = [("look", 40, {"at_end": True}), ("save", 40, {"at_end": True}), ("draw", 40, {})]


def interrupt(run: Run, at: int, name: str) -> None:
    """Have a signal come while periodic work is done."""
    note = run.note

    def noted(job: str, state: TrainState) -> None:
        if (job, state.images_seen) == (name, at):
            run.flag.raise_("SIGUSR2")
            run.flag.check()
        if job == "save":
            run.documents.append(state.to_document())
        note(job, state)

    run.note = noted  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize(
    ("name", "done_before", "done_later"),
    [
        ("look", [("save", 40)], [("look", 40), ("draw", 40)]),
        ("draw", [("look", 40), ("save", 40)], [("draw", 40)]),
    ],
)
def test_work_that_a_signal_interrupts_is_done_when_the_run_goes_on(
    shard_set: ShardSet, name: str, done_before: Any, done_later: Any
) -> None:
    straight = Run(shard_set, periodic=AROUND_A_SAVE)
    interrupt(straight, -1, name)
    straight.trainer.fit()
    run = Run(shard_set, periodic=AROUND_A_SAVE)
    interrupt(run, 40, name)
    with pytest.raises(Preempted, match="at 40 images"):
        run.trainer.fit()
    assert run.done == done_before
    assert run.documents == straight.documents[:1], "the checkpoint is that of a run that nothing interrupted"
    again = Run(shard_set, periodic=AROUND_A_SAVE, state=TrainState(images_seen=40), there=run.done)
    again.trainer.fit()
    assert again.done == [*done_later, ("look", 80), ("save", 80)]
    once_more = Run(shard_set, periodic=AROUND_A_SAVE, state=TrainState(images_seen=80), there=again.done)
    once_more.trainer.fit()
    assert once_more.done == []


def test_a_look_at_the_end_is_interrupted_too_and_everything_is_saved(shard_set: ShardSet) -> None:
    run = Run(shard_set, periodic=AROUND_A_SAVE)
    interrupt(run, 80, "look")
    with pytest.raises(Preempted, match="at 80 images"):
        run.trainer.fit()
    assert run.done[-1] == ("save", 80)
    again = Run(shard_set, periodic=AROUND_A_SAVE, state=TrainState(images_seen=80), there=run.done)
    again.trainer.fit()
    assert (again.done, again.engine.micro_steps) == ([("look", 80)], 0)


def test_no_work_is_begun_after_a_signal_to_any_rank_but_the_save(shard_set: ShardSet) -> None:
    def work(world: World) -> Run:
        run = Run(shard_set, world=world, periodic=AROUND_A_SAVE)
        if world.rank == 1:
            step = run.trainer._step

            def signalled(batch: Any) -> None:
                step(batch)
                if run.state.images_seen == 40:
                    run.flag.raise_("SIGTERM")

            run.trainer._step = signalled  # type: ignore[method-assign]
        with pytest.raises(Preempted, match="at 40 images"):
            run.trainer.fit()
        return run

    for rank in run_ranks(2, work):
        assert isinstance(rank, Run), rank
        assert rank.done == [("save", 40)]


def test_a_signal_to_one_rank_stops_all_at_the_same_step(shard_set: ShardSet) -> None:
    def work(world: World) -> Run:
        run = Run(shard_set, world=world, log_every_images=1000)
        boundaries = iter(range(100))
        original = world.sum

        def sum_of(flags: Sequence[float]) -> list[float]:
            stop = world.rank == 1 and next(boundaries) == 3
            return original([stop or flags[0], *flags[1:]])

        object.__setattr__(world, "sum", sum_of)
        with pytest.raises(Preempted):
            run.trainer.fit()
        return run

    runs = run_ranks(2, work)
    assert [run.saves.places if isinstance(run, Run) else run for run in runs] == [[24], [24]]


def flat(run: Run, *, spikes: Mapping[int, float]) -> Run:
    """Give every step the loss 1 but some."""
    run.engine.loss_at = {images: spikes.get(images, 1.0) for images in range(0, 80, BATCH)}
    return run


def test_a_spike_is_left_out_of_weights_and_average_and_counted(shard_set: ShardSet) -> None:
    run = flat(Run(shard_set, on_spike="skip", accumulation=2), spikes={40: 10.0})
    state = run.trainer.fit()
    assert (state.skipped_steps, state.rewinds, run.engine.steps) == (1, 0, 9)
    assert run.talk.warnings == ["step at 48 images skipped: a loss of 10 is a spike"]
    assert state.recent_losses == [1.0] * 4


def test_a_spike_ends_the_run_under_the_policy_stop(shard_set: ShardSet) -> None:
    run = flat(Run(shard_set, on_spike="stop"), spikes={40: 10.0})
    with pytest.raises(NumericalError, match="a loss of 10 is a spike in the step that ends at 48 images"):
        run.trainer.fit()
    assert run.engine.steps == 5


def test_a_spike_brings_the_weights_of_the_last_checkpoint_back_and_the_data_goes_on(shard_set: ShardSet) -> None:
    run = flat(Run(shard_set, on_spike="rewind"), spikes={40: 10.0, 56: 20.0})
    state = run.trainer.fit()
    assert run.rewound == [48, 64]
    assert (state.images_seen, state.rewinds, state.skipped_steps) == (80, 2, 0)
    assert run.talk.warnings[0].endswith("back to the weights of 16 images, 32 images are left out")
    assert (run.rows[-1]["rewinds"], run.rows[-1]["rewound_images"]) == (2, 32 + 48)


def test_rewinds_to_the_same_checkpoint_have_an_end(shard_set: ShardSet) -> None:
    run = flat(Run(shard_set, on_spike="rewind"), spikes={40: 10.0, 48: 10.0, 56: 20.0})
    with pytest.raises(NumericalError, match="after 2 rewinds to the checkpoint at 16 images"):
        run.trainer.fit()
    assert run.rewound == [48, 56, 64]


def test_a_gradient_that_is_not_finite_can_rewind_too(shard_set: ShardSet) -> None:
    run = Run(shard_set, on_nonfinite="rewind")
    run.engine.norms = [1.0, float("inf")]
    assert run.trainer.fit().rewinds == 1


def test_ranks_find_the_same_spikes(shard_set: ShardSet) -> None:
    def work(world: World) -> TrainState:
        return flat(Run(shard_set, world=world, on_spike="skip"), spikes={40: 10.0 * world.rank}).trainer.fit()

    states = run_ranks(2, work)
    assert [state.skipped_steps if isinstance(state, TrainState) else state for state in states] == [1, 1]


def test_a_signal_while_data_does_not_come_stops_without_it(shard_set: ShardSet) -> None:
    run = Run(shard_set)

    def never(interrupted: Callable[[], bool]) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert interrupted()

    run.loader.take = never  # type: ignore[method-assign,assignment]
    with pytest.raises(Preempted, match="at 0 images"):
        run.trainer.fit()
    assert run.engine.steps == 0


def test_a_rank_that_cannot_read_ends_all_ranks_with_its_error(shard_set: ShardSet) -> None:
    def work(world: World) -> Run:
        run = Run(shard_set, world=world)
        original, calls = run.loader.take, iter(range(100))

        def take(interrupted: Callable[[], bool] = lambda: False) -> RankBatch | None:
            if world.rank == 1 and next(calls) == 3:
                raise DataError("no such shard", where="the place", hint="the way out")
            return original(interrupted)

        run.loader.take = take  # type: ignore[method-assign]
        with pytest.raises(DataError) as caught:
            run.trainer.fit()
        assert (caught.value.message, caught.value.where, caught.value.hint) == (
            "no such shard",
            "the place",
            "the way out",
        )
        return run

    runs = run_ranks(2, work)
    assert [run.engine.steps if isinstance(run, Run) else run for run in runs] == [3, 3]


def test_a_row_that_cannot_be_written_ends_all_ranks_before_a_checkpoint_without_it(shard_set: ShardSet) -> None:
    def refuse(row: Mapping[str, Any]) -> None:
        raise StorageError("disk full", where="metrics.jsonl")

    def work(world: World) -> Run:
        run = Run(shard_set, world=world, periodic=[("save", 16, {})])
        run.write_metrics = refuse  # type: ignore[method-assign]
        with pytest.raises(StorageError, match="disk full"):
            run.trainer.fit()
        return run

    runs = run_ranks(2, work)
    assert [(run.engine.steps, run.done) if isinstance(run, Run) else run for run in runs] == [(2, [])] * 2


def test_a_save_that_failed_in_the_background_ends_the_run_at_the_next_boundary(shard_set: ShardSet) -> None:
    run = Run(shard_set, periodic=[("fail", 24, {})])
    run.trainer._periodic[0] = Periodic("look", 24, lambda state: run.saves.fail(StorageError("disk full")))  # type: ignore[index]
    with pytest.raises(StorageError, match="disk full"):
        run.trainer.fit()
    assert run.engine.steps == 3
    assert run.saves.closed


def test_a_run_ends_only_when_everything_is_written(shard_set: ShardSet) -> None:
    run = Run(shard_set, periodic=[("fail", 0, {"at_end": True})])
    run.trainer._periodic[0] = Periodic("last", 0, lambda state: run.saves.fail(StorageError("disk full")), at_end=True)  # type: ignore[index]
    with pytest.raises(StorageError, match="disk full"):
        run.trainer.fit()
    assert run.engine.steps == 10


def test_sums_are_over_all_ranks_and_only_rank_0_writes(shard_set: ShardSet) -> None:
    def work(world: World) -> Run:
        run = Run(shard_set, world=world)
        run.trainer.fit()
        return run

    first, second = run_ranks(2, work)
    assert isinstance(first, Run)
    assert isinstance(second, Run)
    assert [row["loss"] for row in first.rows] == [4.0, 20.0, 36.0, 52.0, 68.0]
    assert second.rows == []


def test_every_rank_and_every_step_drops_units_of_its_own(shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same place gives the same units again: a resumed run goes on as the one that was not stopped."""
    seeds: dict[str, list[int]] = {}

    def seeded(seed: int, *, device: object) -> None:
        seeds.setdefault(threading.current_thread().name, []).append(seed)

    monkeypatch.setattr(trainer_module, "seed_kernels", seeded)

    def train(world: World) -> list[int]:
        Run(shard_set, world=world, budget_images=40).trainer.fit()
        return seeds[threading.current_thread().name]

    first, second = run_ranks(2, train)
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert len({*first, *second}) == len(first) + len(second) == 10
    seeds.clear()
    Run(shard_set, state=TrainState(images_seen=24), budget_images=40).trainer.fit()
    assert next(iter(seeds.values())) == first[3:]
