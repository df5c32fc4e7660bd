"""Worker processes: the same batches as without them, named when they die, hang or fail, bounded in memory."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_sets import flip_byte, write_numbered_set

from synfundus.errors import DataError, LaunchError
from synfundus.labels.schema import DEFAULT_LABEL_SCHEMA
from synfundus.processes.stop_signals import STOP_SIGNALS
from synfundus.shards import worker_pool
from synfundus.shards.batches import BatchReader
from synfundus.shards.loader import BatchLoader, Prefetch, RankSteps
from synfundus.shards.reader import Arrays, ShardSetReader
from synfundus.shards.shard_plan import MixedPlan, ReadingPlan
from synfundus.shards.source import LatentSource
from synfundus.storage.manifest import ShardSet

pytestmark = pytest.mark.timeout(120)
BATCH = 8


def double(positions: NDArray[np.int64], arrays: Arrays) -> Arrays:
    return {"moments": arrays["moments"].astype(np.float32) * 2, "position": positions.copy()}


def hang_at_step_two(positions: NDArray[np.int64], arrays: Arrays) -> Arrays:
    if positions[0] == 2 * BATCH:
        time.sleep(60)
    return arrays


def die_at_step_two(positions: NDArray[np.int64], arrays: Arrays) -> Arrays:
    if positions[0] == 2 * BATCH:
        os.kill(os.getpid(), signal.SIGKILL)
    return arrays


def stand_still_at_step_two(positions: NDArray[np.int64], arrays: Arrays) -> Arrays:
    if positions[0] == 2 * BATCH:
        os.kill(os.getpid(), signal.SIGSTOP)
    return arrays


def hang_at_once(positions: NDArray[np.int64], arrays: Arrays) -> Arrays:
    if len(positions) > 1:  # with one the shapes are asked for
        time.sleep(60)
    return arrays


def fail_at_step_two(positions: NDArray[np.int64], arrays: Arrays) -> Arrays:
    if positions[0] == 2 * BATCH:
        raise DataError("a number that is no number", where="here", hint="look")
    return arrays


def break_at_step_two(positions: NDArray[np.int64], arrays: Arrays) -> Arrays:
    if positions[0] == 2 * BATCH:
        raise ZeroDivisionError("not foreseen")
    return arrays


@pytest.fixture
def shard_set(tmp_path: Path) -> ShardSet:
    return write_numbered_set(tmp_path / "set", [9, 0, 5, 1, 12])


@pytest.fixture
def build(shard_set: ShardSet) -> Iterator[Callable[..., BatchLoader]]:
    made: list[BatchLoader] = []

    def build_loader(*, workers: int, augment: Any = None, stall_s: float = 60.0, depth: int = 2) -> BatchLoader:
        source = LatentSource(
            ShardSetReader(shard_set, split="train"),
            schema=DEFAULT_LABEL_SCHEMA,
            moments_shape=(4, 2, 2),
            with_flip=False,
        )
        plan = ReadingPlan(
            shard_sizes=source.shard_sizes, identity=shard_set.identity, split="train", seed=3, num_streams=4
        )
        made.append(
            BatchLoader(
                reader=BatchReader(MixedPlan([plan], weights=[1.0], seed=3), [source], augment=augment),
                steps=RankSteps(start_images=0, global_batch_size=BATCH, rank=0, world_size=1),
                prefetch=Prefetch(batches=depth, max_bytes=2**20, workers=workers, stall_s=stall_s),
            )
        )
        return made[-1]

    yield build_loader
    for loader in made:
        loader.close()


def contents(loader: BatchLoader, count: int) -> list[dict[str, Any]]:
    """Return copies of what batches hold: their memory is filled again."""
    return [
        {
            "positions": batch.positions.tolist(),
            "weights": batch.weights.tolist(),
            "quarantined": [(sample.position, sample.place, sample.kind) for sample in batch.quarantined],
            "sets": batch.sets.tolist(),
            "epochs": batch.epochs.tolist(),
            **{name: array.tolist() for name, array in batch.arrays.items()},
        }
        for batch in islice(loader, count)
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing_but_the_time(
    build: Callable[..., BatchLoader], shard_set: ShardSet, workers: int
) -> None:
    flip_byte(Path(shard_set.url) / "train" / "000004.tar", 1600)
    alone = contents(build(workers=0, augment=double), 11)
    assert sum(weight == 0 for batch in alone for weight in batch["weights"]) >= 3, "the damage has to be met"
    assert contents(build(workers=workers, augment=double), 11) == alone


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (die_at_step_two, "was killed by SIGKILL"),
        (hang_at_step_two, "has returned nothing for 10 s"),
        (stand_still_at_step_two, "has returned nothing for 10 s"),
    ],
)
def test_a_worker_that_dies_or_hangs_is_named_with_what_it_was_reading(
    build: Callable[..., BatchLoader], augment: Any, message: str
) -> None:
    loader = build(workers=2, augment=augment, stall_s=60.0 if augment is die_at_step_two else 10.0)
    batches = iter(loader)
    next(batches)
    next(batches)
    with pytest.raises(LaunchError, match=f"loader worker 0 .*{message}") as caught:
        next(batches)
    assert "position 16" in caught.value.where
    assert ".tar#" in caught.value.where
    with pytest.raises(LaunchError):
        next(iter(loader))


def test_workers_that_hang_are_all_ended_within_one_patience(
    build: Callable[..., BatchLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "_JOIN_TIMEOUT_S", 3.0)
    loader = build(workers=4, augment=hang_at_once, stall_s=60)

    def all_hang() -> bool:
        return loader._pool is not None and all(place.value >= 0 for place in loader._pool._progress)

    assert loader.take(interrupted=all_hang) is None
    began = time.monotonic()
    loader.close()
    assert time.monotonic() - began < 9


def test_what_a_worker_meets_reaches_the_consumer_with_all_its_parts(build: Callable[..., BatchLoader]) -> None:
    batches = iter(build(workers=2, augment=fail_at_step_two))
    next(batches)
    next(batches)
    with pytest.raises(DataError, match="no number") as caught:
        next(batches)
    assert (caught.value.where, caught.value.hint) == ("here", "look")


def test_a_defect_in_a_worker_comes_with_its_traceback(build: Callable[..., BatchLoader]) -> None:
    batches = iter(build(workers=1, augment=break_at_step_two))
    next(batches)
    next(batches)
    with pytest.raises(RuntimeError, match=r"break_at_step_two[\s\S]*not foreseen"):
        next(batches)


def test_a_worker_runs_no_further_ahead_than_its_slots(build: Callable[..., BatchLoader]) -> None:
    loader = build(workers=1, depth=3)
    next(iter(loader))
    time.sleep(1.0)
    assert loader._pool is not None
    # three slots: one with the consumer, two ready; the worker waits at the step after them
    assert loader._pool._progress[0].value == 2 * BATCH


def test_closing_ends_the_processes(build: Callable[..., BatchLoader]) -> None:
    loader = build(workers=2)
    next(iter(loader))
    assert loader._pool is not None
    pids = [process.pid for process in loader._pool._processes]
    loader.close()
    for pid in pids:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_to_every_process_of_a_step_ends_no_worker_whatever_it_is_doing(
    build: Callable[..., BatchLoader], number: signal.Signals
) -> None:
    """srun sends a signal to all of them, also to one whose interpreter is only starting."""
    loader = build(workers=2)
    batches = iter(loader)
    # the first batch is asked for here, and its workers are still starting: they have not been heard of yet
    started = threading.Thread(target=lambda: first.append(next(batches)))
    first: list[Any] = []
    started.start()
    while loader._pool is None or len(loader._pool._processes) < 2:
        time.sleep(0.001)
    pids = [process.pid for process in loader._pool._processes if process.pid is not None]
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, number)
    started.join()
    for pid in pids:
        os.kill(pid, number)
    assert [batch.positions[0] for batch in [*first, *islice(batches, 3)]] == [0, BATCH, 2 * BATCH, 3 * BATCH]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {number}
