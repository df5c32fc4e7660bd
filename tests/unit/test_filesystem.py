"""Files that are there completely or not at all, and errors that name the place."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from synfundus.errors import StorageError
from synfundus.storage import filesystem


def test_a_path_and_a_file_url_are_the_same_place(tmp_path: Path) -> None:
    filesystem.write_bytes(f"file://{tmp_path}/a/b.bin", b"content")
    assert filesystem.read_bytes(str(tmp_path / "a" / "b.bin")) == b"content"
    assert filesystem.local_path(f"file://{tmp_path}/a") == tmp_path / "a"
    assert filesystem.is_local(str(tmp_path))
    assert not filesystem.is_local("s3://bucket/x")


@pytest.mark.parametrize("url", ["pipe:cat /etc/passwd", "http://host/x", "gs://b/x", "simplecache::s3://b/x"])
def test_other_protocols_are_refused(url: str) -> None:
    with pytest.raises(StorageError, match="not allowed"):
        filesystem.protocol_of(url)


def test_an_object_store_is_no_local_path() -> None:
    with pytest.raises(StorageError, match="needs a local path"):
        filesystem.local_path("s3://bucket/x")


@pytest.mark.parametrize(
    ("url", "parts", "expected"),
    [
        ("/a", ("b", "c.tar"), "/a/b/c.tar"),
        ("/a/", ("b/",), "/a/b"),
        ("s3://bucket", ("x", "y"), "s3://bucket/x/y"),
        ("rel", ("x",), "rel/x"),
        ("/a", (), "/a"),
    ],
)
def test_join(url: str, parts: tuple[str, ...], expected: str) -> None:
    assert filesystem.join(url, *parts) == expected


def test_join_below_the_root() -> None:
    assert Path(filesystem.join("/", "a")) == Path("/a")


def test_a_file_is_not_there_before_it_is_complete(tmp_path: Path) -> None:
    url = str(tmp_path / "x.bin")
    filesystem.write_bytes(url, b"old")
    with filesystem.atomic_write(url) as stream:
        stream.write(b"new")
        stream.flush()
        assert filesystem.read_bytes(url) == b"old"
    assert filesystem.read_bytes(url) == b"new"
    assert filesystem.list_names(str(tmp_path)) == ["x.bin"]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    url = str(tmp_path / "x.bin")
    filesystem.write_bytes(url, b"old")

    def write_half() -> None:
        with filesystem.atomic_write(url) as stream:
            stream.write(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert filesystem.read_bytes(url) == b"old"
    assert filesystem.list_names(str(tmp_path)) == ["x.bin"]


def test_a_full_disk_is_a_storage_error_that_names_the_file(tmp_path: Path) -> None:
    url = str(tmp_path / "x.bin")
    with pytest.raises(StorageError, match="No space left") as caught, filesystem.atomic_write(url):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.where == url
    assert filesystem.list_names(str(tmp_path)) == []


def test_a_path_below_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        filesystem.write_bytes(str(tmp_path / "file" / "x"), b"")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_a_storage_error(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(StorageError, match="permission denied"):
        filesystem.write_bytes(str(folder / "x"), b"")


def test_what_is_not_there(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    assert not filesystem.exists(missing)
    assert not filesystem.is_dir(missing)
    assert filesystem.list_names(missing) == []
    filesystem.remove(missing, recursive=True)
    for read in (filesystem.read_bytes, filesystem.open_read, filesystem.file_size):
        with pytest.raises(StorageError, match="not found") as caught:
            read(missing)
        assert caught.value.where == missing


def test_ranges_names_and_sizes(tmp_path: Path) -> None:
    url = str(tmp_path / "x.bin")
    filesystem.write_bytes(url, bytes(range(100)))
    assert filesystem.read_range(url, 10, 5) == bytes(range(10, 15))
    assert filesystem.read_range(url, 95, 50) == bytes(range(95, 100))
    assert filesystem.file_size(url) == 100
    filesystem.make_dir(str(tmp_path / "b"))
    assert filesystem.list_names(str(tmp_path)) == ["b", "x.bin"]
    assert filesystem.is_dir(str(tmp_path / "b"))
    filesystem.remove(url)
    assert not filesystem.exists(url)


def test_the_memory_store_has_the_same_contract() -> None:
    url = "memory://synfundus-test/a/x.bin"
    filesystem.write_bytes(url, b"0123456789")
    try:
        assert filesystem.exists(url)
        assert filesystem.read_bytes(url) == b"0123456789"
        assert filesystem.read_range(url, 2, 3) == b"234"
        assert filesystem.list_names("memory://synfundus-test/a") == ["x.bin"]
        with pytest.raises(StorageError, match="not found"):
            filesystem.read_bytes("memory://synfundus-test/none")
    finally:
        filesystem.remove("memory://synfundus-test", recursive=True)
