"""Stops that must come at once, say what to check, and hold no secret; writes that are complete or absent."""

from __future__ import annotations

import io
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server

import synfundus
from synfundus.artifacts.autoencoder_folder import find_autoencoder
from synfundus.artifacts.latent_set import open_latent_sets
from synfundus.artifacts.model_folder import find_pipeline
from synfundus.distributed.world import LocalWorld
from synfundus.errors import CorruptShard, DataError, StorageError
from synfundus.stages.rehearsal import require_run
from synfundus.storage import filesystem
from synfundus.storage.filesystem import StoreSettings
from synfundus.storage.manifest import load_shard_set
from synfundus.storage.s3 import object_store, object_upload, store_connection
from synfundus.storage.writer_lock import require_free
from synfundus.training.checkpoints.search import find_checkpoint, verify

KEY_ID = "AKIAIOSFODNN7EXAMPLE"
SECRET = "wJalrXUtnFEMIzK7MDENGzbPxRfiCYEXAMPLEKEY"
SESSION = "FwoGZXIvYXdzEBYaDPLANTEDSESSIONVALUE"


class Planted:
    """Credentials planted in the environment; looks for them in everything that was said."""

    def __init__(self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
        self._caplog = caplog
        self._capfd = capfd

    def refusal_of(self, url: str) -> StorageError:
        """Read, expect a refusal within seconds, and look for the credentials in it."""
        began = time.monotonic()
        with pytest.raises(StorageError) as caught:
            filesystem.read_bytes(url)
        assert time.monotonic() - began < 10
        said = "".join(traceback.format_exception(caught.value, chain=True)) + self._caplog.text
        said += "".join(self._capfd.readouterr())
        for secret in (KEY_ID, SECRET, SESSION, ACCESS_KEY, SECRET_KEY, "Signature=", "Credential="):
            assert secret not in said
        assert caught.value.hint
        return caught.value


@pytest.fixture
def planted(
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Planted]:
    filesystem.write_bytes(f"{s3_bucket}/x", b"content")
    filesystem.configure(StoreSettings(300, 10, 30, None, 1))
    caplog.set_level(logging.DEBUG)
    yield Planted(caplog, capfd)
    filesystem.configure(None)


def test_a_wrong_secret(planted: Planted, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert "secret key does not match" in planted.refusal_of(f"{s3_bucket}/x").message


def test_an_unknown_key(planted: Planted, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    error = planted.refusal_of(f"{s3_bucket}/x")
    assert "does not know this access key" in error.message
    assert "AWS_ACCESS_KEY_ID" in error.hint


def test_no_credentials(planted: Planted, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "there are no credentials" in planted.refusal_of(f"{s3_bucket}/x").message


def test_a_profile_that_does_not_exist(planted: Planted, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "AWS_PROFILE does not exist" in planted.refusal_of(f"{s3_bucket}/x").message


def test_a_missing_bucket(planted: Planted) -> None:
    error = planted.refusal_of("s3://no-such-bucket-here/x")
    assert "the bucket does not exist" in error.message
    with pytest.raises(StorageError, match="the bucket does not exist"):
        filesystem.exists("s3://no-such-bucket-here/x")
    with pytest.raises(StorageError, match="the bucket does not exist"):
        filesystem.list_files("s3://no-such-bucket-here/x")


@pytest.mark.parametrize("address", ["not an address", f"http://{KEY_ID}:{SECRET}@127.0.0.1:1"])
def test_an_address_that_is_none(
    planted: Planted, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    error = planted.refusal_of(f"{s3_bucket}/x")
    assert "AWS_ENDPOINT_URL" in f"{error.where} {error.hint}"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, "ExpiredToken"), "the credentials have expired"),
        ((403, "ExpiredToken"), "the credentials have expired"),
        ((403, "AccessDenied"), "access denied"),
        ((403, "RequestTimeTooSkewed"), "the clocks"),
        ((301, "PermanentRedirect"), "another region"),
        ((403, "SomethingNew"), "access denied"),
        ((418, "<script>"), "refuses the request: 418"),
    ],
)
def test_answers_that_end_a_read(
    planted: Planted,
    s3_server: S3Server,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    answer: tuple[int, str],
    message: str,
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION)
    with FaultProxy(s3_server.port, refusal=answer) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        assert message in planted.refusal_of(f"{s3_bucket}/x").message
        assert proxy.counts["requests"] <= 2 or answer[0] == 301  # there the client below asks for the region


def test_credentials_that_were_renewed_are_read_again(
    planted: Planted, s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    profiles = tmp_path / "credentials"
    profiles.write_text(f"[lab]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profiles))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert "does not know" in planted.refusal_of(f"{s3_bucket}/x").message
    profiles.write_text(f"[lab]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n")
    with FaultProxy(s3_server.port, refusal=(400, "ExpiredToken"), refusals_left=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        filesystem.configure(StoreSettings(30, 10, 30, None, 1))
        assert filesystem.read_bytes(f"{s3_bucket}/x") == b"content"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{KEY_ID}:{SECRET}@shards/x",
        f"s3://{KEY_ID}:{SECRET}/x",
        f"s3://shards/x?X-Amz-Credential={KEY_ID}&X-Amz-Signature={SECRET}",
        f"https://user:{SECRET}@host/x",
        f"https://host/x?AWSAccessKeyId={KEY_ID}&Signature={SECRET}",
    ],
)
def test_a_location_with_credentials_is_refused_and_not_repeated(planted: Planted, url: str) -> None:
    planted.refusal_of(url)


@pytest.mark.parametrize(
    "url", ["s3://shards/a/../b", "s3://shards//a", "s3://shards/./a", "s3://shards/a\nb", "s3:///a"]
)
def test_a_path_that_no_object_of_ours_has_is_refused(s3_bucket: str, url: str) -> None:
    with pytest.raises(StorageError, match=r"must not contain|not a valid bucket name"):
        filesystem.read_bytes(url)


def test_what_is_not_there(s3_bucket: str) -> None:
    missing = f"{s3_bucket}/none"
    assert not filesystem.exists(missing)
    assert not filesystem.is_dir(missing)
    assert filesystem.list_names(missing) == []
    assert filesystem.list_files(missing) == {}
    filesystem.remove(missing, recursive=True)
    for read in (filesystem.read_bytes, filesystem.open_read, filesystem.file_size):
        with pytest.raises(StorageError, match="not found") as caught:
            read(missing)
        assert caught.value.where == missing
        assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_ranges_names_and_sizes(s3_bucket: str) -> None:
    url = f"{s3_bucket}/a/x.bin"
    filesystem.write_bytes(url, bytes(range(100)))
    filesystem.write_bytes(f"{s3_bucket}/a/empty", b"")
    assert filesystem.read_range(url, 10, 5) == bytes(range(10, 15))
    assert filesystem.read_range(url, 95, 50) == bytes(range(95, 100))
    assert filesystem.read_range(url, 100, 50) == filesystem.read_range(f"{s3_bucket}/a/empty", 0, 9) == b""
    assert filesystem.read_bytes(f"{s3_bucket}/a/empty") == b""
    assert [filesystem.file_size(f"{s3_bucket}/a/{name}") for name in ("x.bin", "empty")] == [100, 0]
    assert filesystem.exists(f"{s3_bucket}/a")
    assert filesystem.is_dir(f"{s3_bucket}/a")
    assert not filesystem.is_dir(url)
    assert filesystem.list_names(s3_bucket) == ["a"]
    assert filesystem.list_names(f"{s3_bucket}/a") == ["empty", "x.bin"]
    with filesystem.open_read(url) as stream:
        stream.seek(-3, io.SEEK_END)
        assert stream.read() == bytes([97, 98, 99])
    filesystem.remove(url)
    assert not filesystem.exists(url)
    with pytest.raises(StorageError, match="whole bucket"):
        filesystem.remove(f"s3://{BUCKET}", recursive=True)


def test_listings_are_never_remembered(s3_bucket: str) -> None:
    for number in range(4):
        filesystem.write_bytes(f"{s3_bucket}/{number}", b"x" * number)
        assert filesystem.list_files(s3_bucket) == {str(n): n for n in range(number + 1)}
    filesystem.write_bytes(f"{s3_bucket}/2", b"longer")
    assert filesystem.list_files(s3_bucket)["2"] == filesystem.file_size(f"{s3_bucket}/2") == 6


def test_a_listing_of_many_pages_is_complete(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"d{n % 3}/{n:03d}" for n in range(25)]
    for name in [*names, ".hidden", "d0/.hidden/x"]:
        filesystem.write_bytes(f"{s3_bucket}/{name}", name.encode())
    pages = object_store.list_objects

    def paged(url: str, *, recursive: bool, most: int = 0) -> Iterator[tuple[str, int]]:
        return pages(url, recursive=recursive, limit=most, page_keys=4)

    monkeypatch.setattr(object_store, "list_objects", paged)
    assert filesystem.list_files(s3_bucket) == {name: len(name) for name in sorted(names)}
    assert filesystem.list_names(s3_bucket) == [".hidden", "d0", "d1", "d2"]
    filesystem.remove(s3_bucket, recursive=True)
    assert filesystem.list_files(s3_bucket) == {}


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_folder_that_begins_with_markers_of_folders_is_there(s3_bucket: str, depth: int) -> None:
    bucket, prefix = object_store.split(s3_bucket)
    folders = [f"{prefix}/src", *(f"{prefix}/src/{'a/' * level}a" for level in range(depth))]
    for folder in folders:
        store_connection.request("write", s3_bucket, _marker(bucket, f"{folder}/"))
    url = f"{s3_bucket}/src"
    assert not filesystem.is_dir(url)  # nothing but markers
    filesystem.write_bytes(f"{url}/b/x.png", b"123")
    assert filesystem.is_dir(url)
    assert filesystem.exists(url)
    assert filesystem.list_files(url) == {"b/x.png": 3}
    for number in range(5):
        filesystem.write_bytes(f"{url}/c/{number}", b"")
    for limit in (1, 2, 4):
        assert len(list(object_store.list_objects(url, recursive=True, limit=limit))) == limit


def _marker(bucket: str, key: str) -> Callable[[Any], Awaitable[Any]]:
    async def put(client: Any) -> Any:
        return await client.put_object(Bucket=bucket, Key=key, Body=b"")

    return put


@pytest.mark.parametrize("num_bytes", [0, 1_000, 9 * 2**20])
def test_a_writer_that_fails_leaves_nothing(s3_bucket: str, monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(object_upload, "PART_BYTES", 5 * 2**20)
    url = f"{s3_bucket}/x"

    def write_half() -> None:
        with filesystem.atomic_write(url) as stream:
            stream.write(b"h" * num_bytes)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert not filesystem.exists(url)
    filesystem.write_bytes(url, b"old")
    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert filesystem.read_bytes(url) == b"old"
    assert open_uploads(url) == 0


def open_uploads(url: str) -> int:
    """Count uploads in parts that were begun and neither finished nor stopped."""
    from synfundus.storage.s3.store_connection import Client, request

    bucket, key = object_store.split(url)

    async def ask(client: Client) -> int:
        answer = await client.list_multipart_uploads(Bucket=bucket)
        return sum(upload["Key"].startswith(key) for upload in answer.get("Uploads", []))

    return request("list", url, ask)


def test_a_large_object_is_written_in_parts_and_proved(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_upload, "PART_BYTES", 5 * 2**20)
    monkeypatch.setattr(object_store, "CHUNK_BYTES", 2**20)
    data = bytes(range(256)) * 45_000
    filesystem.write_bytes(f"{s3_bucket}/big", data)
    assert filesystem.read_bytes(f"{s3_bucket}/big") == data
    assert object_store.stat(f"{s3_bucket}/big").md5 == ""


def test_an_upload_in_parts_that_fails_is_aborted(
    s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_upload, "PART_BYTES", 5 * 2**20)
    put_part = object_upload._put_part

    def fail_on_the_second(url: str, upload: str, number: int, data: bytes) -> str:
        if number == 2:
            raise StorageError("the store went away", where=url)
        return put_part(url, upload, number, data)

    monkeypatch.setattr(object_upload, "_put_part", fail_on_the_second)
    with pytest.raises(StorageError, match="went away"):
        filesystem.write_bytes(f"{s3_bucket}/big", b"x" * (12 * 2**20))
    assert not filesystem.exists(f"{s3_bucket}/big")
    assert open_uploads(f"{s3_bucket}/big") == 0


def test_a_store_that_keeps_other_bytes_than_were_sent_is_noticed(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_whole = object_upload._put_whole

    def put_other(url: str, data: bytes, sha256: str) -> str:
        put_whole(url, b"X" + data[1:], sha256)
        return "0" * 32

    monkeypatch.setattr(object_upload, "_put_whole", put_other)
    with pytest.raises(CorruptShard, match="does not match its hash"):
        filesystem.write_bytes(f"{s3_bucket}/x", b"content")


def test_objects_of_other_programs_are_proved_by_their_entity_tag(s3_bucket: str) -> None:
    from synfundus.storage.s3.store_connection import Client, request

    url = f"{s3_bucket}/foreign"
    bucket, key = object_store.split(url)

    async def put(client: Client) -> None:
        await client.put_object(Bucket=bucket, Key=key, Body=b"by another program")

    request("write", url, put)
    assert object_store.stat(url).sha256 == ""
    assert filesystem.read_bytes(url) == b"by another program"


def test_a_flipped_bit_in_an_object_of_another_program_is_noticed(
    s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_objects_of_other_programs_are_proved_by_their_entity_tag(s3_bucket)
    with FaultProxy(s3_server.port, seed=3, probability=0.5, kinds=("flip",)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        filesystem.forget_connections()
        for _ in range(12):
            assert filesystem.read_bytes(f"{s3_bucket}/foreign") == b"by another program"
        assert proxy.counts["flip"] > 3
        filesystem.forget_connections()


def test_folders_go_there_and_back_manifest_last(s3_bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("a.bin", "sub/b.bin", "manifest.json", ".hidden", "sub/.x/y"):
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 100)
    hashes = filesystem.upload_folder(source, f"{s3_bucket}/set", last=("manifest.json",))
    assert list(hashes) == ["a.bin", "sub/b.bin", "manifest.json"]
    assert filesystem.list_files(f"{s3_bucket}/set") == filesystem.list_files(str(source))
    assert filesystem.download_folder(f"{s3_bucket}/set", tmp_path / "copy") == hashes
    assert {path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*.*")} == set(hashes)
    assert (tmp_path / "copy/sub/b.bin").read_bytes() == b"sub/b.bin" * 100
    with pytest.raises(StorageError, match=r"not in the folder: missing.json"):
        filesystem.upload_folder(source, f"{s3_bucket}/other", last=("missing.json",))
    assert filesystem.list_files(f"{s3_bucket}/other") == {}


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "a\nb"])
def test_a_name_that_would_leave_the_folder_is_not_downloaded(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(object_store, "list_objects", lambda url, recursive: iter([(name, 1)]))
    with pytest.raises(StorageError, match="refusing to copy the name"):
        filesystem.download_folder(s3_bucket, tmp_path / "into")
    assert list(tmp_path.iterdir()) == []


OPENERS: dict[str, Callable[[str], object]] = {
    "a set": lambda url: load_shard_set(url, kind="images"),
    "latents": lambda url: open_latent_sets([url]),
    "a set of the API": synfundus.read_manifest,
    "a model": find_pipeline,
    "an autoencoder": find_autoencoder,
    "a run": require_run,
    "checkpoints": lambda url: find_checkpoint(url, world=LocalWorld()),
    "a checkpoint": verify,
    "a writer": require_free,
}


@pytest.mark.parametrize("kind", OPENERS)
def test_a_store_that_refuses_is_no_folder_without_what_was_looked_for(
    kind: str, planted: Planted, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in it is unknown: nothing is to be made again, and nothing older taken instead."""
    del planted
    for name in ("manifest.json", "images-000000000016/manifest.json", "run.json"):
        filesystem.write_bytes(f"{s3_bucket}/{name}", b"{}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    filesystem.configure(StoreSettings(300, 10, 30, None, 1))  # connects anew
    with pytest.raises(StorageError, match="secret key does not match"):
        OPENERS[kind](s3_bucket)


def test_a_manifest_that_cannot_be_read_is_there(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(StorageError, match="directory"):
        load_shard_set(str(tmp_path), kind="images")
    with pytest.raises(DataError, match=r"there is no manifest\.json"):
        load_shard_set(str(tmp_path / "none"), kind="images")
