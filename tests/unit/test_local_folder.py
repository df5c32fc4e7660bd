"""Folders by path, wherever they lie."""

from __future__ import annotations

import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from synfundus.errors import CheckpointError, StorageError
from synfundus.storage import filesystem
from synfundus.storage.local_folder import UNFINISHED_NAME, folder_to_read, folder_to_replace


@pytest.fixture
def store(memory_store: None) -> Iterator[str]:
    url = f"memory://folders-{secrets.token_hex(4)}"
    yield url
    filesystem.remove(url, recursive=True)


OWN = r"a(/x\.bin)?|x|old\.txt|index\.json"


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def content(url: str) -> dict[str, bytes]:
    with folder_to_read(url) as folder:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("remote", [False, True])
def test_a_folder_is_replaced_as_a_whole(remote: bool, store: str, tmp_path: Path) -> None:
    url = f"{store}/run/export" if remote else str(tmp_path / "run" / "export")
    first, second = {"a/x.bin": b"1", "old.txt": b"2", "index.json": b"{}"}, {"a/x.bin": b"3", "index.json": b"[]"}
    for files in (first, second):
        with folder_to_replace(url, last=("index.json",), own=OWN) as work:
            fill(work, files)
        assert content(url) == files
    assert filesystem.list_names(url.removesuffix("/export")) == ["export"], "nothing is left beside it"


@pytest.mark.parametrize("remote", [False, True])
def test_a_block_that_fails_leaves_the_old_folder(remote: bool, store: str, tmp_path: Path) -> None:
    url = f"{store}/export" if remote else str(tmp_path / "export")
    with folder_to_replace(url, last=("x",), own=OWN) as work:
        fill(work, {"x": b"1"})

    def fail() -> None:
        with folder_to_replace(url, last=("x",), own=OWN) as work:
            fill(work, {"x": b"2"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert content(url) == {"x": b"1"}
    assert [path.name for path in tmp_path.iterdir()] == ([] if remote else ["export"])


def test_a_replacement_that_stops_half_way_is_unfinished(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder_to_replace(store, last=("index.json",), own=OWN) as work:
        fill(work, {"x": b"1", "index.json": b"{}"})

    def refuse(*_: object, **__: object) -> None:
        raise StorageError("no")

    monkeypatch.setattr(filesystem, "upload_folder", refuse)
    with pytest.raises(StorageError), folder_to_replace(store, last=("index.json",), own=OWN) as work:
        fill(work, {"x": b"2", "index.json": b"{}"})
    monkeypatch.undo()
    assert filesystem.list_names(store) == [UNFINISHED_NAME]
    with folder_to_replace(store, last=("index.json",), own=OWN) as work:
        fill(work, {"x": b"2", "index.json": b"{}"})
    assert content(store) == {"x": b"2", "index.json": b"{}"}


def test_the_copy_is_private_and_gone_and_errors_name_the_url(store: str) -> None:
    filesystem.write_bytes(f"{store}/vae/config.json", b"{}")
    copies = []

    def fail() -> None:
        with folder_to_read(f"{store}/vae") as folder:
            copies.append(folder)
            assert (folder / "config.json").read_bytes() == b"{}"
            assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
            raise CheckpointError(f"nothing in {folder}", where=str(folder / "config.json"))

    with pytest.raises(CheckpointError) as caught:
        fail()
    assert not copies[0].exists()
    assert caught.value.where == f"{store}/vae/config.json"
    assert str(caught.value) == f"nothing in {store}/vae\nwhere: {store}/vae/config.json"


def test_a_local_folder_is_read_where_it_lies(tmp_path: Path) -> None:
    with folder_to_read(str(tmp_path)) as folder:
        assert folder == tmp_path
