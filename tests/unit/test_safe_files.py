"""Files appear whole or not at all, also after a power failure: content, then name, then the folder's list of names."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from fake_engine import ALONE, FakeEngine

from synfundus.distributed.flat_layout import FlatLayout
from synfundus.storage.local_folder import folder_to_replace
from synfundus.storage.safe_files import write_in_place
from synfundus.training.checkpoints.checkpoint import copy_state, write_checkpoint
from synfundus.training.ema import ShardedEma


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was made durable, and what was renamed to what, in order."""
    found: list[tuple[str, str]] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def synced(descriptor: int) -> None:
        found.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def replaced(path: Path, target: Path) -> Path:
        found.append(("rename", str(target)))
        return replace(path, target)

    def renamed(path: Path, target: Path) -> Path:
        found.append(("rename", str(target)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(Path, "rename", renamed)
    return found


def test_content_is_on_the_disk_before_its_name_and_then_the_name(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    target = tmp_path / "a.bin"
    with write_in_place(target) as stream:
        stream.write(b"new")
    (kind, temporary), *rest = events
    assert kind == "fsync"
    assert Path(temporary).parent == tmp_path
    assert temporary != str(target)
    assert rest == [("rename", str(target)), ("fsync", str(tmp_path))]


def test_a_replaced_folder_is_on_the_disk_before_its_name_and_then_the_name(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    target, names = tmp_path / "export", ("a/x.bin", "a/b/y.bin", "index.json")
    for _ in range(2):  # a new one, and in the place of another
        events.clear()
        with folder_to_replace(str(target), last=("index.json",), own=r"a(/.*)?|index\.json") as work:
            for name in names:
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                (work / name).write_bytes(b"new")
        at = events.index(("rename", str(target)))
        before = [path for kind, path in events[:at] if kind == "fsync"]
        for name in names:
            folders = [work / parent for parent in Path(name).parents]
            for inner, outer in pairwise([work / name, *folders]):
                assert before.index(str(inner)) < before.index(str(outer)), "what is in a folder before the folder"
        assert events[at + 1] == ("fsync", str(tmp_path))
        assert (target / "a" / "b" / "y.bin").read_bytes() == b"new"


def test_a_reader_of_the_old_file_keeps_it_and_a_failed_write_leaves_it(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with target.open("rb") as reader:
        with write_in_place(target) as stream:
            stream.write(b"new")
            stream.flush()
            assert target.read_bytes() == b"old"
        assert reader.read() == b"old"
    assert target.read_bytes() == b"new"
    half = write_in_place(target)
    half.__enter__().write(b"half")
    assert not half.__exit__(RuntimeError, RuntimeError(), None)
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_checkpoint_is_on_the_disk_before_its_name_and_then_the_name(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    engine = FakeEngine(FlatLayout.of([[("a", (5, 3))]]), ALONE)
    ema = ShardedEma(engine.masters(), half_life_images=10, rampup_ratio=1)
    copy = copy_state(engine=engine.as_engine(), ema=ema, images_seen=8, state={}, world=ALONE)
    final = Path(write_checkpoint(str(tmp_path), copy, keep=2, world=ALONE))
    work = Path(f"{final}.tmp")
    at = events.index(("rename", str(final)))
    before, after = events[:at], events[at + 1 :]
    written = {path.relative_to(final) for path in final.rglob("*") if path.is_file()}
    for name in written:
        assert ("rename", str(work / name)) in before
    for folder in {work / name.parent for name in written}:
        into = [
            number for number, (kind, path) in enumerate(before) if kind == "rename" and Path(path).parent == folder
        ]
        assert ("fsync", str(folder)) in before[max(into) :], folder
    assert after[0] == ("fsync", str(tmp_path))
