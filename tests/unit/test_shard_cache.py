"""When a read waits for the copy of its shard, and when it asks the store itself."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from synfundus.errors import CorruptShard, StorageError
from synfundus.storage.cache import shard_cache
from synfundus.storage.cache.shard_cache import CachedBytes, ShardCache


class Copy(io.BytesIO):
    name = "copy"


class SlowCopies:
    """A cache whose copies come when the test says so; ``lost`` never come."""

    def __init__(self, lost: frozenset[str] = frozenset()) -> None:
        self.come = {url: threading.Event() for url in "abcd"}
        self.lost = lost

    def open(self, url: str, *, sha256: str, size: int | None = None) -> IO[bytes]:
        del sha256, size
        assert self.come[url].wait(20)
        if url in self.lost:
            raise StorageError("no room", where=url)
        return Copy()


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowCopies]:
    monkeypatch.setattr(shard_cache, "_FIRST_WAIT_S", 0.3)
    monkeypatch.setattr(shard_cache, "_POLL_S", 0.01)
    slow = SlowCopies(frozenset("d"))
    yield slow
    for event in slow.come.values():
        event.set()


def shards_of(copies: Any) -> ShardCache:
    return ShardCache(copies)


def waited_s(shards: ShardCache, wanted: Any) -> float:
    began = time.monotonic()
    shards.wait_for(wanted)
    return time.monotonic() - began


def test_a_first_read_waits_a_moment_and_no_longer_for_copies_that_do_not_come(copies: SlowCopies) -> None:
    shards = shards_of(copies)
    wanted = shards.request("a", sha256="", size=1)
    assert 0.25 < waited_s(shards, wanted) < 5
    assert not wanted.done()
    assert waited_s(shards, wanted) < 0.2, "only the first"
    shards.close()


def test_a_copy_that_comes_in_time_is_waited_for(copies: SlowCopies) -> None:
    shards = shards_of(copies)
    wanted = shards.request("a", sha256="", size=1)
    threading.Timer(0.1, copies.come["a"].set).start()
    shards.wait_for(wanted)
    assert wanted.done()
    shards.close()


def test_by_the_pace_of_the_others_a_read_waits_or_does_not(
    copies: SlowCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shards_of(copies)
    first, second = (shards.request(url, sha256="", size=1) for url in "ab")
    time.sleep(0.05)
    copies.come["a"].set()
    first.result(5)
    monkeypatch.setattr(shard_cache, "_MAX_WAIT_S", 0.3)
    assert waited_s(shards, second) >= 0.25, "one of two took no time, so the other is soon"
    monkeypatch.setattr(shard_cache, "_SOON_S", 1e-6)
    assert waited_s(shards, second) < 0.2, "what is not soon is not waited for"
    shards.close()


def test_a_copy_that_cannot_be_made_ends_the_wait(copies: SlowCopies) -> None:
    shards = shards_of(copies)
    copies.come["d"].set()
    wanted = shards.request("d", sha256="", size=1)
    assert waited_s(shards, wanted) < 0.25
    assert isinstance(wanted.exception(), StorageError)
    shards.close()


def wait_for_copy(source: CachedBytes) -> None:
    ends = time.monotonic() + 5
    while not source.is_local:
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.mark.parametrize("fault", [StorageError("cannot read: Input/output error"), CorruptShard("another checksum")])
def test_a_copy_that_cannot_be_read_is_dropped_and_the_store_read(
    copies: SlowCopies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    class FailingCopy:
        def __init__(self, *_: Any, stream: Any, open_stream: Any) -> None:
            self.close = stream.close

        def read(self, *_: Any) -> bytes:
            raise fault

        def read_into(self, *_: Any) -> None:
            raise fault

    class Store:
        def read(self, start: int, size: int, wrong: Any) -> bytes:
            return bytes(range(start, start + size))

        def read_into(self, start: int, buffers: Any, wrong: Any) -> None:
            buffers[0][:] = bytes(range(start, start + len(buffers[0])))

    shards = shards_of(copies)
    discarded = []
    monkeypatch.setattr(shards, "discard", lambda url, *, sha256: discarded.append(url))
    monkeypatch.setattr(shard_cache, "LocalBytes", FailingCopy)
    source = shards.source("a", sha256="", size=100)
    source._remote = Store()  # type: ignore[assignment]
    copies.come["a"].set()
    wait_for_copy(source)
    assert source.read(3, 4, lambda data: "") == b"\3\4\5\6"
    wait_for_copy(source)
    target = bytearray(2)
    source.read_into(7, [memoryview(target)], lambda: "")
    assert target == b"\7\x08"
    assert discarded == ["a", "a"], "it was asked for again, and failed again"
    shards.close()
