"""Checkpoints written in the background."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from fake_engine import ALONE, FakeEngine, Rendezvous, ThreadWorld, run_ranks

from synfundus.distributed.flat_layout import FlatLayout
from synfundus.distributed.watchdog import Watchdog
from synfundus.distributed.world import LocalStatusStore, World
from synfundus.errors import StorageError
from synfundus.storage import filesystem
from synfundus.training.checkpoints.checkpoint import copy_state
from synfundus.training.checkpoints.search import find_checkpoint
from synfundus.training.checkpoints.writer import CheckpointWriter
from synfundus.training.ema import ShardedEma

LAYOUT = FlatLayout.of([[("a", (5, 3)), ("b", (4,))]])
WATCHDOG = Watchdog(rank=0, world_size=1, store=LocalStatusStore(), limit_s=0)


class Gate:
    """Holds every write until it is opened; fails those whose place has a text."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        self.failing = ""
        self.written: list[str] = []

    def write(self, url: str, data: bytes) -> None:
        self.reached.set()
        assert self.open.wait(10)
        if self.failing and self.failing in url:
            raise StorageError("no space left", where=url)
        self.written.append(url)
        _WRITE(url, data)


_WRITE = filesystem.write_bytes


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(filesystem, "write_bytes", gate.write)
    yield gate
    gate.open.set()


def writer_of(
    engine: FakeEngine, root: Path, *, world: World = ALONE, background: World | None = ALONE
) -> CheckpointWriter:
    return CheckpointWriter(
        str(root),
        engine=engine.as_engine(),
        ema=ShardedEma(engine.masters(), half_life_images=10, rampup_ratio=1),
        keep=2,
        world=world,
        background=background,
        watchdog=WATCHDOG,
    )


def test_a_save_returns_before_anything_is_written_and_holds_the_state_of_its_moment(
    tmp_path: Path, gate: Gate
) -> None:
    engine = FakeEngine(LAYOUT, ALONE)
    expected = engine.masters()[0].clone()
    writer = writer_of(engine, tmp_path)
    writer.save(8, {"n": 1})
    assert gate.reached.wait(10)
    assert find_checkpoint(str(tmp_path), world=ALONE) is None
    for vectors in engine.vectors.values():
        vectors[0].fill_(7.0)
    gate.open.set()
    writer.wait()
    found = find_checkpoint(str(tmp_path), world=ALONE)
    assert found is not None
    assert found.images_seen == 8
    saved = safetensors.torch.load_file(Path(found.url) / "zero" / "rank-00000-of-00001.safetensors")
    assert torch.equal(saved["group0.master"], expected)
    model = safetensors.torch.load_file(Path(found.url) / "model.safetensors")
    assert torch.equal(torch.cat([model["a"].reshape(-1), model["b"]]), expected[:19])
    assert writer.stall_s > 0


def test_the_next_save_waits_for_the_one_before(tmp_path: Path, gate: Gate) -> None:
    writer = writer_of(FakeEngine(LAYOUT, ALONE), tmp_path)
    writer.save(8, {})
    second = threading.Thread(target=writer.save, args=(16, {}))
    second.start()
    second.join(0.3)
    assert second.is_alive(), "it did not wait"
    gate.open.set()
    second.join(10)
    writer.wait()
    folders = [Path(url).parts[-2] for url in gate.written if url.endswith("MANIFEST.json")]
    assert folders == ["images-000000000008.tmp", "images-000000000016.tmp"]


def test_a_place_is_saved_once(tmp_path: Path) -> None:
    engine = FakeEngine(LAYOUT, ALONE)
    writer = writer_of(engine, tmp_path)
    writer.save(8, {})
    writer.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    writer.save(8, {})
    writer.wait()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_failure_is_known_and_raised_once_by_whoever_asks(tmp_path: Path, gate: Gate) -> None:
    writer = writer_of(FakeEngine(LAYOUT, ALONE), tmp_path)
    gate.failing = "model"
    gate.open.set()
    writer.save(8, {})
    writer.close()
    assert writer.failed
    with pytest.raises(StorageError, match="no space left"):
        writer.wait()
    gate.failing = ""
    writer.save(16, {})
    writer.wait()


def save_and_wait(writer: CheckpointWriter, world: World) -> None:
    writer.save(8, {})
    assert world.sum([1.0]) == [2.0], "the loop's own messages are not mixed with the save's"
    writer.wait()


@pytest.mark.parametrize("background", [True, False])
def test_a_rank_that_cannot_write_fails_the_save_of_all(tmp_path: Path, gate: Gate, background: bool) -> None:
    other = Rendezvous(2)
    gate.failing = "rank-00001"
    gate.open.set()

    def work(world: World) -> str:
        aside = ThreadWorld(world.rank, world.size, other) if background else None
        writer = writer_of(FakeEngine(LAYOUT, world), tmp_path, world=world, background=aside)
        with pytest.raises(StorageError, match="rank 1: no space left") as caught:
            save_and_wait(writer, world)
        return caught.value.message

    results = run_ranks(2, work)
    assert all(isinstance(result, str) for result in results), results
    assert find_checkpoint(str(tmp_path), world=ALONE) is None


def test_the_copy_of_a_moment_shares_no_memory_with_what_is_trained_on() -> None:
    engine = FakeEngine(LAYOUT, ALONE)
    ema = ShardedEma(engine.masters(), half_life_images=10, rampup_ratio=1, sigma_rel=[0.1])
    copy = copy_state(engine=engine.as_engine(), ema=ema, images_seen=8, state={}, world=ALONE)
    before = {name: vector.clone() for name, vector in copy.partitions.items()}
    for slices in (*engine.vectors.values(), *ema.vectors().values()):
        for vector in slices:
            vector.fill_(7.0)
    assert set(before) == {f"group0.{name}" for name in ("master", "exp_avg", "exp_avg_sq", *ema.vectors())}
    for name, vector in before.items():
        assert torch.equal(copy.partitions[name], vector), name
