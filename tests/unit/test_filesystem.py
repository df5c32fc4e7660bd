"""Files that are there completely or not at all, and errors that name the place."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from synfundus.config.machine import StorageConfig
from synfundus.errors import CorruptShard, StorageError
from synfundus.storage import filesystem, safe_files
from synfundus.storage.filesystem import StoreSettings
from synfundus.storage.s3 import store_connection
from synfundus.storage.safe_files import read_until_valid


def test_a_path_and_a_file_url_are_the_same_place(tmp_path: Path) -> None:
    filesystem.write_bytes(f"file://{tmp_path}/a/b.bin", b"content")
    assert filesystem.read_bytes(str(tmp_path / "a" / "b.bin")) == b"content"
    assert filesystem.local_path(f"file://{tmp_path}/a") == tmp_path / "a"
    assert filesystem.is_local(str(tmp_path))
    assert not filesystem.is_local("s3://bucket/x")


@pytest.mark.parametrize(
    "url", ["pipe:cat /etc/passwd", "http://host/x", "gs://b/x", "simplecache::s3://b/x", "memory://x"]
)
def test_other_protocols_are_refused(url: str) -> None:
    with pytest.raises(StorageError, match="not allowed"):
        filesystem.protocol_of(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://[abc/x", "not a valid bucket name"),
        ("file://localhost/x", "neither a path nor a URL"),
        ("file://x", "neither a path nor a URL"),
        ("FILE:///x", "'FILE' is not allowed"),
        ("S3://bucket/x", "'S3' is not allowed"),
        ("s3:/bucket/x", "neither a path nor a URL"),
        ("s3:bucket/x", "neither a path nor a URL"),
        ("file:/x", "neither a path nor a URL"),
    ],
)
def test_what_looks_like_a_url_and_is_none_is_refused_and_not_taken_for_a_path(url: str, said: str) -> None:
    with pytest.raises(StorageError, match=said):
        filesystem.protocol_of(url)


@pytest.mark.parametrize("path", ["./s3:x", "a:b", "/tmp/s3:/x", "a/b://c", "~/file:x"])
def test_colons_elsewhere_are_part_of_a_path(path: str) -> None:
    assert filesystem.protocol_of(path) == "file"


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


def test_links_to_folders_are_listed_and_loops_end(tmp_path: Path) -> None:
    elsewhere, source = tmp_path / "elsewhere", tmp_path / "source"
    for folder in (elsewhere / "deep", source / "real", source / ".hidden"):
        folder.mkdir(parents=True)
    (elsewhere / "deep" / "a.png").write_bytes(b"a")
    (source / "real" / "b.png").write_bytes(b"bb")
    (source / "train").symlink_to(elsewhere)
    (source / "alias").symlink_to(source / "real")
    (source / ".secret").symlink_to(elsewhere)
    (source / "gone").symlink_to(tmp_path / "nowhere")
    (source / "real" / "up").symlink_to(source)
    (elsewhere / "back").symlink_to(source)
    (source / "outer").symlink_to(tmp_path)
    listed = filesystem.list_files(str(source))
    assert {"train/deep/a.png": 1, "real/b.png": 2, "alias/b.png": 2}.items() <= listed.items()
    assert not [name for name in listed if "/up/" in name or "/back/" in name or "source" in name]
    (tmp_path / "linked").symlink_to(source)
    assert filesystem.list_files(str(tmp_path / "linked")) == listed


def test_everything_below_a_folder_is_listed_where_it_is_asked_for(tmp_path: Path) -> None:
    for name in ("a.png", "x/b.png", ".c.png", ".t/d.png", "x/.t/u/e.png", ".t/.f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    for name in ("gone.png", "x/gone", "x/.gone"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to("loop")
    assert set(filesystem.list_files(str(tmp_path))) == {"a.png", "x/b.png"}
    found = filesystem.list_files(str(tmp_path), everything=True)
    hidden = {"x/.t/u/e.png": 0, ".t/d.png": 0, ".t/.f.png": 0, ".c.png": 2}
    broken = dict.fromkeys(("gone.png", "x/gone", "x/.gone", "loop"), safe_files.BROKEN)
    assert found == {"a.png": 2, "x/b.png": 2, **hidden, **broken}


def test_of_a_hidden_folder_not_more_is_listed_than_anyone_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_files, "MOST_HIDDEN", 5)
    for number in range(9):
        (tmp_path / ".snapshots" / str(number)).mkdir(parents=True)
        (tmp_path / ".snapshots" / str(number) / "a.png").touch()
    assert len(filesystem.list_files(str(tmp_path), everything=True)) == 5


def test_folders_that_are_all_linked_to_each_other_are_listed_in_time(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "a.png").write_bytes(b"")
        for other in range(9):
            (tmp_path / f"{number}" / f"to {other}").symlink_to(tmp_path / f"{other}")
    listed = filesystem.list_files(str(tmp_path))
    short = {f"{one}/to {other}/a.png" for one in range(9) for other in range(9) if one != other}
    assert {f"{number}/a.png" for number in range(9)} | short <= set(listed)
    assert len(listed) <= 9 + 81


@pytest.mark.usefixtures("memory_store")
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


def test_files_below_a_folder_are_listed_by_relative_name(tmp_path: Path) -> None:
    for name in ("b.bin", "a/c.bin", "a/d/e.bin", ".hidden", "a/.x/f.bin", "a/.y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert list(filesystem.list_files(str(tmp_path)).items()) == [("a/c.bin", 7), ("a/d/e.bin", 9), ("b.bin", 5)]
    assert filesystem.list_files(f"file://{tmp_path}/a/d") == {"e.bin": 9}
    assert filesystem.list_files(str(tmp_path / "none")) == {}


@pytest.mark.usefixtures("memory_store")
def test_the_memory_store_lists_the_same_way() -> None:
    try:
        for name in ("b.bin", "a/c.bin", ".hidden"):
            filesystem.write_bytes(f"memory://synfundus-list/{name}", b"12")
        assert filesystem.list_files("memory://synfundus-list") == {"a/c.bin": 2, "b.bin": 2}
    finally:
        filesystem.remove("memory://synfundus-list", recursive=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_folder_that_cannot_be_read_is_no_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o000)
    with pytest.raises(StorageError, match="permission denied"):
        filesystem.list_files(str(tmp_path))


def test_a_read_is_repeated_until_the_bytes_prove_right() -> None:
    answers = iter([b"short", b"wrong.....", b"worse.....", b"0123456789"])
    found = read_until_valid(lambda: (next(answers), ""), 10, lambda data: "" if data[0] == 48 else "bad", where="x")
    assert found == b"0123456789"


def test_the_same_wrong_bytes_three_times_are_the_files_own() -> None:
    asked: list[int] = []

    def read() -> tuple[bytes, str]:
        asked.append(len(asked))
        return b"wrong" if len(asked) != 2 else b"other", "v1"

    with pytest.raises(CorruptShard, match=r"bad, read 4 times \(now v1\)") as caught:
        read_until_valid(read, 5, lambda data: "bad", where="s3://b/x")
    assert caught.value.where == "s3://b/x"


def test_bytes_that_never_agree_are_not_asked_for_without_end() -> None:
    numbers = iter(range(1000))
    with pytest.raises(CorruptShard, match="read 16 times"):
        read_until_valid(lambda: (b"%03d" % next(numbers), ""), 3, lambda data: "bad", where="x")


def test_a_checked_read_of_a_local_file(tmp_path: Path) -> None:
    url = str(tmp_path / "x.bin")
    filesystem.write_bytes(url, b"0123456789")
    assert filesystem.read_checked(url, 2, 3, lambda data: "") == b"234"
    with pytest.raises(CorruptShard, match="1 bytes were read, 3 were expected"):
        filesystem.read_checked(url, 9, 3, lambda data: "")


def test_folders_are_copied_with_their_hashes(tmp_path: Path) -> None:
    filesystem.write_bytes(str(tmp_path / "from/a/b.bin"), b"content")
    hashes = filesystem.upload_folder(tmp_path / "from", str(tmp_path / "to"))
    assert hashes == {"a/b.bin": hashlib.sha256(b"content").hexdigest()}
    assert filesystem.download_folder(str(tmp_path / "to"), tmp_path / "back") == hashes
    with (tmp_path / "sink").open("w+b") as sink, pytest.raises(CorruptShard, match="instead of 00"):
        filesystem.fetch(str(tmp_path / "to/a/b.bin"), sink, sha256="00")


def test_settings_start_as_the_schema_says() -> None:
    assert asdict(store_connection.UNCONFIGURED) == StorageConfig().model_dump()


def test_settings_reach_child_processes_through_the_environment(tmp_path: Path) -> None:
    code = "from synfundus.storage.s3 import store_connection; print(store_connection.current_settings())"
    settings = StoreSettings(5, 4, 3, str(tmp_path), 2)
    try:
        filesystem.configure(settings)
        found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    finally:
        filesystem.configure(None)
    assert found.stdout.strip() == str(settings)
    assert store_connection.SETTINGS_VARIABLE not in os.environ
    with pytest.raises(StorageError, match="must be positive"):
        StoreSettings(0, 4, 3, None, 2)
