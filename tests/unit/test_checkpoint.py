"""Checkpoints: two-phase commit, damage is noticed, any world size reads any other's."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from fake_engine import ALONE, FakeEngine, run_ranks
from hypothesis import given, settings
from hypothesis import strategies as st

from synfundus.distributed.flat_layout import FlatLayout
from synfundus.distributed.world import World
from synfundus.errors import CheckpointError, StorageError
from synfundus.storage import filesystem
from synfundus.training.checkpoints import checkpoint
from synfundus.training.checkpoints.checkpoint import copy_by_pieces, copy_state, load_checkpoint, write_checkpoint
from synfundus.training.checkpoints.search import checkpoint_name, find_checkpoint, verify
from synfundus.training.checkpoints.stored_weights import ModelPart
from synfundus.training.ema import ShardedEma

LAYOUT = FlatLayout.of([[("a.weight", (5, 3)), ("b.weight", (4, 2))], [("a.bias", (5,)), ("s", ())]])
VECTORS = ("master", "exp_avg", "exp_avg_sq", "ema")


def average_of(engine: FakeEngine) -> ShardedEma:
    average = ShardedEma(engine.masters(), half_life_images=100, rampup_ratio=1)
    for partition, values in zip(average.partitions, engine.vectors["ema"], strict=True):
        partition.copy_(values)
    return average


def save(
    root: Path | str,
    images_seen: int,
    *,
    world: World = ALONE,
    keep: int = 3,
    layout: FlatLayout = LAYOUT,
    seed: int = 0,
    damaged: Collection[str] = frozenset(),
) -> str:
    engine = FakeEngine(layout, world, seed=seed)
    engine.steps = images_seen // 8
    snapshot = copy_state(
        engine=engine.as_engine(),
        ema=average_of(engine),
        images_seen=images_seen,
        state={"quarantined_images": 2, "skipped_steps": 1},
        world=world,
    )
    return write_checkpoint(str(root), snapshot, keep=keep, world=world, damaged=damaged)


def restored(url: str, world: World, layout: FlatLayout = LAYOUT) -> dict[str, dict[str, torch.Tensor] | None]:
    """Load on this rank into an engine with other numbers; returns the full vectors on rank 0."""
    engine = FakeEngine(layout, world, seed=99)
    average = average_of(engine)
    state = load_checkpoint(url, engine=engine.as_engine(), ema=average, world=world)
    assert state == {"quarantined_images": 2, "skipped_steps": 1}
    assert engine.steps > 0
    engine.vectors["ema"] = average.partitions
    return {name: engine.gather_named(engine.vectors[name]) for name in VECTORS}


def saved_on(size: int, root: Path | str, layout: FlatLayout = LAYOUT) -> str:
    results = run_ranks(size, lambda world: save(root, 80, world=world, layout=layout))
    assert all(isinstance(result, str) for result in results), results
    return str(results[0])


shapes = st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=1, max_size=5)


@settings(max_examples=50)
@given(
    groups=st.lists(shapes, min_size=1, max_size=2),
    before=st.tuples(st.integers(1, 4), st.booleans()),
    after=st.tuples(st.integers(1, 4), st.booleans()),
)
def test_a_checkpoint_of_any_world_size_and_order_is_read_by_any_other(
    groups: list[list[list[int]]],
    before: tuple[int, bool],
    after: tuple[int, bool],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    named = [[(f"{number}.{index}", shape) for index, shape in enumerate(group)] for number, group in enumerate(groups)]
    (ranks, nhwc), (new_ranks, new_nhwc) = before, after
    four_axes = {name for group in named for name, shape in group if len(shape) == 4}
    saved = FlatLayout.of(named, channels_last=four_axes if nhwc else ())
    url = saved_on(ranks, tmp_path_factory.mktemp("root"), saved)
    wanted = FlatLayout.of(named, channels_last=four_axes if new_nhwc else ())
    found = run_ranks(new_ranks, lambda world: restored(url, world, wanted))[0]
    assert isinstance(found, dict), found
    alone = FakeEngine(saved, ALONE)
    for name in VECTORS:
        expected, got = alone.gather_named(alone.vectors[name]), found[name]
        assert got is not None
        assert expected is not None
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[key], got[key]) for key in expected), name


def test_the_folder_holds_what_the_format_says(tmp_path: Path) -> None:
    folder = Path(saved_on(2, tmp_path))
    assert folder.name == "images-000000000080"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        "MANIFEST.json",
        "model.safetensors",
        "state.json",
        "zero/rank-00000-of-00002.safetensors",
        "zero/rank-00001-of-00002.safetensors",
    ]
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert sorted(manifest["files"]) == files[1:]
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    model = safetensors.torch.load_file(folder / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in model.items()} == {
        "a.weight": (5, 3),
        "b.weight": (4, 2),
        "a.bias": (5,),
        "s": (),
    }
    assert {tensor.dtype for tensor in model.values()} == {torch.float32}
    state = json.loads((folder / "state.json").read_text())
    assert (state["images_seen"], state["world_size"], state["optimizer_steps"]) == (80, 2, 10)
    assert (tmp_path / "latest").read_text() == "images-000000000080\n"
    assert verify(str(folder)) == ""


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = Path(saved_on(2, tmp_path / "a")), Path(saved_on(2, tmp_path / "b"))
    for path in one.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()


@pytest.mark.parametrize("length", [0, 1, 6, 7, 8, 21])
def test_a_vector_copied_by_pieces_arrives_whole(length: int) -> None:
    source, target = torch.randn(length), torch.full((length,), torch.nan)
    late: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Stage:
        """Memory that holds nothing before it was waited for, as a GPU's copy may."""

        def __len__(self) -> int:
            return 7

        def __getitem__(self, place: slice) -> Any:
            piece = torch.full((place.stop,), torch.nan)

            class Piece(torch.Tensor):
                def copy_(self, there: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
                    assert non_blocking
                    late.append((piece, there))
                    return self

            return piece.as_subclass(Piece)

    def wait() -> None:
        piece, there = late.pop()
        torch.Tensor.copy_(piece, there)

    copy_by_pieces(source, target, Stage(), wait=wait)  # type: ignore[arg-type]
    assert torch.equal(source, target)
    assert late == []


def test_old_checkpoints_are_dropped_but_never_below_two(tmp_path: Path) -> None:
    for images in (8, 16, 24, 32):
        save(tmp_path, images, keep=3)
    assert filesystem.list_names(str(tmp_path)) == [
        *[checkpoint_name(images) for images in (16, 24, 32)],
        "latest",
    ]
    save(tmp_path, 40, keep=0)
    assert len(filesystem.list_names(str(tmp_path))) == 3


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    """Else the two that are damaged would push out the only one that is whole, and the newest one."""
    for images in (8, 24, 32):
        save(tmp_path, images)
    for images in (24, 32):
        (tmp_path / checkpoint_name(images) / "state.json").write_text("{}")
    found = find_checkpoint(str(tmp_path), world=ALONE)
    assert found is not None
    assert found.damaged == {checkpoint_name(images) for images in (24, 32)}

    def there() -> set[int]:
        return {int(path.name.removeprefix("images-")) for path in tmp_path.glob("images-*")}

    save(tmp_path, 16, keep=2, damaged=found.damaged)
    assert there() == {8, 16, 24, 32}
    save(tmp_path, 24, keep=2, damaged=found.damaged)
    assert there() == {16, 24, 32}, "what is written anew counts again"
    again = find_checkpoint(str(tmp_path), world=ALONE)
    assert again is not None
    assert again.images_seen == 24


def test_what_a_kill_during_a_save_leaves_is_ignored_and_cleaned_up(tmp_path: Path) -> None:
    save(tmp_path, 8)
    shutil.copytree(tmp_path / "images-000000000008", tmp_path / "images-000000000016.tmp")
    (tmp_path / "images-000000000024").mkdir()
    found = find_checkpoint(str(tmp_path), world=ALONE)
    assert found is not None
    assert found.images_seen == 8
    assert len(found.passed_over) == 1
    save(tmp_path, 32)
    assert "images-000000000016.tmp" not in filesystem.list_names(str(tmp_path))


def test_a_checkpoint_can_be_written_over_one_of_the_same_place(tmp_path: Path) -> None:
    url = save(tmp_path, 8)
    (Path(url) / "model.safetensors").write_bytes(b"damaged")
    assert save(tmp_path, 8) == url
    assert verify(url) == ""


def cut(folder: Path) -> None:
    path = folder / "zero" / "rank-00000-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def flip_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def lose_file(folder: Path) -> None:
    (folder / "state.json").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / "MANIFEST.json").unlink()


def garble_manifest(folder: Path) -> None:
    (folder / "MANIFEST.json").write_bytes(b"\0\xff garbage")


def empty_listing(folder: Path) -> None:
    path = folder / "MANIFEST.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": {}}))


def list_listing(folder: Path) -> None:
    path = folder / "MANIFEST.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": ["model.safetensors"]}))


def unlist_partition(folder: Path) -> None:
    path = folder / "MANIFEST.json"
    document = json.loads(path.read_text())
    document["files"] = {name: entry for name, entry in document["files"].items() if not name.startswith("zero")}
    path.write_text(json.dumps(document))


def another_version(folder: Path) -> None:
    path = folder / "MANIFEST.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 9}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "zero/rank-00000-of-00001.safetensors has"),
        (flip_bit, "model.safetensors does not match its hash"),
        (lose_file, "not found"),
        (lose_manifest, "not found"),
        (garble_manifest, "not valid JSON"),
        (empty_listing, "lists no state.json"),
        (list_listing, "malformed"),
        (unlist_partition, "lists no zero/"),
        (another_version, "has version 9"),
    ],
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    save(tmp_path, 8)
    damage(Path(save(tmp_path, 16)))
    found = find_checkpoint(str(tmp_path), world=ALONE)
    assert found is not None
    assert found.images_seen == 8
    assert len(found.passed_over) == 1
    assert found.passed_over[0].startswith("images-000000000016: ")
    assert words in found.passed_over[0]


def test_every_single_flipped_byte_is_noticed(tmp_path: Path) -> None:
    folder = Path(save(tmp_path, 8))
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        data = bytearray(path.read_bytes())
        for position in range(0, len(data), max(1, len(data) // 7)):
            data[position] ^= 0x40
            path.write_bytes(data)
            assert verify(str(folder)) != "", (path.name, position)
            data[position] ^= 0x40
        path.write_bytes(data)
    assert verify(str(folder)) == ""


def test_when_all_are_damaged_the_run_does_not_start_over_silently(tmp_path: Path) -> None:
    flip_bit(Path(save(tmp_path, 8)))
    cut(Path(save(tmp_path, 16)))
    with pytest.raises(
        CheckpointError, match=r"all 2 checkpoints are damaged: images-000000000016.*images-000000000008"
    ):
        find_checkpoint(str(tmp_path), world=ALONE)


def test_a_folder_without_checkpoints_is_a_new_run(tmp_path: Path) -> None:
    assert find_checkpoint(str(tmp_path / "none"), world=ALONE) is None


def test_every_rank_is_told_what_rank_0_found(tmp_path: Path) -> None:
    save(tmp_path, 8)
    flip_bit(Path(save(tmp_path, 16)))
    found = run_ranks(3, lambda world: find_checkpoint(str(tmp_path), world=world))
    assert len({str(result) for result in found}) == 1
    assert getattr(found[2], "images_seen", None) == 8


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    url = save(tmp_path, 8)
    other = FlatLayout.of([[("a.weight", (5, 4))], [("a.bias", (5,)), ("s", ())]])
    with pytest.raises(CheckpointError, match=r"a.weight is \(5, 3\) in the checkpoint, \(5, 4\) in the configured"):
        restored(url, ALONE, other)


@pytest.mark.parametrize("unlucky", [0, 1])
def test_a_full_disk_on_one_rank_fails_on_all_and_leaves_the_previous_checkpoint(
    tmp_path: Path, unlucky: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_on(2, tmp_path)
    original = filesystem.write_bytes

    def write(url: str, data: bytes) -> None:
        if url.endswith(f"rank-0000{unlucky}-of-00002.safetensors"):
            raise StorageError("cannot write: No space left on device", where=url)
        original(url, data)

    monkeypatch.setattr(filesystem, "write_bytes", write)
    results: list[Any] = run_ranks(2, lambda world: save(tmp_path, 160, world=world))
    monkeypatch.undo()
    for result in results:
        assert isinstance(result, StorageError), result
        assert f"rank {unlucky}" in result.message
        assert "No space left" in result.message
    found = find_checkpoint(str(tmp_path), world=ALONE)
    assert found is not None
    assert (found.images_seen, found.passed_over) == (80, ())
    assert filesystem.list_names(str(tmp_path)) == ["images-000000000080", "latest"]


@pytest.mark.parametrize("name", ["MANIFEST.json", "latest"])
def test_a_commit_that_fails_fails_on_all_ranks(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_on(2, tmp_path)
    original = filesystem.write_bytes

    def write(url: str, data: bytes) -> None:
        if url.endswith(name):
            raise StorageError("cannot write: Input/output error", where=url)
        original(url, data)

    monkeypatch.setattr(filesystem, "write_bytes", write)
    results = run_ranks(2, lambda world: save(tmp_path, 160, world=world))
    assert all(isinstance(result, StorageError) for result in results), results
    found = find_checkpoint(str(tmp_path), world=ALONE)
    assert found is not None
    assert found.passed_over == ()


def test_a_stale_folder_that_cannot_be_removed_fails_on_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(url: str, *, recursive: bool = False) -> None:
        raise StorageError("cannot remove: permission denied", where=url)

    monkeypatch.setattr(filesystem, "remove", remove)
    results = run_ranks(2, lambda world: save(tmp_path, 160, world=world))
    assert all(isinstance(result, StorageError) for result in results), results


def test_no_pickle_is_loaded_anywhere_in_the_product() -> None:
    sources = Path(checkpoint.__file__).parents[1].rglob("*.py")
    pickled = re.compile(r"(?<!safetensors\.)\btorch\.(load|save)\(|\bpickle\.\w|import pickle|allow_pickle=True")
    found = [
        f"{path.name}: {line.strip()}"
        for path in sources
        for line in path.read_text(encoding="utf-8").splitlines()
        if pickled.search(line)
    ]
    assert found == []


@pytest.fixture
def store(memory_store: None) -> Iterator[str]:
    url = f"memory://checkpoints-{secrets.token_hex(4)}"
    yield url
    filesystem.remove(url, recursive=True)


def committed(root: str) -> list[int]:
    """Return the places of the checkpoints that have a manifest."""
    names = [name for name in filesystem.list_names(root) if name.startswith("images-")]
    manifests = [name for name in names if filesystem.exists(f"{root}/{name}/MANIFEST.json")]
    return [int(name.removeprefix("images-")) for name in manifests]


def save_killed_before_the_manifest(root: str, images_seen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = filesystem.write_bytes

    def write(url: str, data: bytes) -> None:
        if url.endswith("MANIFEST.json"):
            raise KeyboardInterrupt
        original(url, data)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "write_bytes", write)
        with pytest.raises(KeyboardInterrupt):
            save(root, images_seen)


class TestOnAnObjectStore:
    def test_two_ranks_write_what_one_reads(self, store: str) -> None:
        url = saved_on(2, store)
        assert url == f"{store}/images-000000000080"
        assert verify(url) == ""
        found = restored(url, ALONE)
        alone = FakeEngine(LAYOUT, ALONE)
        for name in VECTORS:
            expected, got = alone.gather_named(alone.vectors[name]), found[name]
            assert got is not None
            assert expected is not None
            assert all(torch.equal(expected[key], got[key]) for key in expected), name

    def test_without_a_manifest_it_is_no_checkpoint(self, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
        save_killed_before_the_manifest(store, 8, monkeypatch)
        assert find_checkpoint(store, world=ALONE) is None
        save(store, 16)
        save_killed_before_the_manifest(store, 24, monkeypatch)
        found = find_checkpoint(store, world=ALONE)
        assert found is not None
        assert (found.images_seen, found.passed_over) == (16, ())
        save(store, 24)
        assert verify(f"{store}/images-000000000024") == ""
        assert filesystem.list_names(store) == ["images-000000000016", "images-000000000024", "latest"]

    def test_what_a_kill_left_does_not_count_as_kept(self, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for images in (8, 16):
            save(store, images, keep=2)
        for images in (24, 32, 40):
            save_killed_before_the_manifest(store, images, monkeypatch)
        assert committed(store) == [8, 16]
        save(store, 48, keep=2)
        assert filesystem.list_names(store) == ["images-000000000016", "images-000000000048", "latest"]

    def test_an_object_that_did_not_arrive_whole_is_not_committed(
        self, store: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save(store, 8)
        original = filesystem.write_bytes

        def write(url: str, data: bytes) -> None:
            original(url, data[:-1] if url.endswith("model.safetensors") else data)

        monkeypatch.setattr(filesystem, "write_bytes", write)
        with pytest.raises(StorageError, match=r"model\.safetensors"):
            save(store, 16)
        monkeypatch.undo()
        assert committed(store) == [8]

    def test_a_commit_is_not_taken_back_when_what_follows_fails(
        self, store: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save(store, 8)
        original = filesystem.write_bytes

        def write(url: str, data: bytes) -> None:
            if url.endswith("latest"):
                raise StorageError("cannot write: slow down", where=url)
            original(url, data)

        monkeypatch.setattr(filesystem, "write_bytes", write)
        with pytest.raises(StorageError, match="slow down"):
            save(store, 16)
        found = find_checkpoint(store, world=ALONE)
        assert found is not None
        assert (found.images_seen, found.passed_over) == (16, ())

    def test_damage_is_named_and_passed_over(self, store: str) -> None:
        save(store, 8)
        url = save(store, 16)
        filesystem.write_bytes(f"{url}/model.safetensors", b"damaged")
        found = find_checkpoint(store, world=ALONE)
        assert found is not None
        assert found.images_seen == 8
        assert "model.safetensors has 7 bytes" in found.passed_over[0]


def test_what_one_rank_cannot_read_is_raised_on_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared file system can fail on one node alone; the others must not wait for it in a collective."""
    url = saved_on(2, tmp_path)
    original = filesystem.read_bytes

    def read(path: str) -> bytes:
        if threading.current_thread() is failing and path.endswith(".safetensors"):
            raise StorageError("cannot read: Input/output error", where=path)
        return original(path)

    failing: threading.Thread | None = None

    def load(world: World) -> object:
        nonlocal failing
        if world.rank == 1:
            failing = threading.current_thread()
        world.barrier()
        return restored(url, world)

    monkeypatch.setattr(filesystem, "read_bytes", read)
    results = run_ranks(2, load)
    assert [type(result) for result in results] == [StorageError, StorageError], results
    assert "rank-00001-of-00002" in str(results[0]), "rank 0 says whose file it was"


def test_a_folder_that_cannot_be_listed_is_an_error_on_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str) -> list[str]:
        raise StorageError("cannot list: Stale file handle", where=url)

    monkeypatch.setattr(filesystem, "list_names", refuse)
    results = run_ranks(2, lambda world: find_checkpoint(str(tmp_path), world=world))
    assert [type(result) for result in results] == [StorageError, StorageError], results


def test_older_checkpoints_stay_when_the_new_one_does_not_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a disk gives back may be other than what was written to it; then the ones before are all there is."""
    for images in (8, 16):
        save(tmp_path, images, keep=2)
    original = filesystem.read_bytes

    def read(url: str) -> bytes:
        data = original(url)
        return data[:-1] + bytes([data[-1] ^ 1]) if "images-000000000024/zero" in url else data

    monkeypatch.setattr(filesystem, "read_bytes", read)
    with pytest.raises(StorageError, match="differ from what was written: zero/rank-00000-of-00001") as caught:
        save(tmp_path, 24, keep=2)
    assert "check the disk" in caught.value.hint
    names = sorted(path.name for path in tmp_path.glob("images-*"))
    assert names == [checkpoint_name(images) for images in (8, 16, 24)]
    found = find_checkpoint(str(tmp_path), world=ALONE)
    assert found is not None
    assert found.images_seen == 16


def test_a_part_of_the_network_gets_a_folder_and_the_rest_one_file(tmp_path: Path) -> None:
    engine = FakeEngine(LAYOUT, ALONE)
    snapshot = copy_state(engine=engine.as_engine(), ema=average_of(engine), images_seen=8, state={}, world=ALONE)
    part = ModelPart("a", "a.", '{"of": "a"}', "weights.safetensors")
    folder = Path(write_checkpoint(str(tmp_path), snapshot, keep=2, world=ALONE, parts=[part]))
    assert verify(str(folder)) == ""
    assert (folder / "a" / "config.json").read_text() == '{"of": "a"}'
    named = engine.gather_named(engine.masters())
    assert named is not None
    own = safetensors.torch.load_file(folder / "a" / "weights.safetensors")
    rest = safetensors.torch.load_file(folder / "model.safetensors")
    assert {f"a.{name}": tensor.tolist() for name, tensor in own.items()} | {
        name: tensor.tolist() for name, tensor in rest.items()
    } == {name: tensor.tolist() for name, tensor in named.items()}
    assert sorted(own) == ["bias", "weight"]
