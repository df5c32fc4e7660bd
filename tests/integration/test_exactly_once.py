"""Every sample exactly once an epoch, in one global order: any world size, any workers, uneven shards, real kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rank_processes import clean_environment
from tiny_sets import write_numbered_set

PROBE = Path(__file__).with_name("loader_probe.py")
BATCH = 12
EPOCHS = 3

SHARD_LISTS = {
    "uneven": [9, 4, 17, 6],
    "fewer shards than ranks": [30, 11],
    "empty and single": [0, 5, 1, 0, 22],
    "one shard": [25],
}


class Job:
    """Ranks that read one set; each appends to a file of its own."""

    def __init__(self, latents: str, folder: Path, *, world: int, workers: int, steps: int) -> None:
        self.latents, self.world, self.workers, self.steps = latents, world, workers, steps
        self.files = [folder / f"rank{rank}.jsonl" for rank in range(world)]

    def rows(self, rank: int) -> list[dict[str, Any]]:
        """Return the steps a rank has finished; half a line is a step that was killed."""
        if not self.files[rank].exists():
            return []
        lines = self.files[rank].read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def run(self, *, kill_after: int | None, choice: random.Random) -> None:
        """Start all ranks where the slowest stopped; kill one with SIGKILL when it has done some more steps."""
        done = min(len(self.rows(rank)) for rank in range(self.world))
        for rank in range(self.world):  # what ranks did beyond the common step was not committed
            kept = [json.dumps(row).encode() + b"\n" for row in self.rows(rank)[:done]]
            self.files[rank].write_bytes(b"".join(kept))
        started = [
            subprocess.Popen(
                [
                    *(sys.executable, str(PROBE), self.latents, str(self.files[rank])),
                    *map(str, (rank, self.world, self.workers, done * BATCH, self.steps - done, BATCH)),
                ],
                env=clean_environment(),
                start_new_session=True,
            )
            for rank in range(self.world)
        ]
        try:
            if kill_after is not None:
                self._kill_one(started, done + kill_after, choice.randrange(self.world))
            else:
                assert [process.wait(timeout=120) for process in started] == [0] * self.world
        finally:
            for process in started:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _kill_one(self, started: Sequence[subprocess.Popen[bytes]], steps: int, victim: int) -> None:
        ends = time.monotonic() + 60
        while len(self.rows(victim)) < min(steps, self.steps) and time.monotonic() < ends:
            assert started[victim].poll() in (None, 0), "a rank has failed"
            time.sleep(0.002)
        assert started[victim].poll() is None, "the kill came too late"
        os.kill(started[victim].pid, signal.SIGKILL)

    def order(self) -> list[tuple[int, int, int]]:
        """Return (set, epoch, sample) in the global order."""
        found: dict[int, tuple[int, int, int]] = {}
        for rank in range(self.world):
            for row in self.rows(rank):
                assert row["weights"] == [1.0] * (BATCH // self.world), "ranks have batches of equal size"
                keys = zip(row["sets"], row["epochs"], row["numbers"], strict=True)
                for position, key in zip(row["positions"], keys, strict=True):
                    assert position not in found
                    found[position] = key
        assert sorted(found) == list(range(self.steps * BATCH))
        return [found[position] for position in range(self.steps * BATCH)]


def check_epochs(order: Sequence[tuple[int, int, int]], sizes: Sequence[int]) -> None:
    """Fail unless each finished epoch of each set is its index, once."""
    by_epoch: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, epoch, sample in order:
        by_epoch[(number, epoch)].append(sample)
    finished = 0
    for (number, _), samples in by_epoch.items():
        if len(samples) == sizes[number]:
            finished += 1
            assert sorted(samples) == list(range(sizes[number]))
        assert max(Counter(samples).values()) == 1
    assert finished >= EPOCHS


def run_killed(
    latents: str, folder: Path, *, sizes: Sequence[int], world: int, workers: int, kills: int, seed: int
) -> list[tuple[int, int, int]]:
    """Read some epochs with kills in between and return the global order."""
    folder.mkdir()
    choice = random.Random(seed)
    steps = -(-EPOCHS * sum(sizes) // BATCH) + 1
    job = Job(latents, folder, world=world, workers=workers, steps=steps)
    for _ in range(kills):
        job.run(kill_after=choice.randrange(1, 3), choice=choice)
    job.run(kill_after=None, choice=choice)
    order = job.order()
    check_epochs(order, sizes)
    return order


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("uneven", "fewer shards than ranks") else pytest.param(name, marks=pytest.mark.slow)
        for name in SHARD_LISTS
    ],
)
def test_each_sample_once_an_epoch_in_one_order_with_kills(name: str, tmp_path: Path) -> None:
    sizes = SHARD_LISTS[name]
    latents = write_numbered_set(tmp_path / "set", sizes).url
    layouts = {"uneven": [(1, 0), (2, 1)], "fewer shards than ranks": [(1, 1), (4, 0)]}.get(name, [(1, 0), (3, 0)])
    orders = [
        run_killed(
            latents, tmp_path / f"{world}-{workers}", sizes=[sum(sizes)], world=world, workers=workers, kills=1, seed=1
        )
        for world, workers in layouts
    ]
    assert orders[0] == orders[1]


@pytest.mark.timeout(300)
def test_a_mixture_is_exact_as_well(tmp_path: Path) -> None:
    sets = [write_numbered_set(tmp_path / name, sizes) for name, sizes in (("a", [9, 4]), ("b", [3, 0, 8]))]
    latents = f"{sets[0].url}:0.7,{sets[1].url}:0.3"
    orders = [
        run_killed(latents, tmp_path / str(world), sizes=[13, 11], world=world, workers=0, kills=1, seed=world)
        for world in (1, 2)
    ]
    assert orders[0] == orders[1]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_campaign_of_worlds_workers_shards_and_kills(tmp_path: Path) -> None:
    passed = of = 0
    for at, (name, sizes) in enumerate(SHARD_LISTS.items()):
        latents = write_numbered_set(tmp_path / f"set{at}", sizes).url
        reference: list[tuple[int, int, int]] | None = None
        for world in (1, 2, 3, 4):
            for workers in (0, 1, 3):
                of += 1
                folder = tmp_path / f"{at}-{world}-{workers}"
                order = run_killed(latents, folder, sizes=[sum(sizes)], world=world, workers=workers, kills=3, seed=of)
                reference = reference or order
                assert order == reference, (name, world, workers)
                passed += 1
    print(json.dumps({"name": "exactly_once", "passed": passed, "of": of}))
