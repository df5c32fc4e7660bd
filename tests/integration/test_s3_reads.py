"""Reads from a real S3 server through a proxy that spoils answers: nothing lost, nothing wrong, or a clear stop."""

from __future__ import annotations

import contextlib
import gc
import http.server
import io
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest
from fault_proxy import KINDS, FaultProxy
from s3_server import S3Server

from synfundus.errors import CorruptShard, StorageError
from synfundus.storage import filesystem
from synfundus.storage.filesystem import StoreSettings
from synfundus.storage.s3 import object_store, store_connection
from synfundus.storage.s3.store_connection import Client, request
from synfundus.storage.tarshard import ShardFiles, TarShardReader, write_shard

NUM_SAMPLES = 40
PATIENT = StoreSettings(deadline_s=60, connect_timeout_s=2, read_timeout_s=0.3, cache_dir=None, cache_max_bytes=1)


@dataclass(frozen=True)
class SpoiledShard:
    """A shard on a real server behind a proxy.

    Attributes:
        url: The tar.
        files: What its writer returned.
        samples: The members that must come back.
        proxy: Between the reader and the server.
    """

    url: str
    files: ShardFiles
    samples: list[dict[str, bytes]]
    proxy: FaultProxy

    def reader(self) -> TarShardReader:
        return TarShardReader(self.url, index_sha256=self.files.index_sha256)

    def read_checked(self, reader: TarShardReader, sample: int) -> dict[str, bytes]:
        """Read one sample by ranges whose checksums the index holds."""
        members = {}
        for extension, offset, size, checksum in reader.index.members(sample):
            wrong = partial(unlike, checksum)
            members[extension] = filesystem.read_checked(self.url, offset, size, wrong)
        return members


def unlike(checksum: int, data: bytes) -> str:
    return "" if crc32(data) == checksum else "not the checksum"


def make_samples(seed: int = 1) -> list[dict[str, bytes]]:
    rng = np.random.default_rng(seed)
    return [{"json": b'{"n": %d}' % n, "moments.npy": rng.bytes(3000 + 17 * n)} for n in range(NUM_SAMPLES)]


@pytest.fixture
def spoiled(s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SpoiledShard]:
    url = f"{s3_bucket}/train/000000.tar"
    samples = make_samples()
    keyed = [(f"k{n}", sample) for n, sample in enumerate(samples)]
    files = write_shard(url, keyed, extensions=("json", "moments.npy"))
    with FaultProxy(s3_server.port, seed=7) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        filesystem.configure(PATIENT)
        yield SpoiledShard(url, files, samples, proxy)
        filesystem.configure(None)


def read_many(spoiled: SpoiledShard, num_reads: int, *, threads: int) -> tuple[int, int]:
    """Read samples round and round; returns (lost, wrong)."""
    with ThreadPoolExecutor(threads) as pool:
        reader = spoiled.reader()

        def one(number: int) -> str:
            sample = number % NUM_SAMPLES
            try:
                members = spoiled.read_checked(reader, sample)
            except (StorageError, CorruptShard):
                return "lost"
            return "" if members == spoiled.samples[sample] else "wrong"

        outcomes = list(pool.map(one, range(num_reads)))
    return outcomes.count("lost"), outcomes.count("wrong")


@pytest.mark.parametrize("kind", KINDS)
def test_no_sample_is_lost_or_wrong(spoiled: SpoiledShard, kind: str) -> None:
    spoiled.proxy.kinds, spoiled.proxy.probability = (kind,), 0.2
    assert read_many(spoiled, 40, threads=8) == (0, 0)
    assert spoiled.proxy.counts[kind] > 5


def test_whole_objects_listings_and_writes_survive_all_kinds_at_once(spoiled: SpoiledShard, s3_bucket: str) -> None:
    spoiled.proxy.probability, spoiled.proxy.all_methods = 0.2, True
    written = {f"{s3_bucket}/w/{n}": bytes([n]) * (10_000 + n) for n in range(16)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: filesystem.write_bytes(*item), written.items()))
        assert list(pool.map(filesystem.read_bytes, written)) == list(written.values())
    assert filesystem.list_files(f"{s3_bucket}/w") == {str(n): 10_000 + n for n in range(16)}
    filesystem.remove(f"{s3_bucket}/w", recursive=True)
    assert filesystem.list_files(f"{s3_bucket}/w") == {}
    assert sum(spoiled.proxy.counts[kind] for kind in KINDS) > 5


def test_the_proxy_spoils_what_an_unchecked_read_returns(spoiled: SpoiledShard) -> None:
    spoiled.proxy.kinds, spoiled.proxy.probability = ("flip",), 1.0
    good = b"".join(filesystem.read_range(spoiled.url, 0, 1) for _ in range(4))
    assert len(set(good)) > 1, "each reading has another flipped bit"


def put_in_parts(url: str, data: bytes, part_bytes: int) -> None:
    """Upload an object as another program would: in parts, with nothing that says what is in it."""
    bucket, key = object_store.split(url)

    async def upload(client: Client) -> None:
        begun = await client.create_multipart_upload(Bucket=bucket, Key=key)
        common = {"Bucket": bucket, "Key": key, "UploadId": begun["UploadId"]}
        parts = []
        for number, start in enumerate(range(0, len(data), part_bytes), start=1):
            body = data[start : start + part_bytes]
            answer = await client.upload_part(**common, PartNumber=number, Body=body)
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        await client.complete_multipart_upload(**common, MultipartUpload={"Parts": parts})

    request("write", url, upload)


def test_an_object_that_nothing_proves_counts_when_two_readings_agree(
    spoiled: SpoiledShard, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, data = f"{s3_bucket}/parts", np.random.default_rng(0).bytes(5 * 2**20 + 1000)
    put_in_parts(url, data, 5 * 2**20)
    info = object_store.stat(url)
    assert (info.sha256, info.md5, info.size) == ("", "", len(data))
    spoiled.proxy.kinds, spoiled.proxy.probability = ("flip", "short"), 0.25
    monkeypatch.setattr(object_store, "CHUNK_BYTES", 2**20)
    assert [filesystem.read_bytes(url) == data for _ in range(8)] == [True] * 8
    assert spoiled.proxy.counts["flip"] > 5


class OtherPage(http.server.BaseHTTPRequestHandler):
    """Answers everything with one page, as the proxy of a hospital does that wants a password."""

    def do_GET(self) -> None:
        page = b"<?xml version='1.0'?><html><body>Please log in</body></html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_page_that_is_no_listing_is_no_empty_folder(spoiled: SpoiledShard, monkeypatch: pytest.MonkeyPatch) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), OtherPage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    filesystem.configure(StoreSettings(1, 1, 1, None, 1))
    for ask in (filesystem.list_files, filesystem.list_names, filesystem.is_dir):
        with pytest.raises(StorageError, match="the answer is not a listing"):
            ask("s3://bucket/set")
    server.shutdown()
    server.server_close()


class Trickle(http.server.BaseHTTPRequestHandler):
    """Promises a megabyte and sends it byte by byte, often enough that no silence is too long."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(2**20))
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(2**20):
                self.wfile.write(b"x")
                time.sleep(0.02)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_store_that_sends_a_trickle_is_given_up_at_the_deadline(
    spoiled: SpoiledShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Trickle)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    filesystem.configure(StoreSettings(2, 1, 1, None, 1))
    began = time.monotonic()
    assert object_store.try_download("bucket", "shard", io.BytesIO()) == ""
    assert 2 <= time.monotonic() - began < 10
    with pytest.raises(StorageError, match="no valid answer within 2 s"):
        filesystem.fetch("s3://bucket/shard", io.BytesIO(), sha256="0" * 64)
    assert time.monotonic() - began < 30
    server.shutdown()
    server.server_close()


def test_a_range_has_the_length_that_was_asked_for_whatever_its_headers_say(spoiled: SpoiledShard) -> None:
    spoiled.proxy.kinds, spoiled.proxy.probability = ("short",), 0.5
    assert {len(filesystem.read_range(spoiled.url, 512 * n, 4096)) for n in range(20)} == {4096}
    assert spoiled.proxy.counts["short"] > 3


def read_through_an_outage(spoiled: SpoiledShard, outage_s: float) -> float:
    """Read while the server is away for a time; returns the seconds until the first read after it."""
    reader = spoiled.reader()
    spoiled.proxy.down()
    timer = threading.Timer(outage_s, spoiled.proxy.up)
    timer.start()
    began = time.monotonic()
    assert spoiled.read_checked(reader, 3) == spoiled.samples[3]
    waited_s = time.monotonic() - began
    timer.join()
    assert read_many(spoiled, NUM_SAMPLES, threads=4) == (0, 0)
    return waited_s


def test_reading_goes_on_when_the_server_comes_back(spoiled: SpoiledShard) -> None:
    assert 1 <= read_through_an_outage(spoiled, 1.0) < 12


def test_a_server_that_stays_away_stops_the_read_at_the_deadline(spoiled: SpoiledShard) -> None:
    filesystem.configure(StoreSettings(1.5, 1, 1, None, 1))
    spoiled.proxy.down()
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"no valid answer within 1.5 s.*no connection") as caught:
        filesystem.read_bytes(spoiled.url)
    assert time.monotonic() - began < 4
    assert caught.value.where == spoiled.url
    assert f"127.0.0.1:{spoiled.proxy.port}" in caught.value.hint


def test_a_stalled_answer_does_not_outlast_the_deadline(spoiled: SpoiledShard) -> None:
    filesystem.configure(StoreSettings(2, 1, 60, None, 1))
    spoiled.proxy.kinds, spoiled.proxy.probability = ("stall",), 1.0
    began = time.monotonic()
    with pytest.raises(StorageError, match="no valid answer within 2 s"):
        filesystem.read_bytes(spoiled.url)
    assert time.monotonic() - began < 6


def test_the_deadline_is_for_a_whole_object_not_for_each_of_its_requests(
    spoiled: SpoiledShard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "CHUNK_BYTES", 2048)  # some seventy requests
    filesystem.configure(StoreSettings(3, 2, 2, None, 1))
    spoiled.proxy.kinds, spoiled.proxy.probability = ("503",), 0.35  # each request succeeds in well below three seconds
    began = time.monotonic()
    with (tmp_path / "copy").open("w+b") as sink, pytest.raises(StorageError, match="no valid answer within 3 s"):
        filesystem.fetch(spoiled.url, sink, sha256=spoiled.files.tar_sha256)
    assert time.monotonic() - began < 9
    assert spoiled.proxy.counts["reads"] - spoiled.proxy.counts["503"] > 4


def test_a_slow_but_sound_store_is_not_given_up(
    spoiled: SpoiledShard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "CHUNK_BYTES", 8192)  # 26 requests
    filesystem.configure(StoreSettings(20, 5, 5, None, 1))
    ticks = itertools.count()  # a second at each look at the clock: the requests last longer than the deadline
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + next(ticks), sleep=time.sleep)
    monkeypatch.setattr(store_connection, "time", clock)
    monkeypatch.setattr(object_store, "try_download", lambda *_: "")
    with (tmp_path / "copy").open("w+b") as sink:
        assert filesystem.fetch(spoiled.url, sink, sha256=spoiled.files.tar_sha256) == spoiled.files.tar_sha256
    assert next(ticks) > 20


def test_a_shard_reader_reads_through_all_kinds(spoiled: SpoiledShard) -> None:
    spoiled.proxy.probability = 0.2
    reader = spoiled.reader()
    assert [reader.read(sample) for sample in range(12)] == spoiled.samples[:12]
    reader.close()


def test_bytes_that_are_wrong_in_the_object_itself_end_as_a_corrupt_shard(spoiled: SpoiledShard) -> None:
    reader = spoiled.reader()
    data = bytearray(filesystem.read_bytes(spoiled.url))
    offset = list(reader.index.members(5))[1][1]
    data[offset + 100] ^= 4
    filesystem.write_bytes(spoiled.url, bytes(data))
    spoiled.proxy.counts.clear()
    with pytest.raises(CorruptShard, match=r"read 3 times \(now .* bytes, etag") as caught:
        spoiled.read_checked(reader, 5)
    assert caught.value.where == spoiled.url
    assert spoiled.proxy.counts["reads"] <= 5
    assert spoiled.read_checked(reader, 6) == spoiled.samples[6]


def test_a_shorter_object_ends_as_a_corrupt_shard(spoiled: SpoiledShard) -> None:
    reader = spoiled.reader()
    whole = filesystem.read_bytes(spoiled.url)
    filesystem.write_bytes(spoiled.url, whole[: len(whole) // 2])
    with pytest.raises(CorruptShard, match=r"0 bytes were read, .* were expected, read 3 times"):
        spoiled.read_checked(reader, NUM_SAMPLES - 1)


def test_an_object_that_is_replaced_while_it_is_read_is_named_with_both_versions(spoiled: SpoiledShard) -> None:
    reader = spoiled.reader()
    _, offset, size, _ = list(reader.index.members(0))[1]
    replacements = iter([b"first" * 9000, b"second" * 9000, b"third" * 9000])

    def wrong(data: bytes) -> str:
        filesystem.write_bytes(spoiled.url, next(replacements, b"last" * 9000))
        return "not the checksum"

    with pytest.raises(CorruptShard, match=r"it was \d+ bytes, etag (\w+).*\(now \d+ bytes, etag (?!\1)\w+"):
        filesystem.read_checked(spoiled.url, offset, size, wrong)


def test_the_hash_of_a_copy_names_both_sides(spoiled: SpoiledShard, tmp_path: Path) -> None:
    filesystem.write_bytes(spoiled.url, b"other")
    with (tmp_path / "copy").open("w+b") as sink, pytest.raises(CorruptShard) as caught:
        filesystem.fetch(spoiled.url, sink, sha256=spoiled.files.tar_sha256)
    assert spoiled.files.tar_sha256 in caught.value.message
    assert "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa" in caught.value.message  # of b"other"


# webdataset leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_opens_our_urls(spoiled: SpoiledShard) -> None:
    import webdataset

    from synfundus.storage.webdataset_scheme import register_webdataset_schemes

    spoiled.proxy.kinds, spoiled.proxy.probability = ("flip", "short", "cut", "500"), 0.3
    register_webdataset_schemes()
    found = list(webdataset.WebDataset([spoiled.url] * 3, shardshuffle=False, empty_check=False))
    gc.collect()
    assert [{name: sample[name] for name in ("json", "moments.npy")} for sample in found] == spoiled.samples * 3


def test_webdataset_does_not_open_what_we_refuse(spoiled: SpoiledShard) -> None:
    from synfundus.storage.webdataset_scheme import open_for_webdataset

    with pytest.raises(StorageError, match="mode 'wb'"):
        open_for_webdataset(spoiled.url, "wb")
    with pytest.raises(StorageError, match="not allowed"):
        open_for_webdataset("pipe:true")


def report(name: str, passed: int, of: int, **figures: object) -> None:
    print(json.dumps({"name": name, "passed": passed, "of": of, **figures}))


def timed(work: Callable[[], tuple[int, int]]) -> tuple[int, int, float]:
    began = time.monotonic()
    lost, wrong = work()
    return lost, wrong, time.monotonic() - began


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_campaign_two_thousand_reads_of_each_kind(spoiled: SpoiledShard) -> None:
    num_reads = 2_000
    *clean, clean_s = timed(lambda: read_many(spoiled, num_reads, threads=8))
    assert clean == [0, 0]
    spoiled.proxy.probability = 0.2
    figures: dict[str, object] = {"clean_s": round(clean_s, 1)}
    passed = 0
    for kind in KINDS:
        spoiled.proxy.kinds = (kind,)
        lost, wrong, seconds = timed(lambda: read_many(spoiled, num_reads, threads=8))
        passed += num_reads - lost - wrong
        figures[kind] = {
            "faults": spoiled.proxy.counts[kind],
            "lost": lost,
            "wrong": wrong,
            "seconds": round(seconds, 1),
            "times_clean": round(seconds / clean_s, 2),
        }
    report("s3 reads with 20 % spoiled answers", passed, num_reads * len(KINDS), **figures)
    assert passed == num_reads * len(KINDS)


@pytest.mark.slow
def test_campaign_server_away_for_a_minute(spoiled: SpoiledShard) -> None:
    filesystem.configure(StoreSettings(300, 10, 30, None, 1))
    waited_s = read_through_an_outage(spoiled, 60.0)
    report("s3 server away for 60 s", NUM_SAMPLES + 1, NUM_SAMPLES + 1, waited_s=round(waited_s, 1))
