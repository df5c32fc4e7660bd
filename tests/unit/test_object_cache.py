"""Copies of remote files: proved, shared, bounded, and nothing left by a kill."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from synfundus.errors import CorruptShard, StorageError
from synfundus.storage import filesystem
from synfundus.storage.cache import object_cache
from synfundus.storage.cache.object_cache import CacheFull, ObjectCache
from synfundus.storage.filesystem import StoreSettings

SIZE = 100_000


def content(number: int, size: int = SIZE) -> bytes:
    return random.Random(number).randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Shelf:
    """Files to be cached, as the store would hold them, with a count of the downloads."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.downloads = 0
        fetch = filesystem.fetch

        def counted(url: str, sink: IO[bytes], *, sha256: str = "") -> str:
            self.downloads += 1
            return fetch(url, sink, sha256=sha256)

        monkeypatch.setattr(filesystem, "fetch", counted)

    def put(self, number: int, size: int = SIZE) -> tuple[str, str]:
        """Write a file; returns (url, sha256)."""
        data = content(number, size)
        path = self.folder / f"{number}.tar"
        path.write_bytes(data)
        return str(path), sha256(data)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    (tmp_path / "store").mkdir()
    return Shelf(tmp_path / "store", monkeypatch)


@pytest.fixture
def cache(tmp_path: Path) -> ObjectCache:
    return ObjectCache(tmp_path / "cache", 10 * SIZE)


def copies(cache: ObjectCache) -> list[Path]:
    return sorted(cache._objects.glob("*.copy"))


def read(cache: ObjectCache, url: str, digest: str) -> bytes:
    with cache.open(url, sha256=digest, size=SIZE) as found:
        return found.read()


def test_a_file_is_downloaded_once(cache: ObjectCache, shelf: Shelf) -> None:
    url, digest = shelf.put(1)
    for _ in range(3):
        assert read(cache, url, digest) == content(1)
    with cache.open(url, sha256=digest) as found:
        assert Path(found.name).read_bytes() == content(1)
    assert shelf.downloads == 1


def test_the_same_location_with_other_content_is_another_copy(cache: ObjectCache, shelf: Shelf) -> None:
    url, old = shelf.put(1)
    read(cache, url, old)
    Path(url).write_bytes(content(2))
    assert read(cache, url, sha256(content(2))) == content(2)
    assert read(cache, url, old) == content(1)


def test_a_file_of_another_hash_is_refused_and_not_kept(cache: ObjectCache, shelf: Shelf) -> None:
    url, digest = shelf.put(1)
    with pytest.raises(CorruptShard) as caught:
        cache.open(url, sha256="0" * 64)
    assert digest in caught.value.message
    assert "0" * 64 in caught.value.message
    assert list(cache._objects.iterdir()) == []


def damage_bytes(copy: Path) -> None:
    facts = copy.stat()
    with copy.open("r+b") as stream:
        stream.seek(500)
        stream.write(b"damage")
    os.utime(copy, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def damage_size(copy: Path) -> None:
    os.truncate(copy, SIZE // 2)


def damage_record(copy: Path) -> None:
    copy.with_suffix(".json").write_text("{")


def remove_record(copy: Path) -> None:
    copy.with_suffix(".json").unlink()


def remove_copy(copy: Path) -> None:
    copy.unlink()


@pytest.mark.parametrize("damage", [damage_bytes, damage_size, damage_record, remove_record, remove_copy])
def test_a_damaged_copy_is_downloaded_again(
    cache: ObjectCache, shelf: Shelf, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    url, digest = shelf.put(1)
    read(cache, url, digest)
    damage(copies(cache)[0])
    next_process = ObjectCache(tmp_path / "cache", 10 * SIZE)
    assert read(next_process, url, digest) == content(1)
    assert shelf.downloads == 2


def test_a_copy_written_to_is_noticed_by_the_process_that_proved_it(cache: ObjectCache, shelf: Shelf) -> None:
    url, digest = shelf.put(1)
    read(cache, url, digest)
    time.sleep(0.02)
    copies(cache)[0].write_bytes(content(2))
    assert read(cache, url, digest) == content(1)


def test_a_copy_that_proved_wrong_after_all_is_downloaded_again(cache: ObjectCache, shelf: Shelf) -> None:
    url, digest = shelf.put(1)
    read(cache, url, digest)
    damage_bytes(copies(cache)[0])
    assert read(cache, url, digest) != content(1), "size and time are as recorded, this process has hashed it before"
    cache.discard(url, sha256=digest)
    assert read(cache, url, digest) == content(1)


def test_the_copies_used_longest_ago_make_room(cache: ObjectCache, shelf: Shelf) -> None:
    files = [shelf.put(number) for number in range(12)]
    for url, digest in files[:10]:
        read(cache, url, digest)
        time.sleep(0.002)
    read(cache, *files[0])
    for url, digest in files[10:]:
        read(cache, url, digest)
    assert len(copies(cache)) == 10
    assert len(list(cache._objects.glob("*.json"))) == 10
    shelf.downloads = 0
    for kept in (0, *range(3, 12)):
        read(cache, *files[kept])
    assert shelf.downloads == 0


def test_a_copy_that_is_read_is_not_removed(cache: ObjectCache, shelf: Shelf) -> None:
    held = [cache.open(url, sha256=digest, size=SIZE) for url, digest in map(shelf.put, range(3))]
    for number in range(3, 20):
        read(cache, *shelf.put(number))
    assert all(Path(found.name).exists() for found in held)
    assert [found.read() for found in held] == [content(number) for number in range(3)]
    for found in held:
        found.close()


def test_no_room_is_an_error_the_reader_can_go_around(cache: ObjectCache, shelf: Shelf) -> None:
    held = [cache.open(url, sha256=digest) for url, digest in map(shelf.put, range(10))]
    with pytest.raises(CacheFull, match=r"1000000 of 1000000 are in use"):
        cache.open(shelf.put(11)[0], sha256=sha256(content(11)))
    held.pop().close()
    assert read(cache, *shelf.put(11)) == content(11)
    for found in held:
        found.close()
    url, digest = shelf.put(12, 11 * SIZE)
    there = sorted(path.name for path in cache._objects.glob("*.copy"))
    with pytest.raises(CacheFull, match="do not fit into the cache"):
        cache.open(url, sha256=digest)
    assert sorted(path.name for path in cache._objects.glob("*.copy")) == there, "nothing is removed for nothing"


def test_a_full_disk_counts_as_no_room(cache: ObjectCache, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectCache, "_free_bytes", lambda self: SIZE - 1)
    with pytest.raises(CacheFull):
        read(cache, *shelf.put(1))


def test_nobody_else_may_look_in(tmp_path: Path, shelf: Shelf) -> None:
    before = os.umask(0)
    try:
        cache = ObjectCache(tmp_path / "cache", 10 * SIZE)
        read(cache, *shelf.put(1))
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "cache", *(tmp_path / "cache").rglob("*"))}
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}


def test_a_folder_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(StorageError, match="others may write"):
        ObjectCache(tmp_path / "open", SIZE)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="the cache cannot be used"):
        ObjectCache(tmp_path / "file" / "cache", SIZE)


def test_the_settings_say_whether_there_is_a_cache(tmp_path: Path) -> None:
    filesystem.configure(None)
    assert object_cache.configured_cache() is None
    try:
        filesystem.configure(StoreSettings(60, 5, 5, str(tmp_path / "c"), SIZE))
        assert isinstance(object_cache.configured_cache(), ObjectCache)
    finally:
        filesystem.configure(None)


def test_a_download_that_brings_nothing_is_not_waited_for_for_ever(
    cache: ObjectCache, shelf: Shelf, tmp_path: Path
) -> None:
    url, digest = shelf.put(1)
    filesystem.configure(StoreSettings(1.5, 1, 1, None, 1))
    try:
        with cache._download_lock(object_cache._Entry(url, digest)):
            began = time.monotonic()
            assert read(ObjectCache(tmp_path / "cache", 10 * SIZE), url, digest) == content(1)
        assert 1 < time.monotonic() - began < 10
    finally:
        filesystem.configure(None)


READER = """
import hashlib, random, sys, time
from pathlib import Path
from synfundus.storage import filesystem
from synfundus.storage.cache.object_cache import ObjectCache, CacheFull
folder, store, log, seed, num_files, num_reads, size, slow_s = sys.argv[1:]
fetch = filesystem.fetch
def slow(url, sink, *, sha256=""):
    open(log, "a").write(url + chr(10))
    found = fetch(url, sink, sha256=sha256)
    time.sleep(float(slow_s))
    return found
filesystem.fetch = slow
cache = ObjectCache(Path(folder), 4 * int(size))
draws = random.Random(int(seed))
wrong = 0
for _ in range(int(num_reads)):
    number = draws.randrange(int(num_files))
    data = random.Random(number).randbytes(int(size))
    while True:
        try:
            found = cache.open(f"{store}/{number}.tar", sha256=hashlib.sha256(data).hexdigest(), size=int(size))
            break
        except CacheFull:
            time.sleep(0.01)
    with found:
        wrong += found.read() != data
print("wrong", wrong, flush=True)
sys.exit(wrong != 0)
"""


def start_reader(
    tmp_path: Path, seed: int, num_files: int, num_reads: int, slow_s: float = 0.0
) -> subprocess.Popen[str]:
    arguments = (tmp_path / "cache", tmp_path / "store", tmp_path / "log", seed, num_files, num_reads, SIZE, slow_s)
    return subprocess.Popen(
        [sys.executable, "-c", READER, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


def test_of_several_processes_one_downloads_and_the_others_wait(tmp_path: Path, shelf: Shelf) -> None:
    shelf.put(0)
    processes = [start_reader(tmp_path, seed, 1, 3, slow_s=0.7) for seed in range(4)]
    for process in processes:
        ended(process)
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def kills(tmp_path: Path, shelf: Shelf, num_kills: int) -> int:
    """Kill readers at random moments while others read; returns how many copies were wrong afterwards."""
    for number in range(8):
        shelf.put(number)
    draws = random.Random(5)
    survivor = start_reader(tmp_path, 99, 8, 40 * num_kills, slow_s=0.001)
    for kill in range(num_kills):
        victim = start_reader(tmp_path, kill, 8, 10_000, slow_s=draws.choice((0.0, 0.02)))
        time.sleep(0.6 + draws.random() * 0.8)
        victim.send_signal(signal.SIGKILL)
        victim.communicate(timeout=20)
        assert victim.returncode == -signal.SIGKILL
    ended(survivor)
    cache = ObjectCache(tmp_path / "cache", 4 * SIZE)
    wrong = sum(
        read(cache, f"{shelf.folder}/{number}.tar", sha256(content(number))) != content(number) for number in range(8)
    )
    assert len(copies(cache)) <= 4
    assert list(cache._objects.glob("*.part")) == [], "the next download removes what kills left"
    return wrong


def test_kills_leave_nothing_that_counts(tmp_path: Path, shelf: Shelf) -> None:
    assert kills(tmp_path, shelf, 3) == 0


@pytest.mark.slow
def test_campaign_of_kills(tmp_path: Path, shelf: Shelf) -> None:
    num_kills = 50
    wrong = kills(tmp_path, shelf, num_kills)
    print(json.dumps({"name": "cache survives SIGKILL", "passed": num_kills if not wrong else 0, "of": num_kills}))
    assert wrong == 0
